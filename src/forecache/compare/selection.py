"""A selection on the comparison page, and the plan, the images and the command that it stands for.

The methods that can be picked, their controls and the limits of these come from the registry of methods.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.errors import InputError
from forecache.methods import flags, registry
from forecache.methods.flags import Expression, Flag
from forecache.methods.parameters import Parameter
from forecache.methods.registry import Registered
from forecache.plan.method import Method
from forecache.sampling import runs
from forecache.sampling.sources import Source
from forecache.zoo import bundled, ingredients

ROUTERS = tuple(bundled.routers())
"""Routers that ship with models."""
NONE = "none"
"""The correction that corrects nothing: plain reuse."""
MOST_IMAGES, MOST_TEXT = 16, 4000
LIMITS: Mapping[str, tuple[float, float]] = {"steps": (2, 250), "guidance": (1, 30), "seed": (0, 2**63 - 1)}
"""The smallest and the largest value of the page's own numbers."""
WHOLE = ("steps", "seed")
UNBOUNDED = 1e6
"""Largest size of a number whose parameter has no bounds."""


def bases(model: str) -> dict[str, str]:
    """The bases that a model has all ingredients of, by name, with their labels."""
    return {name: registry.registered(name).label for name in flags.bases() if _is_offered(name, model)}


def corrections(model: str) -> dict[str, str]:
    """The corrections that a model has all ingredients of, by name, with their labels; `NONE` first."""
    names = [name for name in flags.corrections() if _is_offered(name, model)]
    return {NONE: "none: reuse"} | {name: registry.registered(name).label for name in names}


def _is_offered(name: str, model: str) -> bool:
    """Whether the page has a method: everything that it requires is bundled."""
    own = bundled.record(model) if model in bundled.models() else None
    there = {"statistics": bool(own and own.statistics), "router": bool(own and own.routers), "file": False}
    there["numbers"] = there["statistics"]  # measured ones, which nobody types
    return all(there.get(parameter.kind, True) for parameter in registry.registered(name).parameters
               if parameter.required or (parameter.kind == "numbers" and parameter.start is None))  # fmt: skip


def controls(name: str) -> dict[str, Flag]:
    """The flags of a method that have a control on the page, by name; none for `NONE`."""
    if name == NONE:
        return {}
    entry, table = registry.registered(name), flags.flags()
    names = flags.names_of(entry)
    return {names[parameter.name]: table[names[parameter.name]] for parameter in entry.in_forms if _shown(parameter)}


def _shown(parameter: Parameter) -> bool:
    """Whether a control asks for it: not for what is measured, which is the model's, nor for what needs it."""
    return parameter.kind not in ("statistics", "numbers", "file", "words") and not parameter.range.needs


def limits(parameter: Parameter) -> tuple[float, float]:
    """The smallest and the largest number that the page takes: those of its slider, else those that are valid."""
    if parameter.range.slider is not None:
        return parameter.range.slider[:2]
    least, most = parameter.range.least, parameter.range.most
    return -UNBOUNDED if least is None else least, UNBOUNDED if most is None else most


