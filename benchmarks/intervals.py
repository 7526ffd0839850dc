"""Whether bootstrap errors are as large as metrics really scatter: disjoint sets of MNIST images, features of digits.

    python -m benchmarks.intervals --data mnist.npz

Writes benchmarks/results/intervals.json and the table of docs/evaluation.md.
"""

import argparse
import json
import re
import statistics
import time
from pathlib import Path

import torch

from forecache.environment import environment
from forecache.evaluate import Against, Bootstrap, Features, Images, Judges, evaluate, extract, load_extractor
from forecache.evaluate.metrics import ALIASES, METRICS
from forecache.evaluate.reference import open_reference
from training import mnist

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evaluation.md"
OUT = ROOT / "benchmarks" / "results" / "intervals.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="mnist.npz; without it, the hub dataset ylecun/mnist")
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=50)
    args = parser.parse_args()
    started = time.perf_counter()
    train, _ = mnist.load(args.data)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # a file may be sorted by class
    pixels = ((train.images[order[: args.sets * args.size]] + 1) * 127.5).round().to(torch.uint8)
    extractor = load_extractor("digits")
    features = extract(Images(pixels), extractor, extractor.layers, batch=500)
    found = {name: [] for name in ALIASES["adm"]}
    for number in range(args.sets):
        part = slice(number * args.size, (number + 1) * args.size)
        own = Features("digits", args.size, {name: layer[part] for name, layer in features.layers.items()})
        done = evaluate(
            own, Against(open_reference("digits")), "adm", Judges(), bootstrap=Bootstrap(args.resamples, seed=number)
        )
        for name, figure in done.figures.items():
            found[name].append((figure.value, figure.error))
        print(f"set {number + 1} of {args.sets}", flush=True)
    rows = {}
    for name, pairs in found.items():
        values, errors = zip(*pairs, strict=True)
        scatter, error = statistics.stdev(values), statistics.mean(errors)
        rows[name] = {"mean": statistics.mean(values), "scatter": scatter, "error": error, "ratio": error / scatter}
    settings = {"sets": args.sets, "size": args.size, "resamples": args.resamples}
    record = {"settings": settings, "seconds": time.perf_counter() - started, "environment": environment()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(record | {"rows": rows}, indent=2) + "\n")
    lines = ["| metric | mean | scatter of the sets | bootstrap error | ratio |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        title, digits = METRICS[name].title, 3
        values = [f"{row[key]:.{digits}f}" for key in ("mean", "scatter", "error")]
        lines.append(f"| {title} | {' | '.join(values)} | {row['ratio']:.2f} |")
    place = record["environment"]
    legend = (
        f"{args.sets} disjoint sets of {args.size} MNIST training images, {args.resamples} resamples each, features of "
        "digits, reference its test set; scatter is the standard deviation over the sets, itself known to "
        f"{100 / (2 * (args.sets - 1)) ** 0.5:.0f} %. {place['cpu']}, torch {place['torch']}."
    )
    lines += ["", legend]
    text = PAGE.read_text()
    block = "\n".join(["<!-- intervals -->", *lines, "<!-- /intervals -->"])
    PAGE.write_text(re.sub(r"<!-- intervals -->.*<!-- /intervals -->", lambda _: block, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
