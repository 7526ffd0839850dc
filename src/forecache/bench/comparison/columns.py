"""The columns of a comparison: without a cache, under methods, under plan files, or in other numbers of steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forecache.bench.speed import Kind, kinds
from forecache.errors import InputError, PlanError
from forecache.methods import recommended
from forecache.methods.words import method_of
from forecache.models.find import grid_at
from forecache.models.levels import FINEST, AskedSites
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.sampling.sources import Source
from forecache.zoo import ingredients

UNCACHED = "no cache"


@dataclass(frozen=True)
class Column:
    """One way to sample.

    name: in tables and pictures, unique in a comparison
    plan: None computes everything
    num_steps: sampling steps
    is_timed: whether its time is compared with that of sampling without a cache
    """

    name: str
    plan: Plan | None
    num_steps: int
    is_timed: bool = True
    steps: tuple[Kind, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(kinds(self.plan, self.num_steps)))

    @property
    def slug(self) -> str:
        """The name of its folder: ``goc-eta-0.8`` for ``goc eta=0.8``."""
        return "-".join(re.findall(r"[a-z0-9.]*[a-z0-9]", self.name.lower())) or "column"

    @property
    def computed_calls(self) -> int:
        """Steps in which the model computes at least some of its sites or tokens."""
        return sum(kind != "skipped" for kind in self.steps)


@dataclass(frozen=True)
class Request:
    """What is to be compared, before a model is open.

    methods: texts, as `methods.words` reads them, with the methods that they make
    plans: plan files, with their plans
    num_steps: sampling steps
    fewer: numbers of steps to sample in without a cache, for comparison
    reference: a number of steps to sample in without a cache, that quality is measured against as well; None for none
    """

    methods: tuple[tuple[str, Method], ...]
    plans: tuple[tuple[Path, Plan], ...]
    num_steps: int
    fewer: tuple[int, ...] = ()
    reference: int | None = None

    @classmethod
    def of(
        cls,
        methods: Sequence[str],
        plans: Sequence[Path],
        num_steps: int | None,
        fewer: Sequence[int] = (),
        reference: int | None = None,
        speedups: Sequence[float] = (),
    ) -> Request:
        """The request of texts and files. Raises InputError or PlanError for one that cannot be planned.

        num_steps: None takes that of the plan files, else 20
        speedups: times fewer MACs, for each of which the recipe on record is compared
        """
        loaded = tuple((path, Plan.load(path)) for path in plans)
        lengths = {plan.num_steps for _, plan in loaded}
        if num_steps is None and len(lengths) > 1:
            raise PlanError(f"The plan files are for {sorted(lengths)} steps: compare plans of one number of steps.")
        steps = num_steps or (lengths.pop() if lengths else 20)
        for path, plan in loaded:
            if plan.num_steps != steps:
                raise PlanError(
                    f"{path} is a plan for {plan.num_steps} steps, and {steps} are compared: leave it out, or make a "
                    "plan for that number."
                )
        if not methods and not loaded and not fewer and not speedups:
            raise InputError("Nothing is to be compared: give methods or plan files.")
        resolve = ingredients.resolver(steps)
        texts = tuple(dict.fromkeys(methods))
        made = [(text, method_of(text, resolve)) for text in texts]
        made += [
            (f"recommended, {speedup:g}x", recommended.method(speedup, steps)) for speedup in dict.fromkeys(speedups)
        ]
        return cls(tuple(made), loaded, steps, tuple(dict.fromkeys(fewer)), reference)

    def columns(self, source: Source, asked: AskedSites = FINEST) -> tuple[Column, ...]:
        """The columns on a model: without a cache first, the reference last.

        asked: what sites are, for methods; plan files have their own.

        Raises InputError, which quotes the text, for a method that cannot be planned for the model, and for two columns
        of one name.
        """
        whole = grid_at(source.target, self.num_steps, asked)
        columns = [Column(UNCACHED, None, self.num_steps)]
        for text, method in self.methods:
            try:
                columns.append(Column(_name(text, method), method.plan(whole), self.num_steps))
            except (InputError, PlanError) as error:
                raise InputError(f"The method {text!r} cannot be planned for this model: {error}") from error
        columns += [Column(path.stem, plan, plan.num_steps) for path, plan in self.plans]
        columns += [Column(f"no cache, {steps} steps", None, steps) for steps in self.fewer]
        if self.reference is not None:
            columns.append(Column(f"reference, {self.reference} steps", None, self.reference, is_timed=False))
        _check_names(column.slug for column in columns)
        return tuple(columns)


def _name(text: str, method: Method) -> str:
    """The words of a method as they were typed; the name of the method for a recipe in braces."""
    return method.name if text.strip().startswith("{") else " ".join(text.split())


def _check_names(slugs: Iterable[str]) -> None:
    seen: set[str] = set()
    for slug in slugs:
        if slug in seen:
            raise InputError(f"Two columns have the name {slug!r}: rename a plan file, or leave one of them out.")
        seen.add(slug)
