"""The parameters of a method, read from its signature, its annotations and its docstring.

    interval: Annotated[int, Range(least=1, usual=2, slider=(1, 10, 1))]
    history: Literal["emitted", "computed"] = "emitted"
    steps: Collection[int] | None = None

An annotation says what a value is; a line ``interval: compute one step in so many`` of the docstring says what it is
for. Values have a canonical form of numbers, strings, booleans and lists, in which recipes, tables and forms hold them.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from forecache.errors import InputError
from forecache.io.text import short
from forecache.parts.router import Router
from forecache.parts.statistics import Statistics
from forecache.plan.method import Method

Kind = Literal[
    "base", "whole", "number", "block", "switch", "text", "choice", "steps", "numbers", "words", "pattern",
    "statistics", "router", "file", "python",
]  # fmt: skip
"""What a parameter takes:

base: a method, whose schedule the method stands on
whole, number: an int, a float
block: ``int | float``, a block as a whole number or a share of the blocks as a fraction
switch, text, choice: a bool, a string, one of the values of a Literal
steps, numbers, words: numbers of steps, other numbers, strings
pattern: ``str | Sequence[int]``, one entry a step
statistics, router, file: an ingredient, which a recipe names by file and digest
python: functions only, which no recipe, table or form can hold
"""

INGREDIENTS = ("statistics", "router", "file")
SIGNS = {"#": "#", ".": ".", "o": "o", 1: "#", 0: ".", 2: "o"}
"""Entries of a pattern, and their canonical form."""


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter takes, and those that a form offers: ``Annotated[float, Range(...)]``.

    least, most: the smallest and the largest valid value, None without a bound
    usual: the value that commands and pages begin with, for a parameter without a default
    slider: first and last value and the step of the page's slider; None for no slider
    needs: name of another parameter of the method, without which this one says nothing; empty for none
    unless: name of another parameter, beside which a command does not take this one from what is at hand
    """

    least: float | None = None
    most: float | None = None
    usual: Any = None
    slider: tuple[float, float, float] | None = None
    needs: str = ""
    unless: str = ""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    name: as in the signature
    kind: see `Kind`
    default: of the signature; `inspect.Parameter.empty` where there is none
    choices: values of a Literal; beside another kind (``Literal["all"] | Collection[int]``) further values
    optional: whether None is a value
    main: whether it may be given by position; recipes and names hold main parameters even at their defaults
    range: bounds and slider of a number
    help: its line of the docstring
    """

    name: str
    kind: Kind
    default: Any
    choices: tuple[str | int, ...]
    optional: bool
    main: bool
    range: Range
    help: str

    @property
    def required(self) -> bool:
        """Whether the signature has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def is_ingredient(self) -> bool:
        """Whether its value is measured data, which a recipe can only name."""
        return self.kind in INGREDIENTS

    @property
    def in_forms(self) -> bool:
        """Whether commands, tables and pages have it."""
        return self.kind not in ("base", "python")

    @property
    def start(self) -> Any:
        """The value that a form begins with, in canonical form; None for no value."""
        value = self.range.usual if self.required or self.default is None else self.default
        return None if value is None or self.kind in (*INGREDIENTS, "python") else self.canonical(value)

    def canonical(self, value: Any, where: str = "") -> Any:
        """A value as numbers, strings, booleans or lists of these; ValueError with a sentence for one it cannot be.

        where: follows the name of the parameter in the sentence, such as `` of goc``.
        """
        name = f"{self.name}{where}"
        if value is None and self.optional:
            return None
        if isinstance(value, str | int) and value in self.choices and type(value) is not bool:
            return value
        if self.kind == "choice":
            raise ValueError(f"{name} is one of {', '.join(map(str, self.choices))}; not {short(value)}")
        changed = _CANONICAL[self.kind](value)
        if changed is None:
            also = f", or {', '.join(map(repr, self.choices))}" if self.choices else ""
            raise ValueError(f"{name} {_SENTENCES[self.kind]}{also}; not {short(value)}")
        if isinstance(changed, int | float) and not isinstance(changed, bool):
            self._check_range(changed, name)
        return changed

    def _check_range(self, value: float, name: str) -> None:
        least, most = self.range.least, self.range.most
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"lies between {least} and {most}" if None not in (least, most) else f"is at least {least}"
            bounds = f"is at most {most}" if least is None else bounds
            raise ValueError(f"{name} {bounds}; not {value!r}")

    def of_word(self, word: str, where: str = "") -> Any:
        """The canonical value of a word that somebody typed: the items of a list stand with commas between them."""
        if word in self.choices:
            return word
        if self.kind == "steps":
            try:
                return self.canonical([int(part) for part in word.strip().strip(",").split(",")], where)
            except ValueError:
                also = f", or {', '.join(map(repr, self.choices))}" if self.choices else ""
                raise ValueError(
                    f"{self.name}{where} takes whole numbers separated by commas, such as 1,3,5{also}; not {word!r}"
                ) from None
        if self.kind == "numbers":
            try:
                return self.canonical([float(part) for part in word.strip().strip(",").split(",")], where)
            except ValueError:
                raise ValueError(
                    f"{self.name}{where} takes numbers separated by commas, such as 1.2,0.9; not {word!r}"
                ) from None
        if self.kind == "words":
            return self.canonical(word.split(","), where)
        return self.canonical(word, where)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _block(value: Any) -> int | float | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else number


def _steps(value: Any) -> list[int] | None:
    if isinstance(value, str | Mapping) or not isinstance(value, Collection):
        return None
    steps = [_whole(step) for step in value]
    return sorted(step for step in steps if step is not None) if None not in steps else None


