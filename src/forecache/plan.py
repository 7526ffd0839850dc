"""Method -> plan: a method fills the grid, and what it filled in is data that runs without the method's code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache import _constants, _hub, _planfile, liveness
from forecache._constants import Constants
from forecache._core import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens, check_reads
from forecache._errors import InputError, PlanError, PlanFileError
from forecache._version import __version__
from forecache.adapters import find, layout_for, measure
from forecache.corrections import Correction
from forecache.cost import Cost, macs, special_of
from forecache.forecasts import Forecast, Reuse
from forecache.gates import Drawn, always

LEGEND = "# computed   . reused   ~ forecast   + corrected   o some tokens computed"
Reads = dict[int, float]
"""Step -> weight of what it emitted."""


@dataclass(frozen=True)
class Method:
    """A technique as a sentence of parts: which cells are computed, how the others are estimated, and where.

    name: the expression that made it, kept as the plan's provenance. schedule: (step, site, grid) -> Action. forecast:
    applies in the skipped cells that the gate is open for; elsewhere the last computed feature is reused. correction:
    what calibration adds to the estimates, if anything. tokens: (step, site, grid) -> which tokens a partial cell
    computes. What they turn out to be beside their estimates is carried along until the feature is computed again:
    under plain reuse the amended feature is the cache.
    """

    name: str
    schedule: Schedule
    forecast: Forecast = field(default_factory=Reuse)
    gate: Gate = always
    correction: Correction | None = None
    tokens: Selector | None = None

    def plan(self, grid: Grid) -> Plan:
        """The plan of this method on a grid.

        Raises PlanError if a site is skipped before it was ever computed, or if the gate opens nowhere;
        StatisticsError if the correction was calibrated on another grid.
        """
        opened: set[int] = set()
        constants: dict[str, Tensor] = {}
        rows = {site: self._row(site, grid, opened, constants) for site in grid.sites}
        skipped = {step for row in rows.values() for step, cell in enumerate(row) if not cell.computed}
        listed = getattr(self.gate, "steps", ())
        if idle := [step for step in listed if step not in opened]:
            raise PlanError(
                f"{self.name} is asked to correct steps {idle}, but its schedule computes them, or a part of every "
                f"block there (skipped: {sorted(skipped)}): list skipped steps, or choose another schedule."
            )
        if skipped and not opened:
            raise PlanError(f"The gate of {self.name} is closed in every skipped cell, so its forecast does nothing.")
        self._check_correction(rows.values(), skipped)
        if self.tokens is not None and not any(cell.tokens for row in rows.values() for cell in row):
            raise PlanError(
                f"{self.name} says which tokens to compute, and its schedule has no partial cell: there is no run of "
                "skipped steps that is long enough, or no site of the kinds and blocks that were asked for."
            )
        provenance = {"method": self.name, "forecache": __version__}
        if isinstance(self.gate, Drawn) and (picture := self.gate.show(grid)):
            provenance["gate"] = picture
        return Plan(grid, tuple(rows.values()), provenance, Constants(constants))

    def _check_correction(self, rows: Iterable[tuple[Cell, ...]], skipped: set[int]) -> None:
        """A correction that corrects nothing, or that lists steps which are not skipped, is a mistake."""
        if self.correction is None:
            return
        corrected = {step for row in rows for step, cell in enumerate(row) if cell.constants}
        if idle := [step for step in self.correction.steps if step not in corrected]:
            raise PlanError(f"{self.name} is asked to correct steps {idle}, but skips {sorted(skipped)}: list those.")
        if skipped and not corrected:
            raise PlanError(
                f"{self.name} corrects nothing: by its judgment plain reuse is closer everywhere. Use judge='all', "
                "another theta, or the base alone."
            )

    def _row(self, site: Site, grid: Grid, opened: set[int], constants: dict[str, Tensor]) -> tuple[Cell, ...]:
        walk = self.correction.walk(site, grid) if self.correction is not None else None
        row: list[Cell] = []
        computed: list[int] = []  # newest first
        found: Reads = {}  # what partial cells found since then: their output less the forecast for it
        for step in range(grid.num_steps):
            action = self.schedule(step, site, grid)
            if not isinstance(action, Action):
                raise PlanError(f"The schedule of {self.name} gave {action!r}; a schedule returns an Action.")
            if action is Action.COMPUTE:
                cell = Cell()
                computed.insert(0, step)
                found = {}
            elif not computed:
                raise PlanError(f"{self.name} skips {site.name} at step {step}, before it was ever computed.")
            else:
                if is_open := self.gate(step, site, grid):
                    opened.add(step)
                forecast = self._forecast(step, row, computed, site) if is_open else {computed[0]: 1.0}
                cell = Cell(_pairs(_sum(forecast, found)))
                if cell.computed:
                    raise PlanError(f"The forecast of {self.name} reads nothing for {site.name} at step {step}.")
                if action is Action.PARTIAL:
                    cell = replace(cell, tokens=self._chosen(step, site, grid))
                    found = _sum({step: 1.0}, forecast, -1.0)
            row.append(cell if walk is None else walk.amend(step, cell))
        if walk is not None:
            constants.update(walk.constants)
        return tuple(row)

    def _forecast(self, step: int, row: list[Cell], computed: list[int], site: Site) -> Reads:
        reads: Reads = {}
        for source, weight in self.forecast.reads(step, computed, site).items():
            # what a reused step emitted is the feature that it reused: read that one, so that nothing is kept twice
            origin = row[source].reads[0][0] if row[source].sign == "." else source
            reads[origin] = reads.get(origin, 0.0) + weight
        return reads

    def _chosen(self, step: int, site: Site, grid: Grid) -> Tokens:
        if self.tokens is None:
            raise PlanError(
                f"The schedule of {self.name} computes some tokens of {site.name} at step {step}, and the method does "
                "not say which: give Method(tokens=...), such as forecache.tokens.top(0.25)."
            )
        return self.tokens(step, site, grid)


def _sum(reads: Reads, others: Reads, factor: float = 1.0) -> Reads:
    """Weights added step by step."""
    steps = dict.fromkeys((*reads, *others))
    return {step: reads.get(step, 0.0) + factor * others.get(step, 0.0) for step in steps}


def _pairs(reads: Reads) -> tuple[tuple[int, float], ...]:
    return tuple((step, weight) for step, weight in reads.items() if weight != 0.0)


@dataclass(frozen=True)
class Plan:
    """A filled grid: for every site and step, whether it is computed or from which earlier steps it is estimated.

    grid: steps and sites. rows: one tuple of cells per site, one cell per step. provenance: where it came from.
    constants: the tensors that corrected cells name.
    """

    grid: Grid
    rows: tuple[tuple[Cell, ...], ...]
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    constants: Constants = field(default_factory=Constants)

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for pair in self.provenance.items() for text in pair):
            raise PlanError(f"Provenance maps names to strings, so that a file can keep it; it is {self.provenance!r}.")
        if len(self.rows) != len(self.grid.sites) or {len(row) for row in self.rows} != {self.grid.num_steps}:
            raise PlanError("A plan needs one row per site with one cell per step.")
        for row in set(self.rows):
            for step, cell in enumerate(row):
                if not cell.computed:
                    check_reads(cell.reads, step)
                elif cell.constants or cell.tokens is not None:
                    raise PlanError(f"Step {step} is computed, so it cannot have a gain, a shift or chosen tokens.")
        self._check_tokens()
        named = {name for row in self.rows for cell in row for name in cell.constants}
        if named != set(self.constants):
            odd = sorted(named ^ set(self.constants))
            raise PlanError(f"The cells of a plan name its constants, no more and no less; {odd[:3]} do not match.")

    def _check_tokens(self) -> None:
        """Tokens are chosen by an earlier site of the same call."""
        before: set[str] = set()
        for site, row in zip(self.grid.sites, self.rows, strict=True):
            scored = {cell.tokens.site for cell in row if cell.tokens is not None and cell.tokens.needs_site}
            if odd := scored - before:
                raise PlanError(
                    f"The tokens of {site.name} are chosen by what {odd.pop()!r} gives out, which is no site before it."
                )
            before.add(site.name)

    @property
    def num_steps(self) -> int:
        """Model calls in the run."""
        return self.grid.num_steps

    @property
    def computed_share(self) -> float:
        """Share of the cells that are computed as a whole, 0 to 1; the papers' caching level is one minus this."""
        cells = [cell for row in self.rows for cell in row]
        return sum(cell.computed for cell in cells) / len(cells)

    def picture(self) -> str:
        """The distinct rows as lines of signs, the most frequent first."""
        return "\n".join(line for line, _ in Counter(_line(row) for row in self.rows).most_common())

    def show(self) -> str:
        """The whole plan as text: one line a site, one sign a step."""
        width = max(len(site.name) for site in self.grid.sites)
        title = (
            f"{self.provenance.get('method', 'plan')}: {self.num_steps} steps x {len(self.grid.sites)} sites, "
            f"{self.computed_share:.1%} computed"
        )
        lines = [f"{site.name:<{width}}  {_line(row)}" for site, row in zip(self.grid.sites, self.rows, strict=True)]
        gate = [self.provenance["gate"]] if "gate" in self.provenance else []
        return "\n".join([title, *lines, LEGEND, *gate])

    def cost(
        self,
        model: Any,
        batch_size: int = 1,
        *,
        guidance: bool = True,
        inputs: Any = None,
        cache_dtype: torch.dtype | None = None,
    ) -> Cost:
        """What this plan costs on ``model``: exact, from shapes alone, for a model on any device, ``meta`` included.

        model: a pipeline or a transformer. batch_size: images; with ``guidance`` each is a pair of samples in one
        call. inputs: for a model without an adapter, the arguments of one call (a tuple or a dict of tensors),
        which then set the batch. cache_dtype: as for `forecache.apply`.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise InputError(f"A batch is a whole number of images from 1 on; batch_size={batch_size!r} was given.")
        layout = layout_for(find(model), self.grid)
        layout.check_tokens(self.rows)
        ops = liveness.operations(self.grid.sites, self.rows)
        special = special_of(ops, layout.spans)
        parts = measure(model, self.grid, batch_size * (2 if guidance else 1), inputs, special)
        step_macs = tuple(macs(parts, step, layout.spans) for step in zip(*ops, strict=True))
        alive = liveness.alive(ops, parts.kept_bytes(cache_dtype), parts.site_tokens)
        full = parts.fixed_macs + sum(parts.site_macs)
        return Cost(sum(step_macs), full * self.num_steps, max(alive), step_macs, alive, self.constants.nbytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as versioned JSON, atomically; folders that are missing are made.

        The tensors of corrections stand beside it, in ``<name>.constants.safetensors``: keep the two together.
        """
        path, beside = Path(path), None
        if self.constants:
            file = path.with_name(f"{path.stem}.constants.safetensors")
            beside = _planfile.Beside(file.name, _constants.write(file, self.constants))
        _planfile.write(path, _planfile.Contents(self.grid, self.rows, dict(self.provenance), beside))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file; raises PlanFileError with what is wrong and where."""
        path = Path(path)
        grid, rows, provenance, beside = _planfile.read(path)
        constants = _constants.read(path.with_name(beside.file), beside.sha256) if beside else Constants()
        try:
            return cls(grid, rows, provenance, constants)
        except PlanError as error:
            raise PlanFileError(f"{path} is not a readable plan file: {str(error)[:300]}") from error

    @classmethod
    def from_pretrained(cls, repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Plan:
        """The plan of a repository on the hub, ``owner/name``, or of a folder with a plan.json.

        Files come through huggingface_hub, with its cache, its token and its offline mode (HF_HUB_OFFLINE). Raises
        PlanFileError for one that cannot be fetched or read.
        """
        return cls.load(_hub.fetched(repo, _hub.downloads(repo, revision, token)))

    def push_to_hub(
        self, repo: str, *, cost: Cost | None = None, private: bool | None = None, token: str | bool | None = None
    ) -> str:
        """Upload the plan to a repository on the hub, which is made if need be; gives the address of the commit.

        A card with schedule, provenance and, if it is given, cost goes with it.
        """
        return _hub.push(self, repo, cost, private, token)


def _line(row: tuple[Cell, ...]) -> str:
    return "".join(cell.sign for cell in row)
