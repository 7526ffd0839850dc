"""`forecache plan`: a plan file from a method, and `forecache methods`: the methods that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forecache as fc
from forecache.bench.subjects import Subject
from forecache.cli.options import Typed, takes_method_options
from forecache.cli.parameters import BUNDLED, DEFAULT_MODEL, MAX_STEPS, AsJson, out_file
from forecache.cli.terminal import app, emit, say
from forecache.methods import flags, registry
from forecache.models.find import find
from forecache.sampling import sources
from forecache.zoo import SHAPES, random_inputs, shaped
from forecache.zoo.open import open_source


@app.command("plan")
@takes_method_options
def plan_command(
    *,
    method: Annotated[str, typer.Argument(help="The method, on --base.")],
    typed: Typed,
    model: Annotated[
        str, typer.Option(help=f"{BUNDLED}, {', '.join(SHAPES)} (shapes alone), a folder, a repository.")
    ] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Model calls of a run.")] = 20,
    batch: Annotated[
        int, typer.Option(min=1, max=2**16, help="Images that the cost is for; each is a guidance pair.")
    ] = 1,
    out: Annotated[Path, out_file("The plan file.")] = Path("plan.json"),
    as_json: AsJson = False,
) -> None:
    """Write a plan file: what every site of the model does in every step, and what that costs. Nothing is sampled.

    Example: `forecache plan goc --base fora --interval 2 --eta 0.8 --steps 20 --model digits -o plan.json`

    Example: `forecache plan taylorseer --interval 3 --order 2 --model dit-xl-2 --batch 8 -o dit-xl-taylor.json`
    """
    built = typed(method).build(steps)
    if built is None:
        raise fc.errors.InputError("A plan needs a method; to compute everything no plan is needed.")
    source = None if model in SHAPES else open_source(model)
    target: Any = shaped(model, torch.float32, "meta") if source is None else source.target
    plan = built.plan(fc.grid(target, steps))
    inputs = None if source is None else sources.call_inputs(source, 2 * batch)
    cost = _cost(plan, model, target, inputs, 2 * batch)
    plan.save(out)
    if as_json:
        document = {"plan": str(out), "steps": steps, "batch": batch, "picture": plan.picture()}
        emit({**document, "cost": asdict(cost) if cost is not None else None})
        return
    say(f"{plan.show()}\n{cost or 'The cost is not known from shapes alone.'}\nWrote {out}.")


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


def _cost(plan: fc.Plan, name: str, target: Any, inputs: Mapping[str, Any] | None, rows: int) -> fc.Cost | None:
    """What the plan costs for so many rows a call; None where a call takes what only the model's pipeline knows."""
    transformer = find(target)
    try:
        return Subject(name, transformer, inputs or random_inputs(transformer, rows)).cost(plan)
    except fc.errors.InputError:
        return None
