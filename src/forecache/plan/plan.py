"""Method -> plan: a method fills the grid, and what it filled in is data that runs without the method's code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from forecache.errors import InputError, PlanError, PlanFileError
from forecache.io import files
from forecache.models.examples import Size
from forecache.models.find import find, layout_for, measure, standing_for_all
from forecache.parts import patterns
from forecache.parts.bounds import Decision
from forecache.parts.grid import Cell, Grid, check_reads
from forecache.plan import constants as constants_module
from forecache.plan import file as file_module
from forecache.plan import hub, online, slots
from forecache.plan.constants import Constants
from forecache.plan.cost import Cost, count_request, macs
from forecache.plan.looks import Columns, Look, expanded
from forecache.plan.online import Online
from forecache.plan.ops import Op
from forecache.plan.recipe import Recipe
from forecache.plan.sampler import Sampler


@dataclass(frozen=True, repr=False)
class Plan:
    """A filled grid: for every site and step, whether it is computed or from which earlier steps it is estimated.

    grid: steps and sites
    rows: one tuple of cells per site, one cell per step
    provenance: origin of the plan, names to strings
    constants: the tensors that corrected cells name
    recipe: the expression of the method that made exactly these rows, as data (see `forecache.methods.build`); None
        for a plan whose method was composed by hand, that was tuned, or that was edited: `dataclasses.replace` drops it
    sampler: the scheduler that `forecache.apply` puts in the place of the pipeline's own for as long as the plan is
        applied; None, the default, leaves the pipeline's own
    online: what decides about undecided cells while the plan runs, and how skipped ones are estimated; None for a plan
        whose cells are all known. Where there is such a rule and no undecided cell, the plan is that of a run that was
        decided, and repeats it bit for bit
    looks: the computed steps at which the sample is corrected in hindsight, in order; () by default
    """

    grid: Grid
    rows: tuple[tuple[Cell, ...], ...]
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    constants: Constants = field(default_factory=Constants)
    recipe: Recipe | None = field(default=None, init=False, hash=False)
    sampler: Sampler | None = None
    online: Online | None = None
    looks: tuple[Look, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for pair in self.provenance.items() for text in pair):
            raise PlanError(f"Provenance maps names to strings, so that a file can keep it; it is {self.provenance!r}.")
        if len(self.rows) != len(self.grid.sites) or {len(row) for row in self.rows} != {self.grid.num_steps}:
            raise PlanError(
                f"A plan needs one row per site with one cell per step: {len(self.grid.sites)} rows of "
                f"{self.grid.num_steps}; it has {len(self.rows)} of {sorted({len(row) for row in self.rows})[:4]}."
            )
        for row in set(self.rows):
            for step, cell in enumerate(row):
                if cell.undecided:
                    if cell.reads or self.online is None:
                        raise PlanError(
                            f"Step {step} is undecided, and nothing decides: give Plan(online=...), or take the plan "
                            "of a method such as easycache."
                        )
                elif not cell.computed:
                    check_reads(cell.reads, step)
                elif cell.constants or cell.tokens is not None:
                    raise PlanError(f"Step {step} is computed, so it cannot have a gain, a shift or chosen tokens.")
        if self.online is not None:
            self.online.check(self.rows)
        self._check_tokens()
        self._check_looks()
        cells = (*self.rows, *(look.cells for look in self.looks))
        named = {name for row in cells for cell in row for name in cell.constants}
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

    def _check_looks(self) -> None:
        """Looks are of computed steps, in order, and what is decided while a plan runs has none."""
        if not self.looks:
            return
        steps = [look.step for look in self.looks]
        if self.online is not None or steps != sorted(set(steps)):
            raise PlanError(f"Looks are in order of their steps, and of plans that decide nothing; not {steps}.")
        for look in self.looks:
            look.check(self.rows)

    def with_recipe(self, recipe: Recipe | None, provenance: Mapping[str, str] | None = None) -> Plan:
        """This plan with the recipe of the method that made it, and with more provenance."""
        plan = replace(self, provenance={**self.provenance, **(provenance or {})})
        object.__setattr__(plan, "recipe", recipe)
        return plan

    def __repr__(self) -> str:
        sites = self.grid.size
        model = f" of {self.grid.model}" if self.grid.model else ""
        return f"<Plan {self.provenance.get('method', '')}: {sites}{model}, {self.computed_share:.1%} computed>"

    @property
    def num_steps(self) -> int:
        """Model calls in the run."""
        return self.grid.num_steps

    @property
    def is_undecided(self) -> bool:
        """Whether something is decided while the plan runs."""
        return any(cell.undecided for row in self.rows for cell in row)

    @property
    def computed_share(self) -> float:
        """Share of the cells that are computed as a whole, 0 to 1; the papers' caching level is one minus this.

        Of a plan with undecided cells it is the least share.
        """
        if self.online is not None and self.is_undecided:
            least = self.online.bounds.run(self.num_steps, online.fixed_steps(self.rows), eager=False)
            return replace(self, rows=self.decided_rows(least)).computed_share
        cells = [cell for row in self.rows for cell in row]
        return sum(cell.computed for cell in cells) / len(cells)

    def decided_rows(self, decisions: Sequence[Decision]) -> tuple[tuple[Cell, ...], ...]:
        """The rows with these decisions about the first steps in the place of undecided cells."""
        if self.online is None:
            return self.rows
        return online.decided_rows(self.grid.sites, self.rows, self.online.forecast, decisions)

    def picture(self) -> str:
        """The distinct rows as lines of signs, the most frequent first."""
        return patterns.distinct(map(patterns.line, self.rows))

    def show(self) -> str:
        """The whole plan as text: one line a site, one sign a step."""
        return self._show([site.name for site in self.grid.sites], map(patterns.line, self.rows))

    def overview(self) -> str:
        """The plan as text: one line for all sites that do the same, one sign a step."""
        kinds: dict[str, Counter[str]] = {}
        for site, row in zip(self.grid.sites, self.rows, strict=True):
            kinds.setdefault(patterns.line(row), Counter())[site.kind] += 1
        names = [", ".join(f"{count} {kind}" for kind, count in counted.items()) for counted in kinds.values()]
        return self._show(names, kinds)

    def _show(self, names: Sequence[str], lines: Iterable[str]) -> str:
        width = max(map(len, names))
        share = f"{self.computed_share:.1%}"
        if self.online is not None and self.is_undecided:
            most = self.online.bounds.run(self.num_steps, online.fixed_steps(self.rows), eager=True)
            share = f"{share} to {replace(self, rows=self.decided_rows(most)).computed_share:.1%}"
        title = f"{self.provenance.get('method', 'plan')}: {self.grid.size}, {share} computed"
        lines = [f"{name:<{width}}  {line}" for name, line in zip(names, lines, strict=True)]
        signs = [*patterns.SIGNS, *([patterns.UNDECIDED] if self.is_undecided else [])]
        gate = [self.provenance["gate"]] if "gate" in self.provenance else []
        return "\n".join([title, *lines, patterns.legend(signs), *gate])

    def cost(
        self,
        model: Any,
        batch_size: int = 1,
        *,
        guidance: bool | None = None,
        inputs: Any = None,
        cache_dtype: torch.dtype | None = None,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
    ) -> Cost:
        """The cost of this plan on a model: exact, from shapes alone, on any device, ``meta`` included.

        Of a plan with undecided cells it is the cost of the run that computes most, and `Cost.least` that of the run
        that computes least; the peak memory is the largest of any run.

        model: a pipeline or a transformer; of a pipeline with two, as Wan 2.2, the first one's calls are counted
        batch_size: images in a model call
        guidance: whether each image is a guidance pair, in one call or in two; by default as the model's pipelines have
            it: not for FLUX and HunyuanVideo, whose guidance is distilled
        inputs: the arguments of one call (a tuple or a dict of tensors), which then set the batch; needed for a model
            whose class forecache does not know
        cache_dtype: as for `forecache.apply`
        height, width, frames: of what is sampled, in pixels; by default as the model's config says, else its pipeline.
            Texts have their full length.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise InputError(f"A batch is a whole number of images from 1 on; batch_size={batch_size!r} was given.")
        model = standing_for_all(model, self.grid)  # each call is of one of them
        layout = layout_for(find(model), self.grid)
        layout.check_tokens(self.rows)
        runs = self._runs()
        request = count_request([sum(rows, ()) for rows in zip(*runs, strict=True)], layout.spans)
        rows = batch_size * (2 if (layout.guided if guidance is None else guidance) else 1)
        parts = measure(model, self.grid, rows, inputs, request, _size(height, width, frames, inputs))
        sizes = parts.kept_bytes(cache_dtype)
        full = parts.fixed_macs + sum(parts.site_macs)
        costs: list[Cost] = []
        columns = Columns.of(self.num_steps, self.looks)
        for ops in runs[:2]:
            step_macs = columns.merged([macs(parts, step, layout.spans) for step in zip(*ops, strict=True)], sum)
            peaks = columns.with_outputs(slots.peak_bytes(ops, sizes, parts.site_tokens), parts.output_bytes)
            by_step = columns.merged(peaks, max)
            costs.append(
                Cost(sum(step_macs), full * self.num_steps, max(by_step), step_macs, by_step, self.constants.nbytes)
            )
        if len(runs) == 1:
            return costs[0]
        least, most = costs
        peak = max(max(slots.peak_bytes(ops, sizes, parts.site_tokens)) for ops in runs)
        return replace(most, cache_bytes=peak, least=least)

    def _runs(self) -> list[list[tuple[Op, ...]]]:
        """The operations, [site][column], of the run; of an undecided plan those of several, see `extreme_runs`."""
        if self.online is None:
            return [slots.operations(self.grid.sites, expanded(self.rows, self.looks))]
        program = online.Program(self.grid.sites, self.rows, self.online.forecast)
        if not self.is_undecided:
            return [program.operations(online.known_decisions(self.rows))]
        return [program.operations(run) for run in online.extreme_runs(self.online, self.rows)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as versioned JSON, atomically; missing folders are made.

        The tensors of corrections go to ``<name>.constants.safetensors`` beside it: keep the two files together.
        Raises PlanError for a plan that ranks tokens by a function, which no file can hold.
        """
        path, beside, tensors = Path(path), None, b""
        file = path.with_name(f"{path.stem}.constants.safetensors")
        if self.constants:
            tensors, digest = constants_module.encode(self.constants)
            beside = file_module.ConstantsFile(file.name, digest)
        known = self.grid, self.rows, dict(self.provenance), beside, self.recipe, self.sampler, self.online, self.looks
        contents = file_module.Contents(*known)
        text = file_module.encode(contents)  # before a file is written: a plan that has none leaves none
        if self.constants:
            files.write(file, tensors)
        files.write(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan file; raises PlanFileError with what is wrong and where."""
        path = Path(path)
        grid, rows, provenance, beside, recipe, sampler, deciding, looks = file_module.read(path)
        constants = constants_module.read(path.with_name(beside.file), beside.sha256) if beside else Constants()
        try:
            return cls(grid, rows, provenance, constants, sampler, deciding, looks).with_recipe(recipe)
        except PlanError as error:
            raise PlanFileError(f"{path} is not a readable plan file: {str(error)[:300]}") from error

    @classmethod
    def from_pretrained(cls, repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Plan:
        """The plan of a repository on the hub, ``owner/name``, or of a folder with a plan.json.

        Files come through huggingface_hub, with its cache, its token and its offline mode (HF_HUB_OFFLINE). Raises
        PlanFileError for one that cannot be fetched or read.
        """
        return cls.load(hub.fetched(repo, hub.downloads(repo, revision, token)))

    def push_to_hub(
        self, repo: str, *, cost: Cost | None = None, private: bool | None = None, token: str | bool | None = None
    ) -> str:
        """Upload the plan with a model card to a repository on the hub; returns the address of the commit.

        repo: ``owner/name``, created if it does not exist
        cost: of the plan, for the card
        private: visibility of a new repository; None for the account's default
        token: of the hub; None for the one that is logged in
        """
        text = "" if cost is None else str(cost)
        card = hub.card(repo, self.grid, self.computed_share, self.show(), self.provenance, text)
        return hub.push(repo, self.save, card, private, token)


def _size(height: int | None, width: int | None, frames: int | None, inputs: Any) -> Size | None:
    """The size of what is sampled; None if it is not given. Raises InputError for one that cannot be used."""
    if height is None and width is None and frames is None:
        return None
    if (height is None) != (width is None):
        raise InputError(f"Height and width go together; height={height} and width={width} were given.")
    if inputs is not None:
        raise InputError(
            "The arguments of a call, inputs=, have a size: give either these or height, width and frames."
        )
    return Size(height, width, frames)
