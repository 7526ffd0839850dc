"""Search for the pattern that scores best among those that constraints allow (ProCache, arXiv 2512.17298)."""

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
from forecache.models.find import find, grid_at
from forecache.models.layout import Level
from forecache.models.levels import AskedSites
from forecache.models.span import Of
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
    """The result of a search.

    ranked: the candidates, best first.
    plan: of the best candidate; its provenance describes the search.
    score: what the candidates are ranked by.
    size: number of patterns that the constraints allow.
    """

    ranked: tuple[Candidate, ...]
    plan: Plan
    score: Score
    size: int

    @property
    def exhaustive(self) -> bool:
        """Whether every allowed pattern was a candidate."""
        return len(self.ranked) == self.size

    def show(self, most: int = 20) -> str:
        """The best candidates as text, a line for each."""
        title = f"{len(self.ranked)} of {self.size:,} patterns by {self.score.name}, {self.score.better} is better"
        lines = [
            f"{place:>3}  {candidate.pattern}  {candidate.score:#.4g}  {candidate.fewer_macs}".rstrip()
            for place, candidate in enumerate(self.ranked[:most], 1)
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
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    path: str | os.PathLike[str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
    on_candidate: Callable[[Candidate], None] | None = None,
) -> SearchResult:
    """The pattern whose samples score best, and its plan (ProCache, arXiv 2512.17298).

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.
    constraints: the allowed patterns, `patterns.Constraints`.
    conditions: class labels or texts, one for each sample; every pattern starts from the same noise.
    score: one of `scores`, or a `scores.Score` of your own.
    method: makes the method of a pattern from a base that computes its steps and reuses in between;
        ``lambda base: taylorseer(base, 1)`` searches for the best pattern under a Taylor forecast.
    guidance: classifier-free guidance scale.
    seed: of the noise.
    batch: samples of a generation.
    candidates: if the constraints allow at most this number of patterns, all are scored; otherwise as many are drawn by
        stick-breaking (the paper draws 5).
    sampling_seed: of this draw.
    level, group, of, blocks: what sites are, as `forecache.grid` takes them.
    path: a file, written after every candidate. A file of the same search is continued, also with other ``candidates``
        or another ``sampling_seed``.
    on_start: called with the number of model calls to come. on_step: called after each. on_candidate: called with each
        candidate that was scored.

    Under torchrun or ``accelerate launch`` the processes share the candidates, and all return the same. Raises
    SearchFileError if ``path`` holds another search, InputError for a score that is not a finite number.
    """
    source = as_source(target)
    labels = check_conditions(source, conditions)
    if not labels or batch < 1 or candidates < 1:
        raise InputError(
            "A search needs at least one condition, a batch of at least 1 and at least 1 candidate; there are "
            f"{len(labels)} conditions, batch={batch} and candidates={candidates}."
        )
    patterns = constraints.choose(candidates, sampling_seed)
    how = Sampling(constraints.num_steps, float(guidance), seed)
    asked = AskedSites(None, level, group, of, blocks)
    scorer = _Scorer(source, constraints, score, method, how, labels, batch, asked)
    scores = _Scores(Path(path) if path is not None else None, scorer.settings(), constraints)
    scorer.plan(patterns[0])  # a method that cannot be planned is refused before anything is sampled
    scorer.score_all(scores, patterns, on_start, on_step, on_candidate)
    ranked = _rank([scores.by_pattern[pattern] for pattern in patterns], score)
    plan = scorer.plan(ranked[0].pattern)
    about = _provenance(ranked, constraints, score, scores.settings, sampling_seed)
    return SearchResult(ranked, replace(plan, provenance={**plan.provenance, **about}), score, constraints.count())


def _rank(candidates: Sequence[Candidate], score: Score) -> tuple[Candidate, ...]:
    sign = -1 if score.better == "higher" else 1
    return tuple(sorted(candidates, key=lambda candidate: sign * candidate.score))


def _provenance(
    ranked: Sequence[Candidate], constraints: Constraints, score: Score, settings: Settings, sampling_seed: int
) -> dict[str, str]:
    """How the best candidate was found, for the provenance of its plan."""
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


class _Scores:
    """The candidates that were scored so far, in memory and in the file of the search.

    settings: of the search.
    by_pattern: the candidates by pattern.
    """

    def __init__(self, path: Path | None, settings: Settings, constraints: Constraints) -> None:
        self.settings = settings
        self.by_pattern: dict[str, Candidate] = {}
        self._path = path
        if path is not None and path.exists():
            theirs, candidates = search_file.read(path)
            differ = theirs.differences(settings)
            if not is_same(theirs.fingerprint, settings.fingerprint):
                differ.append("fingerprint")
            if differ:
                raise SearchFileError(
                    f"{path} holds another search ({', '.join(differ)} differ): write to another file, or delete it "
                    "first."
                )
            self.by_pattern = {candidate.pattern: candidate for candidate in candidates}
            if strange := [pattern for pattern in self.by_pattern if not constraints.allows(pattern)]:
                raise SearchFileError(f"{path} scores {strange[0]}, which its own constraints do not allow: delete it.")

    def share(self, new: Candidate | None, world: World) -> list[Candidate]:
        """The candidates that the processes scored in this round; all processes learn them, and one writes the file."""
        gathered: list[Candidate | None] = [new] * world.size
        if world.size > 1:
            dist.all_gather_object(gathered, new)
        candidates = [candidate for candidate in gathered if candidate is not None]
        self.by_pattern |= {candidate.pattern: candidate for candidate in candidates}
        if self._path is not None and world.leads:
            search_file.write(self._path, self.settings, self.by_pattern.values())
        return candidates


@dataclass(frozen=True)
class _Scorer:
    """Samples with patterns and scores them.

    source: the model.
    constraints: the allowed patterns.
    score: of a pattern's images.
    method: makes the method of a pattern.
    how: sampling steps, guidance and seed.
    labels: class labels or texts, one for each sample.
    batch: samples of a generation.
    asked: what sites are.
    """

    source: Source
    constraints: Constraints
    score: Score
    method: Callable[[Method], Method]
    how: Sampling
    labels: tuple[Condition, ...]
    batch: int
    asked: AskedSites

    def plan(self, pattern: str) -> Plan:
        """The plan of a pattern."""
        return self.method(explicit(compute=computed(pattern))).plan(self._grid())

    def _grid(self) -> Grid:
        return grid_at(self.source.target, self.constraints.num_steps, self.asked)

    def settings(self) -> Settings:
        """The settings, as the file keeps them."""
        grid, space, how = self._grid(), self.constraints, self.how
        dtype = dtype_name(next(find(self.source.target).parameters()).dtype)
        method = self.method(explicit(compute=[0])).name
        return Settings(
            *(grid.model, grid.fingerprint, grid.scheduler, dtype),
            *(space.num_steps, space.budget, space.v_min, space.v_max, space.monotone),
            *(method, self.score.name, self.score.better),
            *(how.guidance, how.seed, self.batch, self.labels, self.asked.words),
        )

    def score_all(
        self,
        scores: _Scores,
        patterns: Sequence[str],
        on_start: Callable[[int], None] | None,
        on_step: OnStep | None,
        on_candidate: Callable[[Candidate], None] | None,
    ) -> None:
        """Scores the patterns that have no score yet; the processes take turns."""
        world = distributed.current()
        left = [pattern for pattern in patterns if pattern not in scores.by_pattern]
        own = left[world.rank :: world.size]
        rounds = math.ceil(len(left) / world.size)
        generations = len(own) + (self.score.needs_uncached and bool(own))
        if on_start is not None:
            on_start(generations * math.ceil(len(self.labels) / self.batch) * self.how.num_steps)
        uncached = self._sample(on_step) if self.score.needs_uncached and own else None
        context = Context(self.labels, uncached)
        for pattern in [*own, *[None] * (rounds - len(own))]:
            new = self._candidate(pattern, context, on_step) if pattern is not None else None
            for candidate in scores.share(new, world):
                if on_candidate is not None:
                    on_candidate(candidate)
        world.wait()  # so that a search that continues from the file reads all of it

    def _candidate(self, pattern: str, context: Context, on_step: OnStep | None) -> Candidate:
        plan = self.plan(pattern)
        with apply(self.source.target, plan):
            images = self._sample(on_step)
        value = float(self.score.of(images, context))
        if not math.isfinite(value):
            cause = "the score" if bool(images.isfinite().all()) else "the images, which are not finite themselves"
            raise InputError(
                f"{self.score.name} of the pattern {pattern} is {value}, which cannot be ranked: check {cause}."
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
