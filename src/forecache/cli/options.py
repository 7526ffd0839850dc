"""The options that stand for a method on the command line, made from the registry of methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from forecache.errors import InputError
from forecache.methods import flags, recommended, registry
from forecache.methods.flags import Expression, Flag
from forecache.methods.parameters import Parameter
from forecache.models.layout import Level
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.zoo import ingredients

NONE = "none"
"""The method that samples without a cache."""
SPEEDUP = "speedup"
"""The flag that, without a method, asks for the recipe on record for so many times fewer MACs."""

STATISTICS = "stats"
"""The flag of statistics."""

Typed = Callable[[str], "MethodOptions"]
"""The options as they were typed, waiting for the method that they are for."""


@dataclass(frozen=True)
class MethodOptions:
    """The method options of a command, as typed.

    method: name of the method, or ``none``
    base: name of its base, None for the default
    flags: value by name, None for an option that was not typed
    """

    method: str
    base: str | None
    flags: Mapping[str, Any]

    @property
    def given(self) -> list[str]:
        """The options that were typed, as they are typed."""
        table = flags.flags()
        base = ["--base"] if self.base is not None else []
        return base + [table[name].option for name, value in self.flags.items() if value is not None]

    def build(self, num_steps: int, model: str, level: Level | None = None) -> Method | None:
        """The method, or None for sampling without a cache; InputError if an option does not belong to it.

        num_steps: model calls of the run, by which bundled statistics are found
        model: name of the model, whose statistics GOC's gate takes by default if it is a bundled one
        level: of the sites; None for the finest
        """
        if self.method == NONE:
            given = {name: value for name, value in self.flags.items() if value is not None}
            if given.keys() == {SPEEDUP} and self.base is None:
                return recommended.method(checked_speedup(given[SPEEDUP]), num_steps)
            self._refuse_all()
            return None
        expression = Expression(self.method, self.base, self.flags)
        return expression.build(ingredients.resolver(num_steps), ingredients.at_hand(model, num_steps, level))

    def unasked(self, plan: Plan | None, model: str) -> str:
        """The line about statistics that the method took without being asked; empty if it took none."""
        asked = self.method == NONE or self.flags.get(STATISTICS) is not None
        if asked or plan is None or STATISTICS not in (plan.recipe or {}):
            return ""
        return (
            f"The gate is by the statistics that {model} comes with; --{STATISTICS} none corrects every skipped step.\n"
        )

    def _refuse_all(self) -> None:
        table = flags.flags()
        for name, value in self.flags.items():
            if value is None:
                continue
            if name == flags.WARMUP:
                raise InputError("--warmup computes the first steps of a plan: give a --method, too.")
            words = " or ".join(f"--method {owner}" for owner in table[name].owners)
            raise InputError(f"{table[name].option} belongs to {words}, and no --method was given.")
        if self.base is not None:
            raise InputError(f"--base {self.base} is the schedule of a method: give a --method, too.")


def checked_speedup(speedup: float) -> float:
    """A speedup that recipes are recommended for; InputError for another one."""
    least, most = recommended.SPEEDUPS
    if not least <= speedup <= most:
        raise InputError(
            f"Recipes are on record for {least:g} to {most:g} times fewer MACs; {speedup:g} was asked for."
        )
    return speedup


def takes_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of all methods in the place of its parameter ``typed``.

    The command's own parameter ``method`` takes the names of the methods, and ``none``.
    """
    own = dict(inspect.signature(command, eval_str=True).parameters)
    _, *notes = get_args(own["method"].annotation)
    names = Literal[NONE, *registry.methods()]  # type: ignore[valid-type]
    own["method"] = own["method"].replace(annotation=Annotated[names, *notes])
    shared = method_parameters()
    if clash := sorted((own.keys() - {"base"}) & shared.keys()):
        raise InputError(f"{command.__name__} has options of its own called {clash}: add them to flags.RESERVED.")

    def build(values: dict[str, Any]) -> Typed:
        base = values.pop("base")
        return lambda method: MethodOptions(method, base, values)

    return expanded(command, own, "typed", shared, build)


def expanded(
    command: Callable[..., None],
    own: Mapping[str, inspect.Parameter],
    name: str,
    shared: Mapping[str, inspect.Parameter],
    build: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """The command with shared options in the place of one of its parameters.

    own: the command's parameters
    name: the parameter that they replace
    shared: the options
    build: values of the options by name -> the argument for the parameter
    """

    @functools.wraps(command)
    def run(**given: Any) -> None:
        argument = build({option: given.pop(option) for option in shared})
        command(**{name: argument}, **given)

    merged = [
        parameter for known, single in own.items() for parameter in (shared.values() if known == name else [single])
    ]
    by_name = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in merged]
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in by_name}
    return run


def method_parameters() -> dict[str, inspect.Parameter]:
    """The base and every flag as a parameter of a command."""
    text = "Schedule under goc, eoc, ... [that of the options, else fora]."
    parameters = {"base": _parameter("base", Literal[*flags.bases()], help=text)}
    for flag in flags.flags().values():
        panel, metavar = _panel(flag), _metavar(flag.parameter)
        kind = _type(flag.parameter)
        parameters[flag.name] = _parameter(flag.name, kind, help=flag.help, rich_help_panel=panel, metavar=metavar)
    return parameters


def _parameter(name: str, kind: Any, **option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, typer.Option(**option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _panel(flag: Flag) -> str:
    """The heading in a help text: the methods that the flag belongs to."""
    return "Any method" if flag.name == flags.WARMUP else f"Options of {', '.join(flag.owners)}"


def _type(parameter: Parameter) -> Any:
    """The type that typer reads a flag as."""
    if parameter.kind == "choice":
        return Literal[*parameter.choices] if isinstance(parameter.choices[0], str) else type(parameter.choices[0])
    types = {"whole": int, "number": float, "block": float, "switch": bool, "file": Path}
    return types.get(parameter.kind, str)


def _metavar(parameter: Parameter) -> str | None:
    """The placeholder of a value in a help text; None for typer's own."""
    names = {"steps": "1,3,5", "pattern": "#..#", "statistics": "FILE", "router": "FILE", "words": "A,B",
             "numbers": "0.9,1.1"}  # fmt: skip
    return names.get(parameter.kind)
