"""The papers' figures on the bundled models, as `forecache reproduce goc-figure-1 --on digits` and so on draw them.

    python benchmarks/paper_figures.py                         a quarter of an hour on one core; it continues
    python benchmarks/paper_figures.py --figures goc-figure-1  one of them

Writes docs/images/<figure>-<model>.png, and benchmarks/results/<figure>-<model>.json with hardware and versions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common

from forecache.report import paper_figures
from forecache.reproduce.figures import FIGURES, measure, settings_of
from forecache.zoo.open import open_source

MODELS = ("digits", "digits-text")
SAMPLES = {"goc-figure-3": 8, "goc-figure-4": 6, "procache-errors": 2}
"""Samples where a figure takes fewer than by default, because the bundled models run on one core."""

WITH_IMAGES = ("goc-figure-4", "goc-figure-5")
"""Figures whose data hold images: they stay in out/."""


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    drawn = [name for name in FIGURES if name != "goc-figure-5"]  # goc-figure-4 with other images
    parser.add_argument("--figures", nargs="*", default=drawn, choices=list(FIGURES), help="figures to draw")
    args = parser.parse_args(words)
    for model in MODELS:
        source = open_source(model, "cpu")
        for name in args.figures:
            figure = FIGURES[name]
            settings = settings_of(figure, source, model, samples=SAMPLES.get(name))
            folder = common.WORK if name in WITH_IMAGES else common.RESULTS
            folder.mkdir(parents=True, exist_ok=True)
            document = measure(figure, source, settings, folder / f"{name}-{model}.json")
            paper_figures.draw(figure, document, common.IMAGES / f"{name}-{model}.png")
            print(f"{name} on {model}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
