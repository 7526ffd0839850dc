"""The forecasts that tuning chooses from: one table of rules, and the choice of one with its numbers as data.

A `ForecastSpec` names a rule of `RULES` with its parameters, the strength of EOC's correction, and refined weights. It
prints as ``fitted 2, feedback 0.5, eoc 0.6``, is read from such a text, and stands in a trials file as plain data. A
registered method (`forecache.methods.registry`) whose parameters are numbers is a rule, too, under its own name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from forecache.errors import InputError, PlanError
from forecache.fit.tuning.fitted import Fitted
from forecache.fit.tuning.gram import Gram
from forecache.io.text import short
from forecache.methods.explicit import explicit
from forecache.methods.expressions import with_forecast
from forecache.methods.registry import Registered, methods
from forecache.parts import patterns
from forecache.parts.corrections import Drift
from forecache.parts.forecasts import Feedback, Forecast, Gradient, Reuse, Taylor
from forecache.parts.grid import Site
from forecache.parts.hindsight import Hindsight
from forecache.plan.method import Method

Way = Literal["shift", "scale"]
"""How a step's weights are adjusted: from the older to the newest feature, or all of them by a factor."""
WAYS: tuple[Way, ...] = ("shift", "scale")
Adjustments = Mapping[tuple[Way, int], float]
"""The adjustment of each way and step; 0 where there is none."""


@dataclass(frozen=True)
class Parameter:
    """A number of a rule.

    name: as it is written.
    kind: int or float.
    low: smallest value.
    high: largest value.
    default: value where it is left out; None if it has to be given.
    """

    name: str
    kind: type[int] | type[float]
    low: float
    high: float
    default: float | None = None

    def check(self, value: Any) -> float:
        """The value; ValueError for another type or a value out of range."""
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            raise ValueError(f"{self.name} must be of type {self.kind.__name__}, not {short(value)}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.name} lies between {self.low:g} and {self.high:g}; {short(value)} does not")
        return self.kind(value)


@dataclass(frozen=True)
class Rule:
    """A kind of forecast that tuning chooses from.

    parameters: its numbers; the first stands behind the rule's name, the others behind their own.
    build: the forecast, from the Gram matrices, the parameters, and whether EOC corrects its averages.
    strength: name of the parameter that the search makes larger and smaller; None if there is none.
    is_searched: whether the search may set the strength to a value.
    stronger: name of the rule that a larger strength leads to, if it is another one.
    """

    parameters: tuple[Parameter, ...]
    build: Callable[[Gram, Mapping[str, Any], bool], Forecast]
    strength: str | None = None
    is_searched: Callable[[float], bool] = lambda strength: True
    stronger: str | None = None


def _taylor(gram: Gram, numbers: Mapping[str, Any], centred: bool) -> Forecast:
    strength = numbers.get("feedback", 0.0)
    return Feedback(numbers["order"], strength) if strength else Taylor(numbers["order"])


def _fitted(gram: Gram, numbers: Mapping[str, Any], centred: bool) -> Forecast:
    return Fitted(gram, numbers["order"], numbers.get("feedback", 0.0), centred)


ORDER = Parameter("order", int, 0, 9)
FEEDBACK = Parameter("feedback", float, 0, 1, default=0.0)
THETA = Parameter("eoc", float, 0, 2)
"""Strength of EOC's correction, which every rule can have; below 2, where errors would grow from gap to gap."""

RULES: dict[str, Rule] = {
    "fitted": Rule((ORDER, FEEDBACK), _fitted, "feedback", lambda strength: 0 <= strength <= 1),
    "taylor": Rule((ORDER, FEEDBACK), _taylor, "feedback", lambda strength: 0 <= strength <= 1),
    "goc": Rule(
        (Parameter("eta", float, 0, 10),),
        lambda gram, numbers, centred: Gradient(numbers["eta"]),
        "eta",
        lambda eta: 0 < eta < 2,
    ),
    "reuse": Rule((), lambda gram, numbers, centred: Reuse(), stronger="goc"),
}
"""The rules of tuning itself, by name; `rule_named` also knows registered methods."""


