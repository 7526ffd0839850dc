"""What somebody picks on the comparison page, and the plan, the images and the command that it stands for."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from forecache.cli.options import BaseName, FormName, MethodName, Options
from forecache.errors import InputError
from forecache.plan.method import Method
from forecache.sampling import runs
from forecache.sampling.sources import Source
from forecache.zoo import bundled

NONE = "none"
"""The correction that corrects nothing: plain reuse."""
MOST_IMAGES, MOST_TEXT = 16, 4000

BASES: Mapping[str, str] = MappingProxyType(
    {
        "fora": "FORA: every n-th step",
        "explicit": "by hand",
        "l2c": "Learning-to-Cache: a router",
        "smoothcache": "SmoothCache: small changes",
    }
)
"""Which cells are skipped."""
CORRECTIONS: Mapping[str, str] = MappingProxyType(
    {
        NONE: "none: reuse",
        "goc": "GOC: last change, times eta",
        "taylorseer": "TaylorSeer: Taylor series",
        "eoc": "EOC: the usual drift",
        "procache": "ProCache: some tokens",
        "toca": "ToCa: some tokens, all blocks",
    }
)
"""What stands in the place of a skipped cell."""
USES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fora": ("interval",),
        "explicit": ("by_hand",),
        "l2c": ("router",),
        "smoothcache": ("change",),
        "goc": ("eta",),
        "taylorseer": ("order",),
        "eoc": ("form", "theta"),
        "procache": ("share",),
        "toca": ("share",),
        NONE: (),
    }
)
"""What else is to be picked for a base or a correction."""
ROUTERS = tuple(bundled.routers())
LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "interval": (1, 50),
        "change": (0, 10),
        "eta": (-4, 4),
        "order": (0, 4),
        "theta": (-10, 10),
        "share": (0, 1),
        "steps": (2, 250),
        "guidance": (1, 30),
        "seed": (0, 2**63 - 1),
    }
)
"""The least and the most of every number; a page's own sliders may be narrower."""
WHOLE = ("interval", "order", "steps", "seed")


def bases(model: str) -> tuple[str, ...]:
    """The bases that can be picked for a model: routers and statistics are there for the bundled ones alone."""
    own = bundled.record(model) if model in bundled.models() else None
    lacking = {"l2c": own is None or not own.routers, "smoothcache": own is None or not own.statistics}
    return tuple(name for name in BASES if not lacking.get(name, False))


def corrections(model: str) -> tuple[str, ...]:
    """The corrections that can be picked for a model."""
    return tuple(name for name in CORRECTIONS if name != "eoc" or model in bundled.models())


@dataclass(frozen=True)
class Choices:
    """What was picked. images: classes with commas between, or texts, one a line. by_hand: skipped steps as ``1,3,5``.

    by_hand may be a pattern as well, ``#.#.``, one sign a step. What the base and the correction do not use is ignored.
    Raises InputError for a name that the model does not have, and for a number outside of its `LIMITS`.
    """

    model: str = bundled.DEFAULT
    images: str = bundled.record(bundled.DEFAULT).example
    base: str = "fora"
    correction: str = "goc"
    interval: int = 2
    by_hand: str = ""
    router: str = ROUTERS[0]
    change: float = 0.3
    eta: float = 0.8
    order: int = 1
    form: str = "relative"
    theta: float = 0.01
    share: float = 0.25
    steps: int = 20
    guidance: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        offered = {"base": bases(self.model), "correction": corrections(self.model), "router": ROUTERS}
        for name, known in (offered | {"form": tuple(map(str, FormName))}).items():
            if getattr(self, name) not in known:
                raise InputError(f"For {self.model} the {name} is one of {', '.join(known)}; not {_short(self, name)}.")
        for name in (*self.used, "steps", "guidance", "seed"):
            if name in LIMITS:
                _check(name, getattr(self, name))
        if not isinstance(self.images, str) or len(self.images) > MOST_TEXT:
            raise InputError(f"What the images are of takes at most {MOST_TEXT} characters.")

    @property
    def used(self) -> tuple[str, ...]:
        """The names of what the base and the correction use."""
        return (*USES[self.base], *USES[self.correction])

    def method(self) -> Method:
        """The method that was picked, as `forecache sample` builds it."""
        made = Options(**self._given()).build(self.steps)
        assert made is not None
        return made

    def settings(self, source: Source) -> runs.Settings:
        """What is sampled, all in one model call a step; InputError for a class that there is not."""
        if source.classes:
            conditions: tuple[int | str, ...] = runs.parse_labels(self.images, source)
        else:
            conditions = tuple(line.strip() for line in self.images.splitlines() if line.strip())
        if not 1 <= len(conditions) <= MOST_IMAGES:
            raise InputError(f"Ask for 1 to {MOST_IMAGES} images at a time; these are {len(conditions)}.")
        return runs.Settings(conditions, self.steps, float(self.guidance), self.seed, MOST_IMAGES)

    def command(self, settings: runs.Settings) -> str:
        """The command that makes the same images."""
        texts = [each for each in settings.conditions if isinstance(each, str)]
        wanted = [word for each in texts for word in ("--prompt", each)]
        wanted = wanted or ["--labels", ",".join(map(str, settings.conditions))]
        options = [word for name, value in self._given().items() for word in (f"--{name}", _word(value))]
        numbers = ["--steps", str(self.steps), "--guidance", _word(float(self.guidance)), "--seed", str(self.seed)]
        return shlex.join(["forecache", "sample", "--model", self.model, *wanted, *options, *numbers, "--compare"])

    def _given(self) -> dict[str, Any]:
        """The options of the command line that say the same, by name."""
        alone = self.correction == NONE
        given: dict[str, Any] = {"method": MethodName(self.base if alone else self.correction)}
        given |= {} if alone else {"base": BaseName(self.base)}
        given |= {name: getattr(self, name) for name in self.used}
        if "by_hand" in given:
            given |= _by_hand(given.pop("by_hand"))
        if "form" in given:
            given["form"] = FormName(self.form)
        if self.base == "smoothcache" or self.correction == "eoc":
            given["stats"] = self.model
        return given


def _by_hand(text: str) -> dict[str, str]:
    """Skipped steps or a pattern, whichever it is."""
    bare = re.sub(r"\s", "", text)
    if not bare:
        raise InputError("The steps to skip are empty: give their numbers, such as 1,3,5, or a pattern, such as #.#.#.")
    return {"pattern": bare} if set(bare) <= set("#.") else {"skip": bare.strip(",")}


def _check(name: str, value: Any) -> None:
    least, most = LIMITS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (name in WHOLE and not isinstance(value, int)):
        kind = "whole number" if name in WHOLE else "number"
        raise InputError(f"{name} is a {kind} from {least} to {most}; not {value!r}.")


def _short(choices: Choices, name: str) -> str:
    return repr(str(getattr(choices, name))[:40])


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
