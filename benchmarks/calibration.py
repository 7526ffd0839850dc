"""What calibration costs: sampling K digits plainly, and calibrating on the same K, in turn in one process.

    python benchmarks/calibration.py [--samples 64] [--rounds 7] [--threads 1]

Writes benchmarks/results/calibration.json, the sentence between the markers in docs/calibration.md, and its picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch
from digits import ROOT, fill

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.report import figures
from forecache.sampling.sources import Sampling, in_batches
from forecache.sampling.timing import timed

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = zoo.load_digits()
    labels = [index % 10 for index in range(args.samples)]
    how = Sampling(20, 1.5, 1000)
    plain, calibrating = [], []
    for turn in range(args.rounds + 1):
        seconds = timed(lambda: in_batches(source, labels, how, BATCH))[1]
        slower = timed(lambda: fc.calibrate(source, labels, num_steps=20, batch=BATCH).means[0])[1]
        if turn > 0:
            plain.append(seconds)
            calibrating.append(slower)
    ratios = [b / a for a, b in zip(plain, calibrating, strict=True)]
    place = environment()
    document = {
        "command": "python benchmarks/calibration.py " + " ".join(sys.argv[1:]),
        "environment": place,
        "samples": args.samples,
        "plain_seconds": plain,
        "calibrating_seconds": calibrating,
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }
    (ROOT / "benchmarks/results/calibration.json").write_text(json.dumps(document, indent=2) + "\n")
    sentence = (
        f"Measured: calibrating {args.samples} digits takes {statistics.median(ratios):.2f} times as long as sampling "
        f"them (median of {args.rounds} pairs in one run, {min(ratios):.2f} to {max(ratios):.2f}; "
        f"{place['cpu']}, {args.threads} threads, torch {place['torch']})."
    )
    fill(ROOT / "docs/calibration.md", "calibration", [sentence])
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(20))
    figures.draw_statistics(stats, fc.parts.gates.god(stats, 0.5, 0.45), ROOT / "docs/images/statistics.png")
    print(sentence)


if __name__ == "__main__":
    main()
