"""The options that stand for a method, and the method that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from forecache import methods, zoo
from forecache.errors import InputError
from forecache.methods.procache import PROCACHE_PATTERN
from forecache.parts import tokens
from forecache.parts.gates import god
from forecache.parts.grid import Importance
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method


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
    """The method options of the command line, as typed; None where nothing was given.

    Each field is an option of every command that takes a method, with its help.
    """

    method: MethodName
    base: Annotated[BaseName | None, typer.Option(help="The schedule under goc, eoc, ... [fora].")] = None
    warmup: Annotated[int | None, typer.Option(min=0, help="Compute the first steps.")] = None
    interval: Annotated[int | None, typer.Option(min=1, help="fora: compute one step in so many [2].")] = None
    anchor: Annotated[Anchor | None, typer.Option(help="fora: which end fixes the phase [start].")] = None
    level: Annotated[int | None, typer.Option(help="fora: the papers' 25, 50 or 75 % at 20 steps.")] = None
    skip: Annotated[str | None, typer.Option(help="explicit: the steps to skip, as 1,3,5.")] = None
    pattern: Annotated[str | None, typer.Option(help="explicit: '#...#..#', or 'published' (50 steps).")] = None
    router: Annotated[str | None, typer.Option(help="l2c: a router file, digits-22 or digits-40.")] = None
    router_threshold: Annotated[float | None, typer.Option(help="l2c: computed above it [0.1].")] = None
    change: Annotated[float | None, typer.Option(min=0, help="smoothcache: reused below this change.")] = None
    schedule: Annotated[Path | None, typer.Option(help="smoothcache: a published JSON schedule.")] = None
    eta: Annotated[float | None, typer.Option(help="goc: share of the last change; over 1 errors grow [0.8].")] = None
    correct: Annotated[str | None, typer.Option(help="goc: the skipped steps to correct, as 3,5,7.")] = None
    history: Annotated[HistoryName | None, typer.Option(help="goc: its queue [emitted, the paper's].")] = None
    stats: Annotated[str | None, typer.Option(help="goc's gate, eoc, smoothcache: a file, or 'digits'.")] = None
    gamma: Annotated[float | None, typer.Option(min=0, max=1, help="goc's gate: position against N [0.5].")] = None
    threshold: Annotated[float | None, typer.Option(help="goc's gate: corrected where B is below [0.6].")] = None
    order: Annotated[int | None, typer.Option(min=0, help="taylorseer: order of the expansion [1].")] = None
    theta: Annotated[float | None, typer.Option(help="eoc: strength [0.01 relative, 1 additive].")] = None
    form: Annotated[FormName | None, typer.Option(help="eoc: the paper's, or ours [relative].")] = None
    judge: Annotated[str | None, typer.Option(help="eoc: prior, all, or steps as 3,5,7 [prior].")] = None
    per: Annotated[PerName | None, typer.Option(help="eoc: priors per token or channel [as --stats has].")] = None
    share: Annotated[float | None, typer.Option(help="procache, toca: of the tokens [0.25; 0.07 released].")] = None
    importance: Annotated[ImportanceName | None, typer.Option(help="procache, toca [attn_norm; attention].")] = None
    from_depth: Annotated[float | None, typer.Option(help="procache: first block, or part of them [0.75].")] = None

    @property
    def given(self) -> list[str]:
        """The options that were typed, as they are typed."""
        names = (each.name for each in fields(self) if each.name != "method" and getattr(self, each.name) is not None)
        return [f"--{name.replace('_', '-')}" for name in names]

    def build(self, num_steps: int) -> Method | None:
        """The method, or None for sampling without a cache; InputError if an option does not belong to it."""
        base = self._base_name()
        self._refuse_others({self.method.value, *([base.value] if self.method is not MethodName.none else [])})
        if self.method is MethodName.none:
            if self.warmup:
                raise InputError("--warmup computes the first steps of a plan: give a --method, too.")
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
                "--method eoc, --base smoothcache and GOC's gate need --stats: a file of `forecache calibrate`, or the "
                f"name of a bundled model ({', '.join(zoo.models())}) for its own."
            )
        is_bundled = self.stats in zoo.models()
        return Statistics.load(zoo.record(self.stats).statistics_path(num_steps) if is_bundled else self.stats)

    def _base(self, name: BaseName, num_steps: int) -> Method:
        if name is BaseName.explicit:
            if self.pattern is not None and self.skip is None:
                published = self.pattern == "published"
                return methods.explicit(pattern=PROCACHE_PATTERN if published else self.pattern)
            if self.skip is None or self.pattern is not None:
                raise InputError(
                    "--base explicit needs the steps to skip, for example --skip 1,3,5, or --pattern '#...#..#', one # "
                    "(compute) or . (skip) a step; 'published' is ProCache's pattern for DiT at 50 steps."
                )
            return methods.explicit(skip=_steps(self.skip))
        if name is BaseName.l2c:
            if self.router is None:
                raise InputError(
                    f"--base l2c needs --router: a router file, or a bundled one: {', '.join(zoo.routers())}."
                )
            threshold = 0.1 if self.router_threshold is None else self.router_threshold
            return methods.l2c(_router(self.router), threshold)
        if name is BaseName.smoothcache:
            if (self.schedule is None) == (self.change is None):
                raise InputError(
                    "--base smoothcache takes one of two: --schedule, a published JSON file, or --change with --stats."
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
    return Router.read(zoo.routers().get(name, name))


def _steps(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"Steps are whole numbers separated by commas, such as 1,3,5; found {text!r}.") from None
