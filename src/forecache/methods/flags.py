"""Flags: the parameters of all methods in one flat list of names, for commands and forms.

A command or a page names a method, a base and some flags; `Expression` assembles the method from them. Methods whose
parameters have the same name and take the same values share a flag; where a parameter means something else, or where a
method and its base would share one, the flag has another name: by the table `NAMES`, else with the method in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forecache.errors import InputError
from forecache.methods import registry
from forecache.methods.ingredients import MAKERS, NOUNS
from forecache.methods.parameters import Parameter
from forecache.methods.registry import Registered
from forecache.plan.method import Method

NAMES: Mapping[tuple[str, str], str] = {
    ("l2c", "threshold"): "router_threshold",
    ("smoothcache", "threshold"): "change",
    ("smoothcache_file", "path"): "schedule",
    ("goc", "steps"): "correct",
    ("warmup", "steps"): "warmup",
    ("fora_paper", "level"): "caching_level",
    **{(method, "threshold"): "online_threshold" for method in
       ("fbcache", "dbcache", "teacache", "easycache", "seacache", "dicache")},
    ("magcache", "threshold"): "ratio_threshold",
    **{(method, "last"): "compute_last" for method in
       ("fbcache", "dbcache", "teacache", "easycache", "seacache", "dicache")},
}  # fmt: skip
"""Flags of parameters whose own name means something else in another method or in a command: (method, parameter)."""

RESERVED = frozenset({
    "method", "base", "model", "steps", "seed", "guidance", "batch", "out", "plan", "labels", "prompt", "prompts",
    "num_samples", "compare", "shard_size", "call_size", "exact", "random_classes", "png", "as_json", "json", "device",
    "dtype", "images", "help", "height", "width", "frames", "negative_prompt", "offload", "rounds", "seeds", "quiet",
    "level", "group", "of", "blocks",
})  # fmt: skip
"""Names that commands and pages use for their own options."""

WARMUP = "warmup"
"""The flag that puts `warmup` between any method and its base."""
DEFAULT_BASE = "fora"

USUAL: Mapping[tuple[str, str], Any] = {("procache", "interval"): 3, ("selective", "interval"): 3}
"""Values of a base's parameters where a method needs others than the base's usual ones: (method, parameter).

ProCache computes tokens in every second step of a gap, and fora(2) has gaps of one step.
"""

Resolve = Callable[[Parameter, Any], Any]
"""(parameter, value of its flag) -> value: the path of a bundled file by its name, for example."""
AtHand = Callable[[Parameter], Any]
"""(optional ingredient without a flag) -> the data that a run has without being asked for it; None for none."""
WITHOUT = "none"
"""The value of an optional ingredient's flag that takes none of it, whatever is at hand."""


