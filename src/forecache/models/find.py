"""The transformer of a pipeline, and the layout of a model: its sites and how each is computed.

find(pipe).model                    the transformer of a pipeline, or the module itself
layout(model)                       the sites of a known family, or of modules that match name patterns
measure(model, sites, batch)        MACs and bytes of every site, from shapes alone
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from forecache.errors import ModelError, PlanMismatchError, SiteError
from forecache.models import levels, modules
from forecache.models.chain import chain_of
from forecache.models.counting import CallCost, CountRequest, count
from forecache.models.examples import Size
from forecache.models.families import original
from forecache.models.family import Family
from forecache.models.fingerprint import describe_scheduler, fingerprint
from forecache.models.layout import Layout, Level
from forecache.models.levels import AskedSites
from forecache.models.registry import family_of
from forecache.models.span import Of
from forecache.parts.grid import Grid, Site


def find(target: Any) -> nn.Module:
    """The transformer of a diffusers pipeline, or the module itself, without torch.compile's wrapper."""
    model = target if isinstance(target, nn.Module) else _only_transformer(target)
    if isinstance(model, nn.Module):
        return getattr(model, "_orig_mod", model)
    if getattr(target, "unet", None) is not None:
        raise ModelError(
            f"This {type(target).__name__} samples with a UNet, and forecache knows diffusion transformers: pipelines "
            "with a `transformer`, such as DiT, PixArt, SD3, FLUX, Qwen-Image or Wan."
        )
    raise ModelError(
        f"{type(target).__name__} is neither a torch module nor a pipeline with a `transformer`: "
        "pass the diffusion transformer itself."
    )


def _only_transformer(pipe: Any) -> Any:
    """The transformer of a pipeline that has one."""
    models = transformers(pipe)
    if len(models) > 1:
        raise ModelError(_which_of_two(pipe))
    return models[0] if models else None


TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer")
"""The attributes of pipelines that hold their transformers."""


def transformers(pipe: Any) -> list[Any]:
    """The transformers of a pipeline, in the order in which a run calls them.

    Wan 2.2 has two, one after the other, and Ideogram 4 two that are called at every step.
    """
    names = () if isinstance(pipe, nn.Module) else TRANSFORMERS
    return [model for name in names if (model := getattr(pipe, name, None)) is not None]


def standing_for_all(target: Any, grid: Grid) -> Any:
    """The first transformer of a pipeline, whose transformers all have the sites of a grid; the target if it is none.

    Raises ModelError where another of them has other sites.
    """
    models = transformers(target) or [target]
    for other in models[1:]:
        try:
            layout_for(find(other), grid)
        except PlanMismatchError as error:
            raise ModelError(_which_of_two(target)) from error
    return models[0]


def _which_of_two(pipe: Any) -> str:
    names = [name for name in TRANSFORMERS if getattr(pipe, name, None) is not None]
    return (
        f"This {type(pipe).__name__} has two transformers: name the one that is meant, pipe.{names[0]} or "
        f"pipe.{names[1]}. forecache.grid and forecache.apply take the pipeline, with one schedule for both."
    )


def optimized(target: Any) -> nn.Module | None:
    """The compiled wrapper around the transformer of ``target``; None if torch.compile was not used."""
    model = target if isinstance(target, nn.Module) else getattr(target, "transformer", None)
    return model if isinstance(model, nn.Module) and hasattr(model, "_orig_mod") else None


def _layout_of(family: Family, model: nn.Module) -> Layout:
    """The layout of a family's model; ModelError if a part of a block that the family has is not there."""
    if not family.sites:  # registered by the user, whose errors are their own
        return family.layout(model)
    try:
        return family.layout(model)
    except AttributeError as error:
        raise ModelError(
            f"A block of this {type(model).__name__} has not the parts of one of {family.name} ({error}): something "
            "has replaced it. Put the block back, patch its forward instead, or name modules as sites."
        ) from error


def at_level(model: nn.Module, asked: AskedSites) -> Layout:
    """The sites of a model as they are asked for; raises SiteError if it has none of that level."""
    if asked.level in ("blocks", "groups", "stack"):
        chain = chain_of(model, asked.blocks)
        if asked.level == "blocks":
            return levels.of_blocks(chain)
        return (
            levels.of_stack(chain, asked.of, asked.ends)
            if asked.group is None
            else levels.of_groups(chain, asked.group, asked.of)
        )
    known = layout(model, asked.patterns)
    if asked.level not in (None, known.level):
        raise SiteError(
            f"forecache knows {type(model).__name__} by {known.level}, not by {asked.level}: leave level= out, or take "
            '"blocks", "groups" or "stack".'
        )
    return known


def layout(model: nn.Module, patterns: Sequence[str] | None = None) -> Layout:
    """The sites of ``model``: those of its family, or the modules whose paths match ``patterns``.

    Raises SiteError if a pattern matches nothing, or if there is neither a known family nor a pattern.
    """
    if patterns is not None:
        return modules.matching(model, patterns)
    if (family := family_of(model)) is not None:
        return _layout_of(family, model)
    if modules.fits(model):
        return modules.matching(model, modules.DIT_PATTERNS)
    original.refuse_skips(model)
    raise SiteError(
        f"forecache knows no branches of {type(model).__name__}: name the modules to cache, "
        'for example sites=["blocks.*.attn", "blocks.*.mlp"].'
    )


