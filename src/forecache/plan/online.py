"""Plans that decide while they run: which tensors are kept when nobody knows yet which steps will be computed.

Every estimate is a weighted sum of computed features, as in a static plan. After a computed step, the features and
estimates that any later step may read are kept (`forecache.parts.forecasts.needed`), or fewer sums that they are made
of; a skipped step keeps nothing. What is done in a step follows from the decisions before it alone, so that a run whose
decisions are known is the same run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import cycle, product
from typing import Any

import numpy as np

from forecache.errors import PlanError
from forecache.parts.bounds import Bounds, Decision
from forecache.parts.decide import DECIDERS, Decider
from forecache.parts.forecasts import FORECASTS, Forecast, Reuse, needed
from forecache.parts.grid import Cell, Site, check_reads
from forecache.plan.ops import OUT, KeptSum, Op, Terms

Vector = tuple[float, ...]
CHANGING = 4
"""The longest gap of the runs of changing gaps among `extreme_runs`."""
NEGLIGIBLE = 1e-9
"""Weights below this share of the largest one are zero: features in float32 cannot show them."""


@dataclass(frozen=True)
class Online:
    """What decides about the undecided cells of a plan, and how those that it skips are estimated.

    decider: the rule
    bounds: what it has no choice about
    forecast: of skipped cells whose gate is open; the others are reused
    """

    decider: Decider
    bounds: Bounds
    forecast: Forecast = Reuse()  # noqa: RUF009 - it is frozen

    def check(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Raises PlanError unless the undecided cells of a plan can be decided together, step by step."""
        own = [row for row in rows if any(cell.undecided for cell in row)]
        others = [row for row in rows if not any(cell.undecided for cell in row)]
        if any(not cell.computed for row in others for cell in row) and own:
            raise PlanError(
                "A plan that decides while it runs decides about whole steps, and some sites of this one follow a "
                "fixed schedule: compute these at every step, or give them the same base."
            )
        for step, cells in enumerate(zip(*own, strict=True)):
            if len({cell.undecided for cell in cells}) > 1 or (not cells[0].undecided and not cells[0].computed):
                raise PlanError(
                    f"Step {step} is undecided at some sites and not at others: one decision is for all sites of a "
                    "step, so leave out what treats them apart."
                )
        if own:
            self.bounds.check(len(own[0]), fixed_steps(rows))


def fixed_steps(rows: Iterable[Sequence[Cell]]) -> frozenset[int]:
    """The steps at which no cell of a plan is undecided."""
    return frozenset(
        step for step, cells in enumerate(zip(*rows, strict=True)) if not any(cell.undecided for cell in cells)
    )


def known_decisions(rows: Iterable[Sequence[Cell]]) -> tuple[Decision, ...]:
    """The decisions of a plan none of whose cells is undecided."""
    return tuple(
        Decision.COMPUTE if all(cell.computed for cell in cells) else Decision.SKIP for cells in zip(*rows, strict=True)
    )


