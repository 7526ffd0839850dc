"""Cost of calibration: sampling K digits plainly, and calibrating on the same K, in alternating rounds.

    python benchmarks/calibration.py [--samples 64] [--rounds 7] [--threads 1]          five minutes on one core

Writes benchmarks/results/calibration.json, the sentence in docs/calibration.md, and docs/images/statistics.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common
import torch

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.report import figures
from forecache.sampling.sources import Sampling, in_batches
from forecache.sampling.timing import Spread, alternate, seconds_of

BATCH = 32


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=64, help="digits of a run")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    source = zoo.load_digits()
    labels = [index % 10 for index in range(args.samples)]
    how = Sampling(20, 1.5, 1000)
    seconds = alternate(
        {
            "plain": lambda: seconds_of(lambda: in_batches(source, labels, how, BATCH)),
            "calibrating": lambda: seconds_of(lambda: fc.calibrate(source, labels, num_steps=20, batch=BATCH).means[0]),
        },
        args.rounds,
    )
    ratios = Spread.of_ratios(seconds["calibrating"], seconds["plain"])
    place = environment()
    common.save(
        "calibration",
        {
            "command": common.command("calibration.py", words),
            "environment": place,
            "samples": args.samples,
            "plain_seconds": seconds["plain"],
            "calibrating_seconds": seconds["calibrating"],
            "ratio_median": ratios.median,
            "ratio_quartiles": [ratios.low, ratios.high],
        },
    )
    sentence = (
        f"Measured: calibrating {args.samples} digits takes {ratios.median:.2f} times as long as sampling them (median "
        f"of {args.rounds} pairs in one run, quartiles {ratios.low:.2f} to {ratios.high:.2f}; "
        f"{common.machine(place, 'threads')})."
    )
    common.fill_page("calibration", [sentence])
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(20))
    figures.draw_statistics(stats, fc.parts.gates.god(stats, 0.5, 0.45), common.IMAGES / "statistics.png")
    print(sentence)


if __name__ == "__main__":
    main(sys.argv[1:])