def rule_named(name: str) -> Rule | None:
    """The rule of a name: of `RULES`, or the forecast of a registered method; None for another name."""
    if name in RULES:
        return RULES[name]
    entry = methods().get(name)
    return _rule_of(entry) if entry is not None else None


def _rule_of(entry: Registered) -> Rule | None:
    """The forecast of a registered method; None if it has other parameters than numbers, or forecasts nothing.

    The method's base is the schedule that tuning looks for. Its first real number is its strength.
    """
    numbers = [parameter for parameter in entry.parameters if parameter.kind in ("whole", "number")]
    others = [parameter for parameter in entry.parameters if parameter not in numbers and parameter.kind != "base"]
    if not entry.takes_base or any(parameter.required for parameter in others):
        return None

    def forecast(values: Mapping[str, Any]) -> Forecast | None:
        try:
            method = entry.function(explicit(compute=[0]), **values)
        except PlanError:
            return None
        return method.forecast if method.tokens is None and method.correction is None else None

    def build(gram: Gram, values: Mapping[str, Any], centred: bool) -> Forecast:
        built = forecast(values)
        if built is None:
            raise InputError(f"{entry.name} makes no forecast of {short(dict(values))}.")
        return built

    started = forecast({parameter.name: parameter.start for parameter in numbers if parameter.start is not None})
    if started is None or isinstance(started, Reuse):
        return None
    parameters = tuple(
        Parameter(
            parameter.name,
            int if parameter.kind == "whole" else float,
            -math.inf if parameter.range.least is None else parameter.range.least,
            math.inf if parameter.range.most is None else parameter.range.most,
            None if parameter.required else parameter.canonical(parameter.default),
        )
        for parameter in numbers
    )
    strength = next((parameter for parameter in parameters if parameter.kind is float), None)
    if strength is None:
        return Rule(parameters, build)
    return Rule(parameters, build, strength.name, lambda value: strength.low <= value <= strength.high)


def vocabulary() -> str:
    """How forecasts are written, as one line of text for messages and help."""
    texts = []
    registered = {name: rule for name in methods() if (rule := rule_named(name)) is not None}
    for name, rule in (RULES | registered).items():
        first = [f" {parameter.name.upper()}" for parameter in rule.parameters[:1]]
        others = [f"[, {parameter.name} {parameter.name.upper()}]" for parameter in rule.parameters[1:]]
        texts.append("".join([name, *first, *others]))
    return f"{'; '.join(texts)}; each also with ', eoc THETA' (under 2)"


