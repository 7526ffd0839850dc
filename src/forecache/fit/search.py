"""Search: the pattern that samples best by a proxy, among those that constraints allow (ProCache, arXiv 2512.17298)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from forecache import distributed
from forecache.distributed import World
from forecache.errors import InputError, SearchFileError
from forecache.fit import search_file
from forecache.fit.scores import Context, Score
from forecache.fit.search_file import Candidate, Settings
from forecache.io.text import dtype_name
from forecache.methods.explicit import explicit
from forecache.models.find import find, grid
from forecache.parts.grid import Grid
from forecache.parts.identity import is_same
from forecache.parts.patterns import Constraints, computed
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling.sources import (
    Condition,
    OnStep,
    Sampling,
    Source,
    as_source,
    call_inputs,
    check_conditions,
    in_batches,
)


@dataclass(frozen=True)
class SearchResult:
    """What a search found. ranked: the candidates, best first. plan: that of the best one; its provenance says how it
    was found. score: the proxy. size: patterns that the constraints allow.
    """

    ranked: tuple[Candidate, ...]
    plan: Plan
    score: Score
    size: int

    @property
    def exhaustive(self) -> bool:
        """Whether every pattern was a candidate."""
        return len(self.ranked) == self.size

    def show(self, most: int = 20) -> str:
        """The best candidates as text, one line each."""
        title = f"{len(self.ranked)} of {self.size:,} patterns by {self.score.name}, {self.score.better} is better"
        lines = [
            f"{place:>3}  {each.pattern}  {each.score:#.4g}  {each.fewer_macs}".rstrip()
            for place, each in enumerate(self.ranked[:most], 1)
        ]
        rest = len(self.ranked) - most
        return "\n".join([title, *lines, *([f"     and {rest} more"] if rest > 0 else [])])


def search(
    target: Any,
    constraints: Constraints,
    conditions: Sequence[Condition],
    *,
    score: Score,
    method: Callable[[Method], Method] = lambda base: base,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 32,
    candidates: int = 100,
    sampling_seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
    on_candidate: Callable[[Candidate], None] | None = None,
) -> SearchResult:
    """The pattern whose samples score best, and its plan (ProCache, arXiv 2512.17298).

    target: a DiTPipeline, the bundled digits, or any `sources.Source`. constraints: the space, `patterns.Constraints`.
    conditions: class labels or texts, one sample each; every pattern starts from the same noise. score: one of
    `scores`, or a `scores.Score` of your own. method: what is made of the pattern, which computes its steps and reuses
    in between:
    ``lambda base: taylorseer(base, 1)`` searches for the best pattern under a Taylor forecast.

    candidates: a space of at most so many patterns is enumerated; of a larger one so many are drawn by stick-breaking
    with ``sampling_seed`` (the paper draws 5). on_start: called with the number of model calls to come, on_step after
    each, on_candidate with each candidate that was scored.

    path: a file, written after every candidate; if there is one already, of the same search, it is continued, with
    other ``candidates`` or another ``sampling_seed`` as well. Under torchrun or ``accelerate launch`` the processes
    share the candidates and all give the same result. Raises SearchFileError if ``path`` holds another search,
    InputError for a score that is not a finite number.
    """
    source = as_source(target)
    labels = check_conditions(source, conditions)
    if not labels or batch < 1 or candidates < 1:
        raise InputError(
            "A search needs at least one condition, a batch of at least 1 and at least 1 candidate; there are "
            f"{len(labels)} conditions, batch={batch} and candidates={candidates}."
        )
    chosen = constraints.choose(candidates, sampling_seed)
    run = _Run(
        source, constraints, score, method, Sampling(constraints.num_steps, float(guidance), seed), labels, batch
    )
    kept = _Kept(Path(path) if path is not None else None, run.settings(), constraints)
    run.plan(chosen[0])  # a method that cannot be planned is refused before anything is sampled
    run.finish(kept, chosen, on_start, on_step, on_candidate)
    ranked = _rank([kept.scored[pattern] for pattern in chosen], score)
    plan = run.plan(ranked[0].pattern)
    how = _provenance(ranked, constraints, score, kept.settings, sampling_seed)
    return SearchResult(ranked, replace(plan, provenance={**plan.provenance, **how}), score, constraints.count())


def _rank(found: Sequence[Candidate], score: Score) -> tuple[Candidate, ...]:
    sign = -1 if score.better == "higher" else 1
    return tuple(sorted(found, key=lambda each: sign * each.score))


def _provenance(
    ranked: Sequence[Candidate], constraints: Constraints, score: Score, settings: Settings, sampling_seed: int
) -> dict[str, str]:
    """How the first of the candidates was found, for its plan."""
    size, count = constraints.count(), len(ranked)
    order = "never growing" if constraints.monotone else "in any order"
    drawn = f"best of {count} of {size} patterns, drawn by stick-breaking with seed {sampling_seed}"
    labels = settings.conditions
    runner_up = {"runner_up": f"{ranked[1].pattern} = {ranked[1].score:.6g}"} if count > 1 else {}
    return {
        "search": drawn if count < size else f"best of all {size} patterns",
        "constraints": f"{constraints.num_steps} steps, {constraints.budget} computed, {constraints.v_min} to "
        f"{constraints.v_max} reused after each, {order}",
        "score": f"{score.name} = {ranked[0].score:.6g}, {score.better} is better",
        **runner_up,
        "samples": f"{len(labels)} of {len(set(labels))} classes, guidance {settings.guidance:g}, "
        f"seed {settings.seed}, batch {settings.batch}, {settings.dtype}",
    }


class _Kept:
    """The candidates that were scored so far, in memory and in the file of the search."""

    def __init__(self, path: Path | None, settings: Settings, constraints: Constraints) -> None:
        self.settings = settings
        self.scored: dict[str, Candidate] = {}
        self._path = path
        if path is not None and path.exists():
            found, candidates = search_file.read(path)
            differ = found.differences(settings)
            if not is_same(found.fingerprint, settings.fingerprint):
                differ.append("fingerprint")
            if differ:
                raise SearchFileError(
                    f"{path} holds another search ({', '.join(differ)} differ): write to another file, or delete it "
                    "first."
                )
            if strange := [each.pattern for each in candidates if not constraints.allows(each.pattern)]:
                raise SearchFileError(f"{path} scores {strange[0]}, which its own constraints do not allow: delete it.")
            self.scored = {each.pattern: each for each in candidates}

    def share(self, new: Candidate | None, world: World) -> list[Candidate]:
        """What every process has scored in this round is known to all, and written by the first."""
        gathered: list[Candidate | None] = [new] * world.size
        if world.size > 1:
            dist.all_gather_object(gathered, new)
        found = [each for each in gathered if each is not None]
        self.scored |= {each.pattern: each for each in found}
        if self._path is not None and world.leads:
            search_file.write(self._path, self.settings, self.scored.values())
        return found


@dataclass(frozen=True)
class _Run:
    """How patterns are sampled with and scored."""

    source: Source
    constraints: Constraints
    score: Score
    method: Callable[[Method], Method]
    how: Sampling
    labels: tuple[Condition, ...]
    batch: int

    def plan(self, pattern: str) -> Plan:
        return self.method(explicit(compute=computed(pattern))).plan(self._grid())

    def _grid(self) -> Grid:
        return grid(self.source.target, self.constraints.num_steps)

    def settings(self) -> Settings:
        grid, space, how = self._grid(), self.constraints, self.how
        dtype = dtype_name(next(find(self.source.target).parameters()).dtype)
        method = self.method(explicit(compute=[0])).name
        return Settings(
            *(grid.model, grid.fingerprint, grid.scheduler, dtype),
            *(space.num_steps, space.budget, space.v_min, space.v_max, space.monotone),
            *(method, self.score.name, self.score.better),
            *(how.guidance, how.seed, self.batch, self.labels),
        )

    def finish(
        self,
        kept: _Kept,
        chosen: Sequence[str],
        on_start: Callable[[int], None] | None,
        on_step: OnStep | None,
        on_candidate: Callable[[Candidate], None] | None,
    ) -> None:
        """Every chosen pattern is scored, the ones that are left in turn by the processes."""
        world = distributed.current()
        left = [pattern for pattern in chosen if pattern not in kept.scored]
        mine = left[world.rank :: world.size]
        rounds = math.ceil(len(left) / world.size)
        generations = len(mine) + (self.score.needs_uncached and bool(mine))
        if on_start is not None:
            on_start(generations * math.ceil(len(self.labels) / self.batch) * self.how.num_steps)
        uncached = self._sample(on_step) if self.score.needs_uncached and mine else None
        context = Context(self.labels, uncached)
        for pattern in [*mine, *[None] * (rounds - len(mine))]:
            new = self._candidate(pattern, context, on_step) if pattern is not None else None
            for each in kept.share(new, world):
                if on_candidate is not None:
                    on_candidate(each)
        world.wait()  # a search that goes on from the file finds all of it

    def _candidate(self, pattern: str, context: Context, on_step: OnStep | None) -> Candidate:
        plan = self.plan(pattern)
        with apply(self.source.target, plan):
            images = self._sample(on_step)
        value = float(self.score.of(images, context))
        if not math.isfinite(value):
            cause = "the score" if bool(images.isfinite().all()) else "the images, which are not finite themselves"
            raise InputError(
                f"{self.score.name} of the pattern {pattern} is {value}, which cannot be ranked: see {cause}."
            )
        return Candidate(pattern, value, self._macs_ratio(plan))

    def _macs_ratio(self, plan: Plan) -> float | None:
        try:
            pair = self.how.guidance > 1
            return plan.cost(self.source.target, guidance=pair, inputs=call_inputs(self.source, 1 + pair)).speedup
        except InputError:  # a family that is not known: the inputs of a call are not known either
            return None

    def _sample(self, on_step: OnStep | None) -> Tensor:
        return in_batches(self.source, self.labels, self.how, self.batch, on_step)