# ---- what is kept ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The tensors that a site keeps between two steps of a run.

    computed: the steps that were computed so far, newest first
    slots: the slots that are filled
    emitted: per step that a later one may read, what it emitted as weights of the slots
    """

    computed: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    emitted: tuple[tuple[int, Vector], ...] = ()


@lru_cache(maxsize=4096)
def after_computed(kept: Kept, forecast: Forecast, step: int, num_steps: int) -> tuple[Op, Kept]:
    """The operation of a computed step, and what is kept after it."""
    computed = (step, *kept.computed)
    if step + 1 == num_steps:
        return Op(frees=kept.slots), Kept(computed)
    known = {earlier: (*vector, 0.0) for earlier, vector in kept.emitted}
    known[step] = (*([0.0] * len(kept.slots)), 1.0)
    wanted = {earlier: known[earlier] for earlier in sorted({step, *needed(forecast, computed)}, reverse=True)
              if earlier in known}  # fmt: skip
    sources = (*kept.slots, OUT)
    basis = _basis(list(wanted.values()))
    stays = {column for vector in basis if (column := _unit(vector)) is not None and sources[column] != OUT}
    frees = tuple(slot for column, slot in enumerate(kept.slots) if column not in stays)
    free = iter(slot for slot in range(len(kept.slots) + len(basis) + 1) if slot in frees or slot not in kept.slots)
    slots: list[int] = []
    keeps: list[KeptSum] = []
    for vector in basis:
        column = _unit(vector)
        if column in stays:
            slots.append(sources[column])
            continue
        keeps.append(_sum(next(free), vector, sources))
        slots.append(keeps[-1].slot)
    weights = _in_basis(basis, list(wanted.values()))
    emitted = tuple(zip(wanted, weights, strict=True))
    return Op(keeps=tuple(keeps), frees=frees), Kept(computed, tuple(slots), emitted)


@lru_cache(maxsize=4096)
def after_skipped(kept: Kept, forecast: Forecast, step: int, is_open: bool, site: Site) -> tuple[Op, Kept]:
    """The operation of a skipped step, and what is kept after it, which is what was kept before."""
    reads = reads_of(forecast, step, kept.computed, is_open, site)
    known = dict(kept.emitted)
    total = np.zeros(len(kept.slots))
    for source, weight in reads.items():
        total += weight * np.asarray(known[source])
    least = NEGLIGIBLE * np.abs(total).max(initial=0)
    vector = tuple(float(weight) if abs(weight) > least else 0.0 for weight in total)
    terms: Terms = tuple((slot, weight) for slot, weight in zip(kept.slots, vector, strict=True) if weight)
    if not terms:
        raise PlanError(f"The forecast of {site.name} reads nothing at step {step}: it has no weight that is not zero.")
    return Op(terms), replace(kept, emitted=(*kept.emitted, (step, vector)))


def reads_of(forecast: Forecast, step: int, computed: Sequence[int], is_open: bool, site: Site) -> Mapping[int, float]:
    """The steps that a skipped cell reads, with their weights; computed: newest first."""
    reads = forecast.reads(step, computed, site) if is_open else {computed[0]: 1.0}
    reads = {source: weight for source, weight in reads.items() if weight != 0.0}
    check_reads(tuple(reads.items()), step)
    return reads


def _unit(vector: Vector) -> int | None:
    """The column of a vector that is one there and zero elsewhere; None for any other."""
    nonzero = [column for column, weight in enumerate(vector) if weight]
    return nonzero[0] if len(nonzero) == 1 and vector[nonzero[0]] == 1.0 else None


def _sum(slot: int, vector: Vector, sources: Sequence[int]) -> KeptSum:
    """A vector as a sum to keep: its largest weight's tensor, and multiples of others, itself among them."""
    base = max(range(len(vector)), key=lambda column: (vector[column] == 1.0, abs(vector[column])))
    rest = [(sources[column], weight - (column == base)) for column, weight in enumerate(vector) if weight]
    return KeptSum(slot, sources[base], tuple((source, weight) for source, weight in rest if weight))


def _basis(vectors: Sequence[Vector]) -> list[Vector]:
    """Vectors of which all others are sums: tensors that there are come first, then the others in their order."""
    ordered = sorted(dict.fromkeys(vectors), key=lambda vector: _unit(vector) is None)
    basis: list[Vector] = []
    for vector in ordered:
        if not basis or _missed(basis, vector) > NEGLIGIBLE * max(1.0, *map(abs, vector)):
            basis.append(vector)
    return sorted(basis, key=vectors.index)


def _missed(basis: Sequence[Vector], vector: Vector) -> float:
    """The largest difference of a vector from the nearest sum of others."""
    matrix = np.asarray(basis, dtype=np.float64).T
    own = np.asarray(vector, dtype=np.float64)
    weights = np.linalg.lstsq(matrix, own, rcond=None)[0]
    return float(np.abs(matrix @ weights - own).max())


