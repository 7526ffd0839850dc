"""Bootstrap errors of metrics beside their true scatter: disjoint sets of MNIST images, features of digits.

    python benchmarks/intervals.py --data mnist.npz                a quarter of an hour on one core

Writes benchmarks/results/intervals.json and the table of docs/evaluation.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import common
import torch

from forecache.environment import environment
from forecache.evaluate import Against, Bootstrap, Features, Images, Judges, evaluate, extract, load_extractor
from forecache.evaluate.metrics import ALIASES, METRICS
from forecache.evaluate.reference import open_reference
from training import mnist


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", default=None, help="mnist.npz; without it, the hub dataset ylecun/mnist")
    parser.add_argument("--sets", type=int, default=40, help="disjoint sets")
    parser.add_argument("--size", type=int, default=500, help="images of a set")
    parser.add_argument("--resamples", type=int, default=50, help="bootstrap resamples of a set")
    args = parser.parse_args(words)
    started = time.perf_counter()
    train, _ = mnist.load(args.data)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # a file may be sorted by class
    pixels = ((train.images[order[: args.sets * args.size]] + 1) * 127.5).round().to(torch.uint8)
    extractor = load_extractor("digits")
    features = extract(Images(pixels), extractor, extractor.layers, batch=500)
    estimates: dict[str, list[tuple[float, float]]] = {name: [] for name in ALIASES["adm"]}
    for number in range(args.sets):
        part = slice(number * args.size, (number + 1) * args.size)
        own = Features("digits", args.size, {name: layer[part] for name, layer in features.layers.items()})
        evaluation = evaluate(
            own, Against(open_reference("digits")), "adm", Judges(), bootstrap=Bootstrap(args.resamples, seed=number)
        )
        for name, estimate in evaluation.figures.items():
            assert estimate.error is not None, "the bootstrap gives every metric an error"
            estimates[name].append((estimate.value, estimate.error))
        print(f"set {number + 1} of {args.sets}", flush=True)
    rows = {}
    for name, pairs in estimates.items():
        values, errors = zip(*pairs, strict=True)
        scatter, error = statistics.stdev(values), statistics.mean(errors)
        rows[name] = {"mean": statistics.mean(values), "scatter": scatter, "error": error, "ratio": error / scatter}
    place = environment()
    common.save(
        "intervals",
        {
            "command": common.command("intervals.py", words),
            "settings": {"sets": args.sets, "size": args.size, "resamples": args.resamples},
            "seconds": time.perf_counter() - started,
            "environment": place,
            "rows": rows,
        },
    )
    lines = ["| metric | mean | scatter of the sets | bootstrap error | ratio |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        values = [f"{row[key]:.3f}" for key in ("mean", "scatter", "error")]
        lines.append(f"| {METRICS[name].title} | {' | '.join(values)} | {row['ratio']:.2f} |")
    note = (
        f"{args.sets} disjoint sets of {args.size} MNIST training images, {args.resamples} resamples each, features of "
        "digits, reference its test set; scatter is the standard deviation over the sets, itself known to "
        f"{100 / (2 * (args.sets - 1)) ** 0.5:.0f} %. {common.machine(place)}."
    )
    common.fill_page("intervals", [*lines, "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
