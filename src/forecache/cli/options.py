"""The options that stand for a method, and the method that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from forecache import methods
from forecache._errors import InputError
from forecache.gates import god
from forecache.plan import Method
from forecache.statistics import Statistics
from forecache.zoo import statistics_path


class MethodName(StrEnum):
    none = "none"
    fora = "fora"
    goc = "goc"
    eoc = "eoc"
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


class FormName(StrEnum):
    relative = "relative"
    additive = "additive"


class PerName(StrEnum):
    token = "token"
    channel = "channel"


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
    stats: str | None
    gamma: float
    threshold: float
    theta: float | None
    form: FormName
    judge: str
    per: PerName | None

    def build(self, num_steps: int) -> Method | None:
        """The method, or None for sampling without a cache."""
        if self.method is MethodName.none:
            return None
        base = self._base()
        if self.warmup:
            base = methods.warmup(base, self.warmup)
        if self.method is MethodName.goc:
            steps = _steps(self.correct) if self.correct is not None else None
            gate = god(self._statistics(num_steps), self.gamma, self.threshold) if self.stats is not None else None
            return methods.goc(base, self.eta, steps=steps, gate=gate, history=self.history.value)
        if self.method is MethodName.eoc:
            stats, per = self._statistics(num_steps), self.per.value if self.per is not None else None
            judge: Any = self.judge if self.judge in ("prior", "all") else _steps(self.judge)
            return methods.eoc(base, stats, self.theta, form=self.form.value, judge=judge, per=per)
        if self.theta is not None or self.per is not None:
            raise InputError("--theta and --per belong to --method eoc.")
        if self.stats is not None:
            raise InputError("--stats is for --method eoc, and for the gate of --method goc.")
        if self.correct is not None:
            raise InputError("--correct lists the steps that GOC corrects: use it with --method goc.")
        return methods.taylorseer(base, self.order) if self.method is MethodName.taylorseer else base

    def _statistics(self, num_steps: int) -> Statistics:
        if self.stats is None:
            raise InputError(
                "--method eoc needs --stats, a file that `forecache calibrate` wrote; for the model digits, --stats "
                "digits takes the bundled one."
            )
        return Statistics.load(statistics_path(num_steps) if self.stats == "digits" else self.stats)

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
