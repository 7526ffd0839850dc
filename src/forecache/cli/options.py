"""The options that stand for a method, and the method that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from forecache import methods, tokens
from forecache._core import Importance
from forecache._errors import InputError
from forecache._routerfile import Router
from forecache.gates import god
from forecache.plan import Method
from forecache.statistics import Statistics
from forecache.zoo import digits, digits_text, router_path


class BaseName(StrEnum):
    fora = "fora"
    explicit = "explicit"
    l2c = "l2c"
    smoothcache = "smoothcache"


class MethodName(StrEnum):
    none = "none"
    fora = "fora"
    explicit = "explicit"
    l2c = "l2c"
    smoothcache = "smoothcache"
    goc = "goc"
    eoc = "eoc"
    taylorseer = "taylorseer"
    procache = "procache"
    toca = "toca"


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


class ImportanceName(StrEnum):
    attn_norm = "attn_norm"
    attention = "attention"
    random = "random"
    released = "released"


IMPORTANCES: dict[ImportanceName, Importance] = {
    ImportanceName.attn_norm: "attn_norm",
    ImportanceName.attention: "attention",
    ImportanceName.random: "random",
    ImportanceName.released: "attention",
}

OWNERS = {
    "interval": ("fora",),
    "anchor": ("fora",),
    "level": ("fora",),
    "skip": ("explicit",),
    "pattern": ("explicit",),
    "router": ("l2c",),
    "router_threshold": ("l2c",),
    "change": ("smoothcache",),
    "schedule": ("smoothcache",),
    "eta": ("goc",),
    "correct": ("goc",),
    "history": ("goc",),
    "gamma": ("goc",),
    "threshold": ("goc",),
    "order": ("taylorseer",),
    "theta": ("eoc",),
    "form": ("eoc",),
    "judge": ("eoc",),
    "per": ("eoc",),
    "share": ("procache", "toca"),
    "importance": ("procache", "toca"),
    "from_depth": ("procache",),
    "stats": ("goc", "eoc", "smoothcache"),
}
"""Which methods and bases an option belongs to; with any other it is refused, never ignored."""


@dataclass(frozen=True)
class Options:
    """The method options of the command line, as typed; None where nothing was given."""

    method: MethodName
    base: BaseName | None
    warmup: int | None
    interval: int | None
    anchor: Anchor | None
    level: int | None
    skip: str | None
    pattern: str | None
    router: str | None
    router_threshold: float | None
    change: float | None
    schedule: Path | None
    eta: float | None
    correct: str | None
    history: HistoryName | None
    stats: str | None
    gamma: float | None
    threshold: float | None
    order: int | None
    theta: float | None
    form: FormName | None
    judge: str | None
    per: PerName | None
    share: float | None
    importance: ImportanceName | None
    from_depth: float | None

    def build(self, num_steps: int) -> Method | None:
        """The method, or None for sampling without a cache; InputError if an option does not belong to it."""
        base = self._base_name()
        self._refuse_others({self.method.value, *([base.value] if self.method is not MethodName.none else [])})
        if self.method is MethodName.none:
            return None
        made = self._base(base, num_steps)
        if self.warmup:
            made = methods.warmup(made, self.warmup)
        if self.method is MethodName.goc:
            return self._goc(made, num_steps)
        if self.method is MethodName.eoc:
            form = self.form or FormName.relative
            per = self.per.value if self.per is not None else None
            judge: Any = self.judge if self.judge in ("prior", "all") else _steps(self.judge) if self.judge else "prior"
            return methods.eoc(made, self._statistics(num_steps), self.theta, form=form.value, judge=judge, per=per)
        if self.method is MethodName.taylorseer:
            return methods.taylorseer(made, 1 if self.order is None else self.order)
        if self.method in (MethodName.procache, MethodName.toca):
            return self._selective(made)
        return made

    def _selective(self, base: Method) -> Method:
        """ProCache's partial calls, or ToCa's, on the base."""
        toca = self.method is MethodName.toca
        released = self.importance is ImportanceName.released
        usual = ImportanceName.attention if toca or released else ImportanceName.attn_norm
        importance = IMPORTANCES[self.importance or usual]
        share = self.share if self.share is not None else 0.07 if released else 0.25
        chosen = tokens.released(share) if released else None
        if toca:
            return methods.toca(base, share, importance, tokens=chosen)
        depth = 0.75 if self.from_depth is None else _depth(self.from_depth)
        return methods.selective(base, depth, share, importance, tokens=chosen)

    def _base_name(self) -> BaseName:
        """The base: the method itself where it is one, else --base, else FORA."""
        itself = BaseName(self.method.value) if self.method.value in list(BaseName) else None
        if itself is not None and self.base not in (None, itself):
            raise InputError(
                f"--method {self.method.value} is a base itself, and --base {self.base.value if self.base else ''} is "
                "another: leave --base out, or give a correction as --method, such as goc."
            )
        usual = BaseName.explicit if self.pattern is not None else BaseName.fora
        return itself or self.base or usual

    def _refuse_others(self, used: set[str]) -> None:
        for name, owners in OWNERS.items():
            if getattr(self, name) is not None and not used.intersection(owners):
                where = " or ".join(f"--{'base' if owner in list(BaseName) else 'method'} {owner}" for owner in owners)
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} belongs to {where}, and --method {self.method.value} does not use it.")

    def _goc(self, base: Method, num_steps: int) -> Method:
        gate = None
        if self.gamma is not None or self.threshold is not None or (self.stats and self.base != "smoothcache"):
            gamma = 0.5 if self.gamma is None else self.gamma
            gate = god(self._statistics(num_steps), gamma, 0.6 if self.threshold is None else self.threshold)
        return methods.goc(
            base,
            0.8 if self.eta is None else self.eta,
            steps=_steps(self.correct) if self.correct is not None else None,
            gate=gate,
            history=(self.history or HistoryName.emitted).value,
        )

    def _statistics(self, num_steps: int) -> Statistics:
        if self.stats is None:
            raise InputError(
                "--method eoc, --base smoothcache and GOC's gate need --stats: a file of `forecache calibrate`, or for "
                "the model digits --stats digits, the bundled one (digits-text for digits-text)."
            )
        bundled = {"digits": digits.statistics_path, "digits-text": digits_text.statistics_path}.get(self.stats or "")
        return Statistics.load(bundled(num_steps) if bundled else self.stats)

    def _base(self, name: BaseName, num_steps: int) -> Method:
        if name is BaseName.explicit:
            if self.pattern is not None and self.skip is None:
                published = self.pattern == "published"
                return methods.explicit(pattern=methods.PROCACHE_PATTERN if published else self.pattern)
            if self.skip is None or self.pattern is not None:
                raise InputError(
                    "--base explicit needs the steps to skip, for example --skip 1,3,5, or --pattern '#...#..#', one # "
                    "(compute) or . (skip) a step; 'published' is ProCache's pattern for DiT at 50 steps."
                )
            return methods.explicit(skip=_steps(self.skip))
        if name is BaseName.l2c:
            if self.router is None:
                raise InputError("--base l2c needs --router, a router file; for digits, digits-22 or digits-40.")
            threshold = 0.1 if self.router_threshold is None else self.router_threshold
            return methods.l2c(_router(self.router), threshold)
        if name is BaseName.smoothcache:
            if (self.schedule is None) == (self.change is None):
                raise InputError(
                    "--base smoothcache takes --schedule, a published JSON file, or --change with --stats."
                )
            if self.schedule is not None:
                return methods.smoothcache_file(self.schedule)
            return methods.smoothcache(self._statistics(num_steps), self.change or 0.0)
        if self.level is not None:
            if self.interval is not None:
                raise InputError("--level and --interval both say how much is skipped: give one of them.")
            level: Any = self.level
            return methods.fora_paper(level)
        return methods.fora(self.interval or 2, anchor=(self.anchor or Anchor.start).value)


def _depth(value: float) -> int | float:
    """A block if it is a whole number, otherwise a part of the blocks."""
    return int(value) if value == int(value) else value


def _router(name: str) -> Router:
    bundled = name.removeprefix("digits-")
    return Router.read(router_path(int(bundled)) if name != bundled and bundled.isdigit() else name)


def _steps(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"Steps are whole numbers separated by commas, such as 1,3,5; found {text!r}.") from None
