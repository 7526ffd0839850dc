"""The options that stand for a method, and the method that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from forecache import methods
from forecache._errors import InputError
from forecache.plan import Method


class MethodName(StrEnum):
    none = "none"
    fora = "fora"
    goc = "goc"
    taylorseer = "taylorseer"


class BaseName(StrEnum):
    fora = "fora"
    explicit = "explicit"


class Anchor(StrEnum):
    start = "start"
    end = "end"


class HistoryName(StrEnum):
    emitted = "emitted"
    computed = "computed"


@dataclass(frozen=True)
class Options:
    """The method options of the command line, as typed; None where nothing was given."""

    method: MethodName
    base: BaseName
    interval: int | None
    anchor: Anchor
    level: int | None
    skip: str | None
    warmup: int
    eta: float
    correct: str | None
    history: HistoryName
    order: int

    def build(self) -> Method | None:
        """The method, or None for sampling without a cache."""
        if self.method is MethodName.none:
            return None
        base = self._base()
        if self.warmup:
            base = methods.warmup(base, self.warmup)
        if self.method is MethodName.goc:
            steps = _steps(self.correct) if self.correct is not None else None
            return methods.goc(base, self.eta, steps=steps, history=self.history.value)
        if self.correct is not None:
            raise InputError("--correct lists the steps that GOC corrects: use it with --method goc.")
        return methods.taylorseer(base, self.order) if self.method is MethodName.taylorseer else base

    def _base(self) -> Method:
        if self.base is BaseName.explicit:
            if self.skip is None:
                raise InputError("--base explicit needs the steps to skip, for example --skip 1,3,5.")
            if self.interval is not None or self.level is not None:
                raise InputError("--interval and --level belong to --base fora; --base explicit takes --skip alone.")
            return methods.explicit(skip=_steps(self.skip))
        if self.skip is not None:
            raise InputError("--skip lists steps for --base explicit.")
        if self.level is not None:
            if self.interval is not None:
                raise InputError("--level and --interval both say how much is skipped: give one of them.")
            level: Any = self.level
            return methods.fora_paper(level)
        return methods.fora(self.interval or 2, anchor=self.anchor.value)


def _steps(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"Steps are whole numbers separated by commas, such as 1,3,5; found {text!r}.") from None
