"""A method in one text: words as commands take them, or a recipe as tables have it.

    goc
    taylorseer interval=3 order=2
    goc base=l2c router=digits-22 eta=1
    {method = "goc", eta = 0.8, base = {method = "fora", interval = 2}}

The first word is the method, ``base=`` its base, and the others are their parameters, or the options of `forecache
sample` without dashes. A text in braces is a recipe, in the syntax of the tables of `forecache reproduce`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from forecache.errors import InputError, PlanError
from forecache.methods import flags, registry
from forecache.methods.flags import Expression, Resolve
from forecache.plan.method import Method

BASE = "base"


def method_of(text: str, resolve: Resolve = lambda parameter, value: value) -> Method:
    """The method of a text. Raises InputError, which quotes the text, for one that says no method.

    resolve: as in `Expression.build`
    """
    words = text.strip()
    try:
        return _of_recipe(words) if words.startswith("{") else _of_words(words, resolve)
    except (InputError, PlanError) as error:
        raise InputError(f"The method {text!r} cannot be made: {_without_dashes(str(error))}") from error


def _of_recipe(text: str) -> Method:
    try:
        recipe = tomllib.loads(f"plan = {text}")["plan"]
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f'it is no recipe such as {{method = "goc", base = {{method = "fora", interval = 2}}}}: {error}.'
        ) from error
    return registry.build(recipe)


def _of_words(text: str, resolve: Resolve) -> Method:
    name, *rest = text.split() or [""]
    bases = [word.partition("=")[2] for word in rest if word.startswith(f"{BASE}=")]
    values: dict[str, Any] = {}
    for word in rest:
        option, equals, value = word.partition("=")
        option = option.removeprefix("--").replace("-", "_")
        if not equals or not value:
            raise InputError(f"{word!r} is not a word such as interval=3.")
        option = _option_of(option, [name, *bases])
        if option in values:
            raise InputError(f"{option} stands there twice.")
        values[option] = value if option == BASE else _value(option, value)
    return Expression(name, values.pop(BASE, None), values).build(resolve)


def _option_of(word: str, methods: Sequence[str]) -> str:
    """The option that a word means: the own name of a parameter of these methods, or an option's."""
    known = registry.methods()
    own = [flags.names_of(known[method]) for method in methods if method in known]
    return next((names[word] for names in own if word in names), word)


def _value(option: str, word: str) -> Any:
    """A word as a number or a switch where its option takes one; else as it is, for the option to read."""
    flag = flags.flags().get(option)
    kind = flag.parameter.kind if flag is not None else ""
    takes_numbers = flag is not None and any(isinstance(choice, int) for choice in flag.parameter.choices)
    if kind in ("whole", "number", "block", "switch") or takes_numbers:
        try:
            return tomllib.loads(f"value = {word}")["value"]
        except tomllib.TOMLDecodeError:
            return word
    return word


def _without_dashes(sentence: str) -> str:
    """A sentence about options of a command, about words of a text: ``stats=`` for ``--stats``."""
    for name, flag in flags.flags().items():
        sentence = sentence.replace(f"{flag.option},", f"{name}=,").replace(f"{flag.option} ", f"{name}= ")
    return sentence.replace("--method ", "").replace("--base ", "base=")