def _in_basis(basis: Sequence[Vector], vectors: Sequence[Vector]) -> list[Vector]:
    """Vectors as weights of a basis, exactly 1 for its own."""
    matrix = np.asarray(basis, dtype=np.float64).T
    rows: list[Vector] = []
    for vector in vectors:
        if vector in basis:
            rows.append(tuple(float(vector == other) for other in basis))
            continue
        weights = np.linalg.lstsq(matrix, np.asarray(vector, dtype=np.float64), rcond=None)[0]
        least = NEGLIGIBLE * np.abs(weights).max(initial=0)
        rows.append(tuple(float(weight) if abs(weight) > least else 0.0 for weight in weights))
    return rows


# ---- whole runs ------------------------------------------------------------------------------------------------------


class Program:
    """The operations of a plan that decides while it runs, step by step; sites that do the same share them.

    sites, rows: of the plan
    forecast: of its skipped cells
    """

    def __init__(self, sites: Sequence[Site], rows: Sequence[tuple[Cell, ...]], forecast: Forecast) -> None:
        self.num_steps = len(rows[0])
        self._forecast = forecast
        is_known = type(forecast) in FORECASTS.values()
        keys = [
            (tuple(cell.is_open for cell in row), None if is_known else site)
            if not all(cell.computed for cell in row)
            else None
            for site, row in zip(sites, rows, strict=True)
        ]
        self._kinds = [key for key in dict.fromkeys(keys) if key is not None]
        self._of_site = [None if key is None else self._kinds.index(key) for key in keys]
        first = dict(reversed(list(zip(keys, sites, strict=True))))
        self._sites = [first[key] for key in self._kinds]

    @property
    def start(self) -> tuple[Kept, ...]:
        """What is kept before the first step, per kind of site."""
        return tuple(Kept() for _ in self._kinds)

    def step(self, kept: tuple[Kept, ...], number: int, decision: Decision) -> tuple[tuple[Op, ...], tuple[Kept, ...]]:
        """The operations of a step, one a kind of site, and what is kept after it."""
        made = [
            after_computed(own, self._forecast, number, self.num_steps)
            if decision is Decision.COMPUTE
            else after_skipped(own, self._forecast, number, kind[0][number], site)
            for own, kind, site in zip(kept, self._kinds, self._sites, strict=True)
        ]
        return tuple(op for op, _ in made), tuple(after for _, after in made)

    def of_sites(self, ops: Sequence[Op]) -> tuple[Op, ...]:
        """The operations of a step, one a site; sites that are always computed keep nothing."""
        return tuple(Op() if kind is None else ops[kind] for kind in self._of_site)

    def operations(self, decisions: Iterable[Decision]) -> list[tuple[Op, ...]]:
        """The operations of a run, or of its beginning, [site][step]."""
        kept, steps = self.start, []
        for number, decision in enumerate(decisions):
            ops, kept = self.step(kept, number, decision)
            steps.append(self.of_sites(ops))
        return [tuple(ops) for ops in zip(*steps, strict=True)]


def decided_rows(
    sites: Sequence[Site], rows: Sequence[tuple[Cell, ...]], forecast: Forecast, decisions: Sequence[Decision]
) -> tuple[tuple[Cell, ...], ...]:
    """The rows of a plan with these decisions in the place of its undecided cells; the steps after them stay."""
    return tuple(
        row if all(cell.computed for cell in row) else _decided_row(site, row, forecast, decisions)
        for site, row in zip(sites, rows, strict=True)
    )


def _decided_row(
    site: Site, row: tuple[Cell, ...], forecast: Forecast, decisions: Sequence[Decision]
) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    computed: list[int] = []
    for step, decision in enumerate(decisions):
        if decision is Decision.COMPUTE:
            computed.insert(0, step)
            cells.append(Cell())
            continue
        reads: dict[int, float] = {}
        for source, weight in reads_of(forecast, step, computed, row[step].is_open, site).items():
            origin = cells[source].reads[0][0] if cells[source].sign == "." else source
            reads[origin] = reads.get(origin, 0.0) + weight
        pairs = tuple((source, weight) for source, weight in reads.items() if weight != 0.0)
        cells.append(Cell(pairs, is_open=row[step].is_open))
    return (*cells, *row[len(cells) :])