@dataclass(frozen=True)
class Selection:
    """A model, images, a method and how to sample, as somebody picked them.

    model: name of the model
    images: class labels with commas between them, or prompts, one a line
    base: name of the base, one of `bases`
    correction: name of the correction, one of `corrections`
    values: of the controls, by name of the flag; None and "" for no value. Controls that neither the base nor the
        correction has are ignored
    steps: model calls
    guidance: classifier-free guidance scale
    seed: of the noise

    Raises InputError for a name that the model does not have, and for a number outside of its limits.
    """

    model: str = bundled.DEFAULT
    images: str = bundled.record(bundled.DEFAULT).example
    base: str = "fora"
    correction: str = "goc"
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)
    steps: int = 20
    guidance: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("base", bases(self.model)), ("correction", corrections(self.model))):
            _check_word(f"For {self.model} the {name}", getattr(self, name), tuple(known))
        for name, flag in self.controls.items():
            if name in self.given:
                _check(name, flag.parameter, self.given[name])
        for name, (least, most) in LIMITS.items():
            _check_number(name, getattr(self, name), least, most, whole=name in WHOLE)
        if not isinstance(self.images, str) or len(self.images) > MOST_TEXT:
            raise InputError(f"The classes or prompts of the images take at most {MOST_TEXT} characters.")

    @property
    def controls(self) -> dict[str, Flag]:
        """The flags of the base and the correction."""
        return controls(self.base) | controls(self.correction)

    @property
    def given(self) -> dict[str, Any]:
        """The values that the base and the correction use, where they differ from the usual ones."""
        methods = (self.base, self.correction)
        starts = {
            name: parameter.start
            for name, flag in self.controls.items()
            for owner, parameter in flag.owners.items()
            if owner in methods
        }
        values = {name: self.values.get(name) for name in starts}
        return {
            name: value
            for name, value in values.items()
            if not (value is None or value == starts[name] or _is_space(value))
        }

    def method(self) -> Method:
        """The method, as `forecache sample` builds it."""
        outer, base = self._names()
        expression = Expression(outer, base, self._flags())
        return expression.build(ingredients.resolver(self.steps), ingredients.at_hand(self.model, self.steps))

    def settings(self, source: Source) -> runs.Settings:
        """The sampling settings, with one model call a step; InputError for a class that the model does not have."""
        if source.classes:
            conditions: tuple[int | str, ...] = runs.parse_labels(self.images, source)
        else:
            conditions = tuple(line.strip() for line in self.images.splitlines() if line.strip())
        if not 1 <= len(conditions) <= MOST_IMAGES:
            raise InputError(f"Ask for 1 to {MOST_IMAGES} images at a time; these are {len(conditions)}.")
        return runs.Settings(conditions, self.steps, float(self.guidance), self.seed, MOST_IMAGES)

    def command(self, settings: runs.Settings) -> str:
        """The command that makes the same images."""
        texts = [condition for condition in settings.conditions if isinstance(condition, str)]
        wanted = [word for text in texts for word in ("--prompt", text)]
        wanted = wanted or ["--labels", ",".join(map(str, settings.conditions))]
        outer, base = self._names()
        options = ["--method", outer, *(["--base", base] if base is not None else [])]
        table = flags.flags()
        for name, value in self._flags().items():
            options += _words(table[name], value)
        numbers = ["--steps", str(self.steps), "--guidance", _word(float(self.guidance)), "--seed", str(self.seed)]
        return shlex.join(["forecache", "sample", "--model", self.model, *wanted, *options, *numbers, "--compare"])

    def _names(self) -> tuple[str, str | None]:
        """The outer method, and its base if it has one."""
        return (self.base, None) if self.correction == NONE else (self.correction, self.base)

    def _flags(self) -> dict[str, Any]:
        """The flags of the command line that say the same, by name."""
        outer, base = self._names()
        entries = [registry.registered(name) for name in (outer, base) if name is not None]
        usual = {"statistics": self.model, "router": ROUTERS[0]}
        required = {name: usual[kind] for entry in entries for name, kind in _required(entry) if kind in usual}
        return required | self.given


def _required(entry: Registered) -> list[tuple[str, str]]:
    """Flag and kind of every parameter that a method cannot do without."""
    names = flags.names_of(entry)
    return [(names[parameter.name], parameter.kind) for parameter in entry.in_forms if parameter.required]


def _is_space(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _check(name: str, parameter: Parameter, value: Any) -> None:
    if parameter.kind in ("whole", "number", "block") and value not in parameter.choices:
        _check_number(name, value, *limits(parameter), whole=parameter.kind == "whole")
    elif parameter.kind == "router":
        _check_word(f"The {name}", value, ROUTERS)
    elif isinstance(value, str) and len(value) > MOST_TEXT:
        raise InputError(f"{name} takes at most {MOST_TEXT} characters.")
    elif parameter.kind == "choice":
        _check_word(f"The {name}", value, parameter.choices)


def _check_word(what: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} is one of {', '.join(map(str, known))}; not {str(value)[:40]!r}.")


def _check_number(name: str, value: Any, least: float, most: float, *, whole: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (whole and not isinstance(value, int)):
        kind = "whole number" if whole else "number"
        raise InputError(f"{name} is a {kind} from {least} to {most}; not {value!r}.")


def _words(flag: Flag, value: Any) -> list[str]:
    """A flag as it is typed."""
    if isinstance(value, bool):
        return [flag.option if value else f"--no-{flag.option.removeprefix('--')}"]
    return [flag.option, _word(value)]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).strip()