@dataclass(frozen=True)
class ForecastSpec:
    """A forecast as tuning chooses it, with its correction and its refined weights.

    rule: its name in `RULES`, or that of a registered method.
    parameters: (name, value) pairs in the order of the rule's parameters; only the first one is there at its default.
    theta: strength of EOC's additive correction per channel, above 0 and below 2; None without correction.
    shifts: for every skipped step of a pattern, how much weight goes from the older to the newest feature; empty if
        the weights are not refined.
    scales: for every skipped step, by what share all weights grow; empty if the weights are not refined.
    thetas: for every gap of a pattern that a computed step follows, the share that is paid back in hindsight; empty
        without hindsight.
    """

    rule: str
    parameters: tuple[tuple[str, float], ...] = ()
    theta: float | None = None
    shifts: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    thetas: tuple[float, ...] = ()

    @classmethod
    def of(cls, rule: str, numbers: Mapping[str, Any], theta: float | None = None) -> ForecastSpec:
        """A rule with its numbers by name; ValueError for one that does not exist, is missing or is out of range."""
        if (entry := rule_named(rule)) is None:
            raise ValueError(f"{short(rule)} is no forecast rule")
        known = {parameter.name: parameter for parameter in entry.parameters}
        if unknown := [name for name in numbers if name not in known]:
            raise ValueError(f"{rule} has no {short(unknown[0])}")
        complete = {name: numbers.get(name, parameter.default) for name, parameter in known.items()}
        if missing := [name for name, value in complete.items() if value is None]:
            raise ValueError(f"{rule} needs its {missing[0]}")
        values = [parameter.check(complete[parameter.name]) for parameter in known.values()]
        written = [
            (parameter.name, value)
            for place, (parameter, value) in enumerate(zip(known.values(), values, strict=True))
            if place == 0 or value != parameter.default
        ]
        if theta is not None and not 0 < (theta := THETA.check(theta)) < THETA.high:
            raise ValueError(f"eoc lies above 0 and below 2; {theta:g} does not")
        return cls(rule, tuple(written), theta)

    @classmethod
    def parse(cls, text: str) -> ForecastSpec:
        """The forecast that a text names, such as ``fitted 1, feedback 0.8, eoc 0.6``; InputError for another text."""
        (rule, *first), *others = (part.split(" ") for part in text.split(", "))
        try:
            parameters = _rule(rule).parameters
            words = [[parameters[0].name, *first], *others] if first else others
            kinds = {parameter.name: parameter.kind for parameter in (*parameters, THETA)}
            numbers = {name: _number(number, kinds[name]) for name, number in words}
            if len(numbers) < len(words):
                raise ValueError("it gives a number twice")
            theta = numbers.pop(THETA.name, None)
            return cls.of(rule, numbers, theta)
        except (LookupError, ValueError) as error:
            raise InputError(f"There is no forecast {text!r}; there are: {vocabulary()}.") from error

    def __str__(self) -> str:
        behind_the_rule = [parameter.name for parameter in _rule(self.rule).parameters[:1]]
        words = [" ".join([self.rule, *(f"{value:g}" for name, value in self.parameters if name in behind_the_rule)])]
        words += [f"{name} {value:g}" for name, value in self.parameters if name not in behind_the_rule]
        if self.theta is not None:
            words.append(f"{THETA.name} {self.theta:g}")
        return ", ".join([*words, *["refined"] * self.is_refined, *["hindsight"] * bool(self.thetas)])

    def as_document(self) -> dict[str, Any]:
        """The forecast as plain data: the rule, its numbers by name, ``eoc``, ``shifts`` and ``scales``."""
        document: dict[str, Any] = {"rule": self.rule, **dict(self.parameters)}
        if self.theta is not None:
            document[THETA.name] = self.theta
        if self.is_refined:
            document |= {"shifts": list(self.shifts), "scales": list(self.scales)}
        if self.thetas:
            document["thetas"] = list(self.thetas)
        return document

    @classmethod
    def from_document(cls, document: Any) -> ForecastSpec:
        """The forecast of such a document; ValueError for a key, a type or a value that is none of it."""
        if not isinstance(document, dict) or not isinstance(document.get("rule"), str):
            raise ValueError(f"a forecast is an object with a rule, not {short(document)}")
        numbers = dict(document)
        adjustments = [numbers.pop(name, []) for name in ("shifts", "scales", "thetas")]
        for values in adjustments:
            if not isinstance(values, list) or not all(type(value) is float for value in values):
                raise ValueError(f"shifts, scales and thetas are lists of numbers, not {short(values)}")
        shifts, scales, thetas = map(tuple, adjustments)
        if len(shifts) != len(scales):
            raise ValueError(f"there are {len(shifts)} shifts for {len(scales)} scales")
        rule, theta = numbers.pop("rule"), numbers.pop(THETA.name, None)
        spec = cls.of(rule, numbers, theta)
        return replace(spec, shifts=shifts, scales=scales, thetas=thetas)

    @property
    def is_refined(self) -> bool:
        """Whether its weights are refined, which fits them to one pattern."""
        return bool(self.shifts)

    @property
    def unrefined(self) -> ForecastSpec:
        """The forecast before its weights were refined, without hindsight."""
        return replace(self, shifts=(), scales=(), thetas=())

    def forecast(self, gram: Gram) -> Forecast:
        """The forecast without refined weights and without correction."""
        return _rule(self.rule).build(gram, dict(self.parameters), self.theta is not None)

    def correction(self, gram: Gram) -> Drift | None:
        """EOC's additive correction, per channel, on the averages of the same samples; None without one."""
        return Drift(gram, self.theta, "additive", "all", "channel") if self.theta is not None else None

    def method(self, pattern: str, gram: Gram) -> Method:
        """The method of a pattern with this forecast, its correction and its refined weights.

        It has a recipe if nothing in it is fitted, corrected or refined.
        """
        forecast, adjustments = self.forecast(gram), self.adjustments(pattern)
        base, correction = explicit(pattern=pattern), self.correction(gram)
        method = Method(
            f"tuned({pattern!r}, {str(self)!r})",
            base.schedule,
            Adjusted(forecast, adjustments) if adjustments else forecast,
            correction=correction,
            hindsight=Hindsight(0.0, self.thetas) if self.thetas else None,
        )
        is_plain = not adjustments and correction is None and not self.thetas
        plain = with_forecast(base, forecast) if is_plain else None
        return method.with_recipe(method.name, plain.recipe if plain is not None else None)

    def strengthened(self, by: float) -> ForecastSpec | None:
        """The forecast with its feedback, or its eta, larger by so much; None where the search does not go."""
        name = _rule(self.rule).stronger or self.rule
        strength, is_searched = _rule(name).strength, _rule(name).is_searched
        if strength is None:
            return None
        numbers = dict(self.parameters)
        value = round(float(numbers.get(strength, 0)) + by, 2)
        return self.of(name, numbers | {strength: value}, self.theta) if is_searched(value) else None

    def corrected(self, by: float) -> ForecastSpec | None:
        """The forecast with EOC's theta larger by so much; None outside of 0 to 2.

        A forecast without correction gets a theta of 1, which pays back all that is missed on the averages, or of 0.5
        if ``by`` is negative.
        """
        theta = round(self.theta + by, 2) if self.theta is not None else 1.0 if by > 0 else 0.5
        return replace(self.unrefined, theta=theta) if 0 < theta < THETA.high else None

    def adjustments(self, pattern: str) -> Adjustments:
        """The adjustment of each way and skipped step of a pattern; empty if the weights are not refined."""
        by_way: dict[Way, tuple[float, ...]] = {"shift": self.shifts, "scale": self.scales}
        return {
            (way, step): number
            for way in WAYS
            for step, number in zip(patterns.skipped(pattern), by_way[way], strict=False)
        }

    def adjusted(self, pattern: str, by: Adjustments) -> ForecastSpec:
        """The forecast with the weights of a pattern's skipped steps adjusted further, to four decimals."""
        before = self.adjustments(pattern)
        shifts, scales = (
            tuple(
                round(before.get((way, step), 0.0) + by.get((way, step), 0.0), 4) + 0.0
                for step in patterns.skipped(pattern)
            )
            for way in WAYS
        )
        return replace(self, shifts=shifts, scales=scales)