@dataclass(frozen=True)
class Flag:
    """A flag and the parameters that it sets.

    name: with underscores
    parameter: that of its first owner, which says what it takes
    owners: parameter of every method that has the flag, by method
    """

    name: str
    parameter: Parameter
    owners: Mapping[str, Parameter]

    @property
    def option(self) -> str:
        """As it is typed: ``--from-depth``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def help(self) -> str:
        """Its line in a help text: meaning and default."""
        starts = {owner: _shown(parameter.start) for owner, parameter in self.owners.items()}
        values = list(dict.fromkeys(starts.values()))
        text = values[0] if len(values) == 1 else ", ".join(f"{owner} {start}" for owner, start in starts.items())
        if unasked := [name for name, one in self.owners.items() if one.is_ingredient and not one.required]:
            text = f"{', '.join(unasked)}: a bundled model's own; {WITHOUT} takes none"
        return f"{self.parameter.help.replace('`', '')}{f' [{text}]' if text else ''}"

    @property
    def is_uniform(self) -> bool:
        """Whether all owners begin with the same value."""
        return len({_shown(parameter.start) for parameter in self.owners.values()}) == 1


def _shown(start: Any) -> str:
    """The first value of a form, empty for none and for a switch, whose option names both."""
    if start is None or isinstance(start, bool):
        return ""
    return ",".join(map(str, start)) if isinstance(start, list) else start if isinstance(start, str) else f"{start:g}"


def flags() -> dict[str, Flag]:
    """All flags by name, those of one method together."""
    table: dict[str, dict[str, Parameter]] = {}
    for entry in registry.methods().values():
        for parameter in entry.in_forms:
            table.setdefault(_name(entry, parameter, table), {})[entry.name] = parameter
    return {name: Flag(name, next(iter(owners.values())), owners) for name, owners in table.items()}


def _name(entry: Registered, parameter: Parameter, table: Mapping[str, Mapping[str, Parameter]]) -> str:
    """The flag of a parameter, given those of the methods before it."""
    name = NAMES.get((entry.name, parameter.name), parameter.name)
    if name in RESERVED or (name in NAMES.values() and (entry.name, parameter.name) not in NAMES):
        return f"{entry.name}_{parameter.name}"
    for owner, other in table.get(name, {}).items():
        same = (parameter.kind, parameter.choices) == (other.kind, other.choices)
        if not same or (not parameter.is_ingredient and registry.registered(owner).takes_base != entry.takes_base):
            return f"{entry.name}_{parameter.name}"
    return name


def names_of(entry: Registered) -> dict[str, str]:
    """The flags of a method, by name of the parameter."""
    table = flags().values()
    return {flag.owners[entry.name].name: flag.name for flag in table if entry.name in flag.owners}


def bases() -> tuple[str, ...]:
    """The methods that stand on no other one."""
    return tuple(name for name, entry in registry.methods().items() if not entry.takes_base)


def corrections() -> tuple[str, ...]:
    """The methods that stand on a base."""
    return tuple(name for name, entry in registry.methods().items() if entry.takes_base)


@dataclass(frozen=True)
class Expression:
    """A method as a command or a page names it.

    method: name of the outer method
    base: name of its base; None for the base that the flags belong to, else FORA
    flags: value by name of the flag; None for a flag that was not given
    """

    method: str
    base: str | None
    flags: Mapping[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """The flags with a value."""
        return {name: value for name, value in self.flags.items() if value is not None}

    def chain(self) -> tuple[Registered, ...]:
        """The methods from the outermost to the base; InputError for a base where there cannot be one."""
        outer = registry.methods().get(self.method)
        if outer is None:
            raise InputError(f"There is no method {self.method!r}; there are {', '.join(registry.methods())}.")
        warmup = (registry.registered("warmup"),) if self._has_warmup else ()
        if outer.takes_base:
            return (outer, *warmup, registry.registered(self._base(outer)))
        if self.base not in (None, outer.name):
            raise InputError(
                f"--method {outer.name} is a base itself, and --base {self.base} is another: leave --base out, or give "
                "a correction as --method, such as goc."
            )
        return (*warmup, outer)

    @property
    def _has_warmup(self) -> bool:
        return bool(self.given.get(WARMUP)) and self.method != "warmup"

    def _base(self, outer: Registered) -> str:
        """The base that was named, else the one that a flag belongs to and that misses fewest others, else FORA.

        Rules that decide while a plan runs come last: a pattern alone is that of a static schedule.
        """
        if self.base is not None:
            if self.base not in bases():
                raise InputError(f"--base is one of {', '.join(bases())}; {self.base!r} stands on a base itself.")
            return self.base
        table = flags()
        for name in self.given:
            owners = table[name].owners if name in table else {}
            if outer.name not in owners and (found := [owner for owner in owners if owner in bases()]):
                return min(found, key=lambda name: (self._missing(name), registry.registered(name).decides))
        return DEFAULT_BASE

    def _missing(self, name: str) -> int:
        """The number of flags that a method requires and that were not given."""
        entry = registry.registered(name)
        names = names_of(entry)
        return sum(parameter.required and names[parameter.name] not in self.given for parameter in entry.in_forms)

    def build(
        self, resolve: Resolve = lambda parameter, value: value, at_hand: AtHand = lambda parameter: None
    ) -> Method:
        """The method; InputError for a flag that does not belong to it or its base, for one that is missing, and for a
        value that it cannot take.
        """
        chain = self.chain()
        self._refuse_others([entry.name for entry in chain])
        recipe: dict[str, Any] | None = None
        for entry in reversed(chain):
            values = {"method": entry.name, **dict(self._values(entry, chain, resolve, at_hand))}
            recipe = values if recipe is None else values | {"base": recipe}
        assert recipe is not None
        return registry.build(recipe)

    def _refuse_others(self, names: list[str]) -> None:
        table = flags()
        for name in self.given:
            if name not in table:
                raise InputError(f"There is no option {name!r}; there are {', '.join(table)}.")
            owners = table[name].owners
            if name != WARMUP and not owners.keys() & set(names):
                words = [f"--{'method' if owner in corrections() else 'base'} {owner}" for owner in owners]
                raise InputError(
                    f"{table[name].option} belongs to {' or '.join(words)}, and {_sentence(names)} does not use it."
                )

    def _values(
        self, entry: Registered, chain: tuple[Registered, ...], resolve: Resolve, at_hand: AtHand
    ) -> Iterator[tuple[str, Any]]:
        """The parameters of a method in the chain, from its flags and from what is at hand."""
        where, table, names = f" of {entry.name}", flags(), names_of(entry)
        unasked = {
            parameter.name: data
            for parameter in entry.in_forms
            if parameter.is_ingredient and not parameter.required
            if self.given.get(names[parameter.name]) is None
            if not parameter.range.unless or self.given.get(names[parameter.range.unless]) is None
            if (data := at_hand(parameter)) is not None
        }
        for parameter in entry.in_forms:
            flag = table[names[parameter.name]]
            value = self.given.get(flag.name)
            if parameter.name in unasked:
                yield parameter.name, unasked[parameter.name]
                continue
            if value == WITHOUT and parameter.is_ingredient and not parameter.required:
                continue
            if value is None or not self._is_meant(parameter, entry, chain, flag):
                if parameter.required:
                    if parameter.range.usual is None:
                        raise InputError(_missing(entry, parameter, flag))
                    yield parameter.name, USUAL.get((chain[0].name, parameter.name), parameter.range.usual)
                continue
            needed = parameter.range.needs
            if needed and needed not in unasked and self.given.get(names[needed]) in (None, WITHOUT):
                raise InputError(_missing(entry, entry.parameter(needed) or parameter, table[names[needed]], flag))
            value = resolve(parameter, value)
            try:
                if not parameter.is_ingredient:
                    value = (
                        parameter.of_word(value, where) if isinstance(value, str) else parameter.canonical(value, where)
                    )
            except ValueError as error:
                raise InputError(f"{flag.option}: {error}.") from error
            yield parameter.name, value

    def _is_meant(self, parameter: Parameter, entry: Registered, chain: tuple[Registered, ...], flag: Flag) -> bool:
        """Whether a flag is for this method: an optional ingredient is not meant where another method requires it,
        unless a flag that needs the ingredient was given, too.
        """
        if not parameter.is_ingredient or parameter.required:
            return True
        names = names_of(entry)
        dependent = [names[other.name] for other in entry.in_forms if other.range.needs == parameter.name]
        if any(name in self.given for name in dependent):
            return True
        return not any(
            flag.owners[other.name].required for other in chain if other is not entry and other.name in flag.owners
        )


def _missing(entry: Registered, parameter: Parameter, flag: Flag, dependent: Flag | None = None) -> str:
    """The sentence about a flag that is not there."""
    who = f"{dependent.option} of {entry.name}" if dependent else entry.name
    what = f"{NOUNS[parameter.kind]}: {MAKERS[parameter.kind]}" if parameter.is_ingredient else parameter.help
    return f"{who} needs {flag.option}, {what}."


def _sentence(names: list[str]) -> str:
    method, *more = names
    return f"--method {method}" + (f" on {more[-1]}" if more else "")
