"""`forecache plan`: a plan file from a method, and `forecache methods`: the methods that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forecache as fc
from forecache.cli.levels import takes_level_options
from forecache.cli.options import Typed, takes_method_options
from forecache.cli.parameters import BUNDLED, DEFAULT_MODEL, MAX_STEPS, AsJson, names, out_file
from forecache.cli.terminal import app, emit, print_table, results_table, say
from forecache.io.text import MIB, mib
from forecache.methods import flags, registry
from forecache.models.find import layout_for, transformers
from forecache.models.layout import Level
from forecache.models.levels import FINEST, AskedSites
from forecache.plan.by_level import LevelCost, costs_by_level, plan_within
from forecache.sampling import sources
from forecache.zoo import SHAPES, models, shaped
from forecache.zoo.open import check_name, open_source, open_structure

UNKNOWN_COST = (
    "The cost is not known: forecache does not know the arguments of this model. In Python, give those of one call: "
    "plan.cost(model, inputs={...})."
)


@app.command("plan")
@takes_method_options
@takes_level_options
def plan_command(
    *,
    method: Annotated[str, typer.Argument(help="The method, on --base.")],
    typed: Typed,
    model: Annotated[
        str,
        typer.Option(
            help=f"{BUNDLED}, {', '.join(SHAPES)} (shapes alone), a folder, a repository.",
            autocompletion=names(*models(), *SHAPES),
        ),
    ] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Model calls of a run.")] = 20,
    sites: AskedSites,
    batch: Annotated[int, typer.Option(min=1, max=2**16, help="Images in a model call, for the cost.")] = 1,
    height: Annotated[int | None, typer.Option(min=1, help="Height in pixels, for the cost [the model's].")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Width in pixels, for the cost [the model's].")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video, for the cost [the model's].")] = None,
    max_cache_mib: Annotated[
        float | None, typer.Option(min=0, help="Take the finest level whose features fit into so many MiB.")
    ] = None,
    out: Annotated[Path, out_file("The plan file.")] = Path("plan.json"),
    as_json: AsJson = False,
) -> None:
    """Write a plan file: what every site of the model does in every step, and what that costs. Nothing is sampled.

    Of a pipeline the configs alone are read, and no weights. A table shows what the method costs at every level of the
    model: by branches, blocks, groups of blocks, and with the whole stack as one site.

    Example: `forecache plan goc --base fora --interval 2 --eta 0.8 --steps 20 --model digits -o plan.json`

    Example: `forecache plan goc --model black-forest-labs/FLUX.1-dev --steps 28 --height 768 --width 1360 -o flux.json`

    Example: `forecache plan taylorseer --interval 3 --order 2 --model dit-xl-2 --batch 8 -o dit-xl-taylor.json`

    Example: `forecache plan taylorseer --interval 3 --model digits --level stack -o stack.json`

    Example: `forecache plan taylorseer --interval 3 --model dit-xl-2 --max-cache-mib 100 -o fits.json`
    """
    options = typed(method)

    def method_at(level: Level | None) -> fc.Method:
        built = options.build(steps, model, level)
        if built is None:
            raise fc.errors.InputError("A plan needs a method; to compute everything no plan is needed.")
        return built

    own_method = method_at(sites.level)
    check_name(model, *SHAPES)
    source = open_source(model) if model in models() else None
    if source is not None:
        target: Any = source.target
    else:
        target = shaped(model, torch.float32, "meta") if model in SHAPES else open_structure(model)
    sizes = {"height": height, "width": width, "frames": frames}
    own = None if source is None or any(sizes.values()) else sources.call_inputs(source, 2 * batch)

    def known_cost(plan: fc.Plan) -> fc.Cost:
        total = _cost(plan, target, batch, own, sizes)
        if total is None:
            raise fc.errors.InputError(UNKNOWN_COST)
        return total

    if max_cache_mib is None:
        plan = own_method.plan(fc.grid(target, steps, **sites.options, ends=own_method.ends(sites.level)))
    elif sites == FINEST:
        plan = plan_within(method_at, target, steps, int(max_cache_mib * MIB), cost=known_cost)
    else:
        raise fc.errors.InputError("--max-cache-mib chooses the level, and --level names it: give one of them.")
    cost = _cost(plan, target, batch, own, sizes)
    plan.save(out)
    levels = list(costs_by_level(method_at, target, steps, known_cost)) if cost is not None else []
    if as_json:
        document = {"plan": str(out), "steps": steps, "batch": batch, "picture": plan.picture()}
        document |= {"level": plan.provenance["level"]} if "level" in plan.provenance else {}
        costs = {"cost": asdict(cost) if cost is not None else None, "levels": [asdict(row) for row in levels]}
        emit({**document, **costs})
        return
    if "level" in plan.provenance:
        say(f"The finest level that fits: {plan.provenance['level']}.")
    say(f"{plan.overview()}\n{options.unasked(plan, model)}{cost or UNKNOWN_COST}")
    _print_levels(levels)
    say(f"Wrote {out}.")


@app.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="One of them: its parameters.")] = None, as_json: AsJson = False
) -> None:
    """List the methods, or the parameters of one of them, as Markdown tables.

    Example: `forecache methods`

    Example: `forecache methods feedback`
    """
    names = list(registry.methods())
    if name is not None and name not in names:
        raise fc.errors.InputError(f"There is no method {name!r}; there are {', '.join(names)}.")
    if as_json:
        emit({entry: _described(entry) for entry in ([name] if name is not None else names)})
        return
    say(registry.table() if name is None else registry.parameter_table(name))


def _described(name: str) -> dict[str, Any]:
    """A method for programs: what it does, its paper, its parameters with their options."""
    entry, options = registry.registered(name), flags.names_of(registry.registered(name))
    table = flags.flags()
    return {
        "summary": entry.what,
        "paper": entry.paper or None,
        "takes_base": entry.takes_base,
        "parameters": {
            parameter.name: {
                "option": table[options[parameter.name]].option if parameter.name in options else None,
                "values": registry.values_of(parameter),
                "required": parameter.required,
                "default": None if parameter.required else parameter.default,
                "help": parameter.help,
            }
            for parameter in entry.parameters
        },
    }


def _cost(
    plan: fc.Plan, target: Any, batch: int, inputs: Mapping[str, Any] | None, sizes: Mapping[str, int | None]
) -> fc.Cost | None:
    """The cost of the plan; None for a model whose arguments only its user knows."""
    if inputs is not None:
        rows, device = len(inputs["hidden_states"]), inputs["hidden_states"].device
        return plan.cost(target, inputs={**inputs, "timestep": torch.zeros(rows, dtype=torch.long, device=device)})
    transformer = (transformers(target) or [target])[0]
    if layout_for(transformer, plan.grid).example is None:
        return None
    height, width, frames = (sizes[name] for name in ("height", "width", "frames"))
    return plan.cost(target, batch, height=height, width=width, frames=frames)


def _print_levels(levels: Sequence[LevelCost]) -> None:
    if not levels:
        return
    table = results_table()
    for name in ("level", "sites", "cache", "cheapest step", "whole run"):
        table.add_column(name, no_wrap=True)
    for row in levels:
        name = row.level if row.group is None else f"{row.level} of {row.group}"
        if row.cache_bytes is None or row.cheapest_step_macs is None or row.macs is None:
            table.add_row(name, "-", "-", "-", row.reason or "-")
            continue
        macs = (f"{number / 1e9:,.4g} G MACs" for number in (row.cheapest_step_macs, row.macs))
        table.add_row(name, str(row.sites), mib(row.cache_bytes, 2), *macs)
    print_table(table)
