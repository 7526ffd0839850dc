"""The options of a method, written once for all commands that take one, and `forecache plan`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forecache as fc
from forecache.bench.subjects import Subject
from forecache.cli.options import MethodName, Options
from forecache.cli.parameters import BUNDLED, DEFAULT_MODEL, MAX_STEPS, AsJson, out_file
from forecache.cli.terminal import app, emit, say
from forecache.models.find import find
from forecache.sampling import sources
from forecache.zoo import SHAPES, random_inputs, shaped
from forecache.zoo.open import open_source

Typed = Callable[[MethodName], Options]
"""The options as they were typed, waiting for the method that they are for."""


def takes_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of `Options` in the place of its parameter ``typed``."""
    own = inspect.signature(command, eval_str=True).parameters
    shared = {**inspect.signature(Options, eval_str=True).parameters}
    del shared["method"]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(typed=functools.partial(Options, **{name: given.pop(name) for name in shared}), **given)

    merged = [each for name, one in own.items() for each in (shared.values() if name == "typed" else [one])]
    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in merged]
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in by_name}
    return run


@app.command("plan")
@takes_method_options
def plan_command(
    *,
    method: Annotated[MethodName, typer.Argument(help="The method, on --base.")],
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


def _cost(plan: fc.Plan, name: str, target: Any, inputs: Mapping[str, Any] | None, rows: int) -> fc.Cost | None:
    """What the plan costs for so many rows a call; None where a call takes what only the model's pipeline knows."""
    transformer = find(target)
    try:
        return Subject(name, transformer, inputs or random_inputs(transformer, rows)).cost(plan)
    except fc.errors.InputError:
        return None
