"""Plans that were found by `forecache tune` for the bundled models, for runs of 20 steps."""

from __future__ import annotations

from pathlib import Path

from forecache._errors import InputError


def tuned_folder(model: str) -> Path:
    """Where the tuned plans of ``digits`` or ``digits-text`` lie."""
    return Path(__file__).parent / "assets" / model / "tuned"


def tuned_path(model: str, computed: int) -> Path:
    """The tuned plan that computes so many of 20 steps, for `forecache.Plan.load`; InputError if there is none."""
    path = tuned_folder(model) / f"plan-{computed}-of-20.json"
    if not path.exists():
        there = sorted(int(each.stem.split("-")[1]) for each in tuned_folder(model).glob("plan-*.json"))
        raise InputError(
            f"{model} comes with tuned plans for {there or 'no number of'} computed steps of 20, not for {computed}: "
            f"find one with `forecache tune --model {model}`."
        )
    return path
