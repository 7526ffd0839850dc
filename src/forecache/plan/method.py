"""A method: schedule, forecast, gate, correction and tokens, which fill a grid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from forecache._version import __version__
from forecache.errors import PlanError
from forecache.parts.bounds import Bounds
from forecache.parts.corrections import Correction
from forecache.parts.decide import Decider
from forecache.parts.forecasts import Forecast, Reuse
from forecache.parts.gates import Drawn, always
from forecache.parts.grid import Action, Cell, Gate, Grid, Schedule, Selector, Site, Tokens
from forecache.parts.hindsight import Gap, Hindsight, gaps, shares
from forecache.plan.constants import Constants
from forecache.plan.looks import Look
from forecache.plan.online import Online
from forecache.plan.plan import Plan
from forecache.plan.recipe import Recipe

Reads = dict[int, float]
"""Step -> weight of the feature that the step gave out."""


@dataclass(frozen=True, repr=False)
class Method:
    """A technique as a sentence of parts: which cells are computed, how the others are estimated, and where.

    name: the expression that made the method, kept in the plan's provenance
    schedule: (step, site, grid) -> Action
    forecast: estimates the skipped cells whose gate is open; the others reuse the last computed feature
    gate: (step, site, grid) -> whether the forecast applies; by default everywhere
    correction: calibrated gain and shift of the estimates, None for none
    tokens: (step, site, grid) -> the tokens that a partial cell computes, None without partial cells. The difference
        between computed and estimated tokens is added to every later estimate until the next full computation.
    decider: decides while the plan runs about the cells that the schedule leaves open, None where it leaves none
    bounds: what the decider has no choice about
    hindsight: how much of an error that a computed step has found is paid back, None for nothing
    recipe: the same expression as data, set by `with_recipe`; None for a method that was composed by hand.
        `dataclasses.replace` drops it, because the parts that it replaces are not the recipe's
    """

    name: str
    schedule: Schedule
    forecast: Forecast = field(default_factory=Reuse)
    gate: Gate = always
    correction: Correction | None = None
    tokens: Selector | None = None
    decider: Decider | None = None
    bounds: Bounds = Bounds()  # noqa: RUF009 - it is frozen
    hindsight: Hindsight | None = None
    recipe: Recipe | None = field(default=None, init=False, hash=False)

    def __repr__(self) -> str:
        return self.name

    def ends(self, level: str | None) -> tuple[int, int]:
        """The numbers of first and last blocks that are sites of their own beside the stack, for ``forecache.grid``."""
        if self.decider is None or level != "stack":
            return 0, 0
        return self.decider.sees.head, self.decider.sees.tail

    def with_recipe(self, name: str, recipe: Recipe | None) -> Method:
        """This method under the name and the recipe of the expression that made it."""
        method = replace(self, name=name)
        object.__setattr__(method, "recipe", recipe)
        return method

    def plan(self, grid: Grid) -> Plan:
        """The plan of this method on a grid.

        Raises PlanError for what is no grid, if a site is skipped before it was ever computed, or if the gate opens
        nowhere; StatisticsError if the correction was calibrated on another grid.
        """
        if not isinstance(grid, Grid):
            given = f"the number {grid}" if isinstance(grid, int) else f"a {type(grid).__name__}"
            raise PlanError(
                f"A method is planned on a grid of steps and sites, and {given} was given: method.plan(forecache.grid("
                "pipe, num_steps=20)). Without a plan, forecache.enable(pipe, method) plans it for every run."
            )
        opened: set[int] = set()
        constants: dict[str, Tensor] = {}
        paid = self._paid_gaps(grid)
        looks: dict[int, list[Cell]] = {gap.after: [] for gap, _ in paid}
        rows = {site: self._row(site, grid, opened, constants, looks) for site in grid.sites}
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
        online = self._online(rows.values(), grid)
        if self.tokens is not None and not any(cell.tokens for row in rows.values() for cell in row):
            raise PlanError(
                f"{self.name} says which tokens to compute, and its schedule has no partial cell: there is no run of "
                "skipped steps that is long enough, or no site of the kinds and blocks that were asked for."
            )
        provenance = {"method": self.name, "forecache": __version__}
        if isinstance(self.gate, Drawn) and (picture := self.gate.show(grid)):
            provenance["gate"] = picture
        back = tuple(_look(gap, theta, looks[gap.after]) for gap, theta in paid)
        plan = Plan(grid, tuple(rows.values()), provenance, Constants(constants), online=online, looks=back)
        return plan.with_recipe(self.recipe)

    def with_forecast(self, name: str, forecast: Forecast, gate: Gate = always) -> Method:
        """This method with a forecast; PlanError if it has one already, which would be replaced silently."""
        if not isinstance(self.forecast, Reuse):
            raise PlanError(f"{self.name} has a forecast already: {name} takes a schedule with plain reuse as base.")
        return replace(self, name=name, forecast=forecast, gate=gate)

    def _paid_gaps(self, grid: Grid) -> list[tuple[Gap, float]]:
        """The gaps whose errors are paid back, and how much of each.

        Raises PlanError for a schedule that is not the same for all sites, or that is decided while the plan runs.
        """
        if self.hindsight is None:
            return []
        actions = [{self.schedule(step, site, grid) for site in grid.sites} for step in range(grid.num_steps)]
        if self.decider is not None or any(Action.COMPUTE in kinds and len(kinds) > 1 for kinds in actions):
            raise PlanError(
                f"{self.name} does not compute all sites at the same steps, known before the run, and hindsight pays "
                "back at steps that are computed as a whole: take a base such as fora, spread or explicit."
            )
        every = gaps([kinds == {Action.COMPUTE} for kinds in actions])
        if not every and grid.num_steps > 1 and any(Action.COMPUTE not in kinds for kinds in actions):
            raise PlanError(
                f"No computed step of {self.name} follows a skipped one, so hindsight has nothing to pay back: leave "
                "it out."
            )
        thetas = self.hindsight.of_gaps(every)
        return [(gap, theta) for gap, theta in zip(every, thetas, strict=True) if theta]

    def _online(self, rows: Collection[tuple[Cell, ...]], grid: Grid) -> Online | None:
        """What decides about the undecided cells; PlanError where there is none, or nothing to decide."""
        is_open = any(cell.undecided for row in rows for cell in row)
        if self.decider is None:
            if is_open:
                raise PlanError(f"The schedule of {self.name} leaves cells open: give Method(decider=...), too.")
            return None
        if self.correction is not None or self.tokens is not None:
            what = "A calibrated correction needs" if self.correction is not None else "Partial tokens need"
            raise PlanError(
                f"{what} to know beforehand which steps are computed, and {self.name} decides while it runs: put it on "
                "a base with a fixed schedule, such as fora, or take goc, taylorseer or feedback on this one."
            )
        sees = self.decider.sees
        free = [site.depth for site, row in zip(grid.sites, rows, strict=True) if any(cell.undecided for cell in row)]
        is_over = len(self.bounds.ends(grid.num_steps)) == grid.num_steps
        if (is_open and free[0] != sees.head) or not (is_open or is_over):
            raise PlanError(
                f"{self.name} computes {sees.head} first and {sees.tail} last blocks at every step, and no site of "
                f"this grid begins behind the first {sees.head}, with blocks left to skip: take fewer, or a grid with "
                f'level="blocks", or level="stack", ends=({sees.head}, {sees.tail}).'
            )
        return Online(self.decider, self.bounds, self.forecast)

    def _check_correction(self, rows: Iterable[tuple[Cell, ...]], skipped: set[int]) -> None:
        """Raises PlanError for a correction that corrects nothing, or that lists steps which are not skipped."""
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

    def _row(
        self,
        site: Site,
        grid: Grid,
        opened: set[int],
        constants: dict[str, Tensor],
        looks: Mapping[int, list[Cell]],
    ) -> tuple[Cell, ...]:
        """The cells of a site; the estimates of computed steps that are looked back from are added to looks."""
        corrector = self.correction.corrector(site, grid) if self.correction is not None else None
        row: list[Cell] = []
        computed: list[int] = []  # newest first
        difference: Reads = {}  # since the newest computed step: outputs of partial cells less their forecasts
        for step in range(grid.num_steps):
            action = self.schedule(step, site, grid)
            if not isinstance(action, Action):
                raise PlanError(f"The schedule of {self.name} gave {action!r}; a schedule returns an Action.")
            if action is Action.DECIDE:
                is_open = self.gate(step, site, grid)
                opened.update([step] * is_open)
                row.append(Cell(undecided=True, is_open=is_open))
                continue
            if action is Action.COMPUTE:
                cell = Cell()
                if step in looks:  # as the last step of the gap would be estimated, if the gap were longer
                    is_open = self.gate(step - 1, site, grid)
                    forecast = self._forecast(step, row, computed, site) if is_open else {computed[0]: 1.0}
                    estimate = Cell(_pairs(_sum(forecast, difference)))
                    looks[step].append(estimate if corrector is None else corrector.looked_at(step, estimate))
                computed.insert(0, step)
                difference = {}
            elif not computed:
                raise PlanError(f"{self.name} skips {site.name} at step {step}, before it was ever computed.")
            else:
                if is_open := self.gate(step, site, grid):
                    opened.add(step)
                forecast = self._forecast(step, row, computed, site) if is_open else {computed[0]: 1.0}
                cell = Cell(_pairs(_sum(forecast, difference)))
                if cell.computed:
                    raise PlanError(f"The forecast of {self.name} reads nothing for {site.name} at step {step}.")
                if action is Action.PARTIAL:
                    cell = replace(cell, tokens=self._tokens(step, site, grid))
                    difference = _sum({step: 1.0}, forecast, -1.0)
            row.append(cell if corrector is None else corrector.correct(step, cell))
        if corrector is not None:
            constants.update(corrector.constants)
        return tuple(row)

    def _forecast(self, step: int, row: list[Cell], computed: list[int], site: Site) -> Reads:
        reads: Reads = {}
        for source, weight in self.forecast.reads(step, computed, site).items():
            # a reused step gave out the feature that it reused: read that one, so that nothing is kept twice
            origin = row[source].reads[0][0] if row[source].sign == "." else source
            reads[origin] = reads.get(origin, 0.0) + weight
        return reads

    def _tokens(self, step: int, site: Site, grid: Grid) -> Tokens:
        if self.tokens is None:
            raise PlanError(
                f"The schedule of {self.name} computes some tokens of {site.name} at step {step}, and the method does "
                "not say which: give Method(tokens=...), such as forecache.parts.tokens.top(0.25)."
            )
        return self.tokens(step, site, grid)


def _look(gap: Gap, theta: float, cells: Sequence[Cell]) -> Look:
    """What is paid back after a gap; cells: one a site, the estimate of the step after it."""
    points = max(sum(step in gap.before for step, _ in cell.reads) for cell in cells)
    paid = [theta * share for share in shares(gap, points)]
    return Look(gap.after, tuple(zip(gap.steps, paid, strict=True)), tuple(cells))


def _sum(reads: Reads, others: Reads, factor: float = 1.0) -> Reads:
    """The sum of weights, step by step: reads + factor * others."""
    steps = dict.fromkeys((*reads, *others))
    return {step: reads.get(step, 0.0) + factor * others.get(step, 0.0) for step in steps}


def _pairs(reads: Reads) -> tuple[tuple[int, float], ...]:
    return tuple((step, weight) for step, weight in reads.items() if weight != 0.0)
