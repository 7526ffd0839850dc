"""Plans that were found by `forecache tune` for the bundled models."""

from __future__ import annotations

from pathlib import Path

from forecache.errors import InputError


def tuned_folder(model: str) -> Path:
    """Where the tuned plans of ``digits`` or ``digits-text`` lie."""
    return Path(__file__).parent / "assets" / model / "tuned"


def tuned_path(model: str, computed: int, num_steps: int = 20) -> Path:
    """The tuned plan that computes so many of ``num_steps``, for `forecache.Plan.load`; InputError if there is none."""
    path = tuned_folder(model) / f"plan-{computed}-of-{num_steps}.json"
    if not path.exists():
        files = tuned_folder(model).glob(f"plan-*-of-{num_steps}.json")
        there = sorted(int(each.stem.split("-")[1]) for each in files)
        raise InputError(
            f"{model} comes with tuned plans for {there or 'no number of'} computed steps of {num_steps}, not for "
            f"{computed}: find one with `forecache tune --model {model} --steps {num_steps}`."
        )
    return path