def _rule(name: str) -> Rule:
    """The rule of a name; LookupError if there is none."""
    if (rule := rule_named(name)) is None:
        raise LookupError(name)
    return rule


def _number(text: str, kind: type[int] | type[float]) -> float:
    digits = text.replace(".", "", 1) if kind is float else text
    if not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{short(text)} is no number of type {kind.__name__}")
    return kind(text)


@dataclass(frozen=True)
class Adjusted:
    """A forecast whose weights are adjusted step by step.

    A shift moves weight from the second newest to the newest feature, wherever two or more are read; a scale then makes
    all weights larger by a share.

    forecast: the forecast before.
    by: the adjustments of ways and steps.
    """

    forecast: Forecast
    by: Adjustments

    def reads(self, step: int, computed: Sequence[int], site: Site) -> Mapping[int, float]:
        reads = dict(self.forecast.reads(step, computed, site))
        if len(reads) > 1:
            newest, older, *_ = reads
            reads[newest] += self.by.get(("shift", step), 0.0)
            reads[older] -= self.by.get(("shift", step), 0.0)
        return {source: weight * (1 + self.by.get(("scale", step), 0.0)) for source, weight in reads.items()}


def scheduling_forecast(forecast: Forecast) -> Forecast:
    """The forecast under which dynamic programming looks for a schedule, which reads computed features only.

    Feedback and GOC also read what was given out before, without end; the Taylor forecast below takes their place.
    """
    if isinstance(forecast, Feedback):
        return Taylor(min(forecast.order, 2))
    return Taylor(1) if isinstance(forecast, Gradient) else forecast