def grid(
    target: Any,
    num_steps: int,
    *,
    sites: Sequence[str] | None = None,
    level: Level | None = None,
    group: int | None = None,
    of: Of = "residual",
    blocks: Sequence[str] | str | None = None,
    ends: tuple[int, int] = (0, 0),
) -> Grid:
    """The grid of a sampling run: ``num_steps`` model calls x the sites of ``target``.

    target: a pipeline or a transformer; the grid records a pipeline's scheduler
    num_steps: model calls of a run
    sites: paths of modules to cache, with ``*`` for one part of a path, such as ``["blocks.*.attn", "blocks.*.mlp"]``
    level: what sites are: "branches" of blocks; whole "blocks"; "groups" of consecutive blocks; the "stack" of all
        blocks. None, the default, is the finest of them that the model's family knows
    group: blocks of a site, for level="groups"
    of: the feature of groups and stack: what their blocks add to the streams ("residual", the default), or the
        "output" of the last one
    blocks: path, or paths in their order, of the lists of blocks, such as "transformer_blocks"; by default those that
        the model is known by, else all large lists that are found in it
    ends: numbers of first and of last blocks that are sites of their own, for level="stack": what a method computes at
        every step, such as (1, 0) for FBCache

    Raises SiteError if a pattern matches nothing, or the model is not known at this level and no pattern is given.
    """
    return grid_at(target, num_steps, AskedSites(sites, level, group, of, blocks, ends))


def grid_at(target: Any, num_steps: int, asked: AskedSites) -> Grid:
    """The grid of a sampling run with the sites that are asked for; see `grid`."""
    models = [find(transformer) for transformer in transformers(target)] or [find(target)]
    layouts = [at_level(model, asked) for model in models]
    if any(other.sites != layouts[0].sites for other in layouts):
        raise ModelError(
            f"The two transformers of this {type(target).__name__} have different sites, so that one schedule does not "
            "fit both: make a plan for each of them, and apply both."
        )
    return grid_of(target, layouts[0], num_steps)


def grid_of(target: Any, layout: Layout, num_steps: int) -> Grid:
    """The grid of a run of ``target`` with the sites of a layout of its model."""
    model = layout.model
    scheduler = describe_scheduler(getattr(target, "scheduler", None))
    return Grid(num_steps, layout.sites, describe(model, layout), fingerprint(model), scheduler)


def describe(model: nn.Module, layout: Layout) -> str:
    """The model's class, for sites of modules or of several blocks with the number of modules of every kind."""
    name = type(model).__name__
    if layout.lists:
        return f"{name} ({layout.lists})"
    if layout.level != "modules":
        return name
    return f"{name} ({modules.census(model, layout.sites)})"


def layout_for(model: nn.Module, grid: Grid) -> Layout:
    """The layout of ``model`` that has exactly the sites of a plan's grid; raises PlanMismatchError if none has."""
    wanted = grid.sites
    family = family_of(model)
    are_modules = all(modules.has(model, site.name) for site in wanted)
    try:
        if family is not None and (known := _layout_of(family, model)).sites == wanted:
            return known
    except ModelError:  # something has replaced a block, and modules may be named
        if not are_modules:
            raise
    if are_modules and _as_deep(model, grid):
        return modules.named(model, wanted)
    if levels.level_of(wanted) is not None and (by_blocks := _by_blocks(model, grid)) is not None:
        return by_blocks
    try:
        present = layout(model).sites
    except SiteError:
        present = ()
    raise PlanMismatchError(
        f"The plan is made for {len(wanted)} sites ({wanted[0].name} to {wanted[-1].name}), but "
        f"{type(model).__name__} has {_describe(present)}: make a plan for this model, on forecache.grid(model, "
        f"num_steps). This one was made on {grid.model or 'an unnamed model'}."
    )


def _as_deep(model: nn.Module, grid: Grid) -> bool:
    """Whether the model has as many modules of the sites' kinds as the one that the plan was made for."""
    _, counted, census = grid.model.partition(" (")
    if counted:
        return census == modules.census(model, grid.sites) + ")"
    return not modules.fits(model) or modules.matching(model, modules.DIT_PATTERNS).sites == grid.sites


def _by_blocks(model: nn.Module, grid: Grid) -> Layout | None:
    """The layout of a model whose sites are blocks, or several; None if it has not the blocks of the plan's model."""
    census = grid.model.partition(" (")[2].removesuffix(")")
    lists = [part.rpartition(" x ")[0] for part in census.split(", ")] if census else None
    for paths in (None, lists) if lists else (None,):
        try:
            by_blocks = levels.at_depths(chain_of(model, paths), grid.sites)
        except SiteError:  # it has no such lists
            continue
        if by_blocks is not None and by_blocks.sites == grid.sites and by_blocks.lists == census:
            return by_blocks
    return None


def _describe(sites: Sequence[Site]) -> str:
    return f"{len(sites)} ({sites[0].name} to {sites[-1].name})" if sites else "no sites of these names"


def measure(
    target: Any,
    grid: Grid,
    batch: int,
    inputs: Any = None,
    request: CountRequest = CountRequest(),  # noqa: B008 - it is frozen
    size: Size | None = None,
) -> CallCost:
    """MACs and feature bytes of every site, and MACs of the rest, of one model call, from shapes alone."""
    model = find(target)
    layout_for(model, grid)  # so that an error names the user's model and not its twin
    return count(model, lambda twin: layout_for(twin, grid), batch, inputs, request, size)
