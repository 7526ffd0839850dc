"""Quality of the bundled digits-text model: whether its samples show what the captions ask for.

    python benchmarks/digits_text.py [--samples 1000] [--few 200]                half an hour on one core

Writes benchmarks/results/digits-text.json with command, hardware and versions, docs/images/digits-text.png, and the
figures between the markers of the model card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import common
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from forecache.environment import environment
from forecache.evaluate import Moments, frechet_distance
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import DigitsText, captions, load_digits_text
from forecache.zoo.digits_text import FOLDER, GUIDANCE

STEPS, BATCH = 20, 50
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
Pairs = list[tuple[int, int]]


def sampled(digits: DigitsText, pairs: Pairs, scale: float, seed: int, wording: int | None = None) -> Tensor:
    """One image for each pair of digits, by one wording, or by all wordings in turn."""
    wordings = len(captions.TEMPLATES)
    texts = [captions.captions(*pair)[i % wordings if wording is None else wording] for i, pair in enumerate(pairs)]
    return in_batches(digits, texts, Sampling(STEPS, scale, seed), BATCH)


def judged(digits: DigitsText, images: Tensor, pairs: Pairs) -> dict[str, float]:
    """Shares of samples with the left, the right and both digits as asked for, and the Fréchet distance."""
    hits = digits.recognised(images) == torch.tensor(pairs)
    return {
        "left": hits[:, 0].float().mean().item(),
        "right": hits[:, 1].float().mean().item(),
        "both": hits.all(1).float().mean().item(),
        "frechet": frechet_distance(Moments.of(digits.features(images)), digits.reference),
    }


def measure(digits: DigitsText, samples: int, few: int) -> dict[str, Any]:
    """All figures of the result."""
    some, pairs = captions.pairs(few), captions.pairs(samples)
    scales = {}
    for scale in SCALES:
        scales[str(scale)] = judged(digits, sampled(digits, some, scale, 1), some)
        print(f"guidance {scale:g}: {scales[str(scale)]}", flush=True)
    images = sampled(digits, pairs, GUIDANCE, 0)
    itself = judged(digits, images, pairs)
    print(f"{samples} samples, guidance {GUIDANCE:g}: {itself}", flush=True)
    draw(images)
    wordings = {}
    for number, words in enumerate(captions.TEMPLATES):
        wordings[words] = judged(digits, sampled(digits, some, GUIDANCE, 1, number), some)["both"]
        print(f"{words}: {wordings[words]:.1%}", flush=True)
    return {
        "uncached": itself,
        "by_scale": scales,
        "by_wording": wordings,
        "shuffled": shuffled(digits, some),
    }


def shuffled(digits: DigitsText, pairs: Pairs) -> dict[str, float]:
    """The same noises with the captions of other samples: which digits do the images show?"""
    others = pairs[1:] + pairs[:1]
    images = sampled(digits, others, GUIDANCE, 1, 0)
    unconditional = in_batches(digits, [""] * len(pairs), Sampling(STEPS, 1.0, 1), BATCH)
    return {
        "digits_of_the_first_captions": judged(digits, images, pairs)["both"],
        "digits_of_the_captions_given": judged(digits, images, others)["both"],
        "no_caption_digits_of_the_first_captions": judged(digits, unconditional, pairs)["both"],
    }


def draw(images: Tensor) -> None:
    """Twenty-four samples with their captions."""
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(6, 4, figsize=(11, 7), layout="constrained")
    pairs = captions.pairs(len(images))
    for number, axis in enumerate(axes.flat):
        index = number * 7
        axis.imshow(images[index, 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(captions.captions(*pairs[index])[index % len(captions.TEMPLATES)], fontsize=8)
        axis.axis("off")
    figure.savefig(common.IMAGES / "digits-text.png", dpi=100)


def write(document: Mapping[str, Any]) -> None:
    """The figures of the model card, from the recorded result."""
    itself, few = document["uncached"], document["few"]
    lines = ["| guidance | left | right | both | Fréchet |", "|---|---|---|---|---|"]
    for scale, row in document["by_scale"].items():
        shares = " | ".join(f"{row[side]:.1%}" for side in ("left", "right", "both"))
        lines.append(f"| {scale} | {shares} | {row['frechet']:.1f} |")
    mixed = document["shuffled"]
    lowest, highest = min(document["by_wording"].values()), max(document["by_wording"].values())
    measured = [
        f"**{itself['both']:.1%} of {document['samples']} samples show both digits that were asked for**, each in its "
        f"place (left {itself['left']:.1%}, right {itself['right']:.1%}); DPM-Solver++ with {STEPS} steps, guidance "
        f"{GUIDANCE:g}, seed 0, all wordings in turn. Fréchet distance of the judge's features to the MNIST test set: "
        f"{itself['frechet']:.2f}.",
        "",
        *lines,
        "",
        f"{few} samples a row (their Fréchet distances are biased upwards), seed 1. By wording between {lowest:.1%} "
        f"and {highest:.1%}. From the same noises with each other's captions, "
        f"{mixed['digits_of_the_captions_given']:.1%} show what the captions say and "
        f"{mixed['digits_of_the_first_captions']:.1%} what they showed before. "
        f"{common.machine(document['environment'], 'diffusers')}.",
    ]
    common.fill(FOLDER / "README.md", "measured", measured)
    training = json.loads((FOLDER / "training.json").read_text())
    runs = list(reversed(list(_runs(training))))
    lengths = ", ".join(f"{steps:,} ({minutes:.0f} minutes)" for steps, minutes in runs)
    trained = (
        f"Trained in {len(runs)} runs of {lengths} steps, each from the averaged weights of the one before, in batches "
        f"of {training['settings']['batch']}, seed {training['settings']['seed']}, on one thread of "
        f"{training['hardware']}, shared with other work; last loss {training['final_loss']:.4f}."
    )
    common.fill(FOLDER / "README.md", "training", [trained])


def _runs(training: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Steps and minutes of every run, the last one first."""
    run: Mapping[str, Any] | None = dict(training) | {"before": training["settings"].get("before")}
    while run is not None:
        yield run["steps"], run["seconds"] / 60
        run = run.get("before")


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=1000, help="samples of the main figures")
    parser.add_argument("--few", type=int, default=200, help="samples of each guidance scale and wording")
    args = parser.parse_args(words)
    document = {
        "command": common.command("digits_text.py", words),
        "environment": environment(),
        "sampler": f"DPM-Solver++ 2M, {STEPS} steps",
        "guidance": GUIDANCE,
        "samples": args.samples,
        "few": args.few,
        **measure(load_digits_text(), args.samples, args.few),
    }
    common.save("digits-text", document)
    write(document)


if __name__ == "__main__":
    main(sys.argv[1:])