def _numbers(value: Any) -> list[float] | None:
    if isinstance(value, str | Mapping) or not isinstance(value, Collection):
        return None
    numbers = [_number(number) for number in value]
    return [number for number in numbers if number is not None] if None not in numbers else None


def _words(value: Any) -> list[str] | None:
    if isinstance(value, str) or not isinstance(value, Collection) or not all(isinstance(word, str) for word in value):
        return None
    return list(value)


def _pattern(value: Any) -> str | None:
    is_pattern = isinstance(value, Sequence) and all(isinstance(sign, str | int) and sign in SIGNS for sign in value)
    return "".join(SIGNS[sign] for sign in value) if is_pattern else None


def _nothing(value: Any) -> None:
    return None


_CANONICAL: Mapping[str, Callable[[Any], Any]] = {
    "whole": _whole,
    "number": _number,
    "block": _block,
    "switch": lambda value: value if isinstance(value, bool) else None,
    "text": lambda value: value if isinstance(value, str) else None,
    "steps": _steps,
    "numbers": _numbers,
    "words": _words,
    "pattern": _pattern,
    **dict.fromkeys((*INGREDIENTS, "base", "python", "choice"), _nothing),
}
_SENTENCES: Mapping[str, str] = {
    "whole": "is a whole number",
    "number": "is a finite number",
    "block": "is a whole number, a block, or a fraction, that part of the blocks",
    "switch": "is true or false",
    "text": "is a string",
    "steps": "lists steps, which are whole numbers",
    "numbers": "lists finite numbers",
    "words": "lists strings",
    "pattern": "is written with '#' (compute), '.' (skip) and 'o' (some tokens)",
    "statistics": "is a statistics file or a Statistics",
    "router": "is a router file or a Router",
    "file": "is a file",
    "base": "is a method",
    "python": "is given in Python only",
}


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of a method's function; InputError where the signature says too little."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InputError(
            f"The annotations of {function.__name__} cannot be read ({error}): import what they name at the top of "
            f"{function.__module__}."
        ) from error
    signature = inspect.signature(function)
    lines = parameter_lines(inspect.getdoc(function) or "", signature.parameters)
    return tuple(
        _parameter(function, parameter, hints.get(name), lines.get(name, ""))
        for name, parameter in signature.parameters.items()
    )


def parameter_lines(docstring: str, names: Iterable[str]) -> dict[str, str]:
    """The lines ``name: text`` of a docstring; a text ends at a blank line or at the next name."""
    known, lines, current = set(names), {}, None
    for line in docstring.splitlines():
        match = re.match(r"\s*(\w+): +(\S.*)$", line)
        if match and match[1] in known:
            current = match[1]
            lines[current] = match[2].strip()
        elif not line.strip():
            current = None
        elif current is not None:
            lines[current] += " " + line.strip()
    return lines


def _parameter(function: Callable[..., Any], parameter: inspect.Parameter, hint: Any, text: str) -> Parameter:
    if hint is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise InputError(
            f"{parameter.name} of {function.__name__} needs an annotation and a name of its own: the registry of "
            "methods reads command-line options, table words and recipes from the signature."
        )
    members, ranges = _members(hint)
    kind, choices = _kind(members)
    if kind is None:
        raise InputError(
            f"{parameter.name} of {function.__name__} is annotated {hint}, of which no form can be made: annotate it "
            "as int, float, bool, str, Literal, Collection[int], Statistics, Router or Method, or as a Callable for "
            "Python alone."
        )
    main = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    optional = type(None) in members
    return Parameter(
        parameter.name, kind, parameter.default, choices, optional, main, ranges[0] if ranges else Range(), text
    )


def _members(hint: Any) -> tuple[list[Any], list[Range]]:
    """The members of a union, flattened, and the ranges that annotate them."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        members, ranges = _members(inner)
        return members, [*ranges, *(note for note in notes if isinstance(note, Range))]
    if get_origin(hint) in (Union, types.UnionType):
        members, ranges = [], []
        for member in get_args(hint):
            inside, more = _members(member)
            members, ranges = members + inside, ranges + more
        return members, ranges
    return [hint], []


def _kind(members: Sequence[Any]) -> tuple[Kind | None, tuple[str | int, ...]]:
    """The kind that the members of an annotation stand for, None where they stand for none, and its choices."""
    literals = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    plain = {member for member in members if isinstance(member, type)}
    origins = {get_origin(member) for member in members}
    lists = {get_args(member)[0] for member in members if _is_collection(member)}
    choices = tuple(dict.fromkeys(literals))
    classes: Mapping[type, Kind] = {Method: "base", Statistics: "statistics", Router: "router"}
    for known, kind in classes.items():
        if known in plain:
            return kind, choices
    if int in lists:
        return ("pattern" if str in plain else "steps"), choices
    if float in lists:
        return "numbers", choices
    if str in lists:
        return "words", choices
    if os.PathLike in origins or Path in plain:
        return "file", choices
    scalars: Sequence[tuple[type, Kind]] = (
        (bool, "switch"), (float, "block" if int in plain else "number"), (int, "whole"), (str, "text")
    )  # fmt: skip
    for known, kind in scalars:
        if known in plain:
            return kind, choices
    if choices:
        return "choice", choices
    return ("python" if _is_callable(members) else None), ()


def _is_collection(member: Any) -> bool:
    origin = get_origin(member)
    return isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, Mapping)


def _is_callable(members: Sequence[Any]) -> bool:
    return any(get_origin(member) is Callable for member in members)