def extreme_runs(online: Online, rows: Sequence[Sequence[Cell]]) -> list[tuple[Decision, ...]]:
    """The runs that compute least and most, then some of equal and of changing gaps, which keep as much as any run."""
    num_steps, fixed = len(rows[0]), fixed_steps(rows)
    least = online.bounds.run(num_steps, fixed, eager=False)
    most = online.bounds.run(num_steps, fixed, eager=True)
    longest = num_steps - 1 if online.bounds.max_gap is None else min(online.bounds.max_gap, num_steps - 1)
    short = range(min(longest, CHANGING) + 1)
    cycles = {(longest,), *product(short, repeat=1), *product(short, repeat=2), *product(short, repeat=3)}
    return [least, most, *dict.fromkeys(_in_cycles(gaps, num_steps, fixed) for gaps in sorted(cycles))]


def _in_cycles(gaps: Sequence[int], num_steps: int, fixed: Collection[int]) -> tuple[Decision, ...]:
    """A run whose gaps have these lengths in turn."""
    decisions: list[Decision] = []
    for gap in cycle(gaps):
        decisions += [Decision.COMPUTE, *[Decision.SKIP] * gap]
        if len(decisions) >= num_steps:
            break
    return tuple(Decision.COMPUTE if step in fixed else decisions[step] for step in range(num_steps))


# ---- as data ---------------------------------------------------------------------------------------------------------


def encode(online: Online) -> dict[str, Any]:
    """What decides as data: names and numbers. Raises PlanError for rules of the user's own."""
    return {
        "decider": _encode(online.decider, DECIDERS, "decider"),
        "bounds": {field.name: getattr(online.bounds, field.name) for field in fields(Bounds)},
        "forecast": _encode(online.forecast, FORECASTS, "forecast"),
    }


def decode(document: Any) -> Online:
    """What decides, from data; ValueError or PlanError with a sentence for what is no such data."""
    if not isinstance(document, Mapping) or set(document) != {"decider", "bounds", "forecast"}:
        raise ValueError("online must have a decider, bounds and a forecast")
    bounds = document["bounds"]
    names = {field.name for field in fields(Bounds)}
    if not isinstance(bounds, Mapping) or set(bounds) != names:
        raise ValueError(f"the bounds of a decider are {', '.join(sorted(names))}")
    return Online(
        _decode(document["decider"], DECIDERS, "decider"),
        Bounds(**bounds),
        _decode(document["forecast"], FORECASTS, "forecast"),
    )


def _encode(part: Any, known: Mapping[str, type], what: str) -> dict[str, Any]:
    name = next((name for name, kind in known.items() if type(part) is kind), None)
    if name is None:
        raise PlanError(
            f"This plan cannot be saved: its {what}, {part!r}, is none of {', '.join(known)}. Use the plan where it "
            "was made, or apply the method itself."
        )
    values = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    return {"name": name} | {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _decode(document: Any, known: Mapping[str, type[Any]], what: str) -> Any:
    if not isinstance(document, Mapping) or not isinstance(document.get("name"), str) or document["name"] not in known:
        raise ValueError(f"a {what} is named one of {', '.join(known)}")
    kind = known[document["name"]]
    own = {field.name: field for field in fields(kind) if field.init}
    values = {key: value for key, value in document.items() if key != "name"}
    if set(values) != set(own):
        raise ValueError(f"the {what} {document['name']} has the fields {', '.join(own) or '(none)'}")
    return kind(**{key: _checked(key, value, str(own[key].type)) for key, value in values.items()})


def _checked(name: str, value: Any, kind: str) -> Any:
    """A value of a field as its annotation says."""
    if "tuple[" in kind:
        if not isinstance(value, list) or not all(type(entry) in (int, float) for entry in value):
            raise ValueError(f"{name} must list numbers")
        return tuple(map(float, value))
    known: Mapping[str, Collection[type]] = {"int": (int,), "bool": (bool,)}
    allowed = (int, float) if "float" in kind else known.get(kind, (str,))
    if type(value) not in allowed:
        raise ValueError(f"{name} must be of type {kind}")
    return value
