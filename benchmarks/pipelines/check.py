"""The checks of one row: a pipeline, a variant of its call, and what plans do to both.

A row is *right* if
(a) a plan that computes everything gives the bare run bit for bit,
(b) FORA at interval 2 gives what the hand-written FORA gives, up to rounding, and not the bare run,
(c) as many sites were computed and skipped as there,
(d) a second run gives the same bits,
(e) nothing is left: types, instance dictionaries, hooks, forwards, tensors, and the bare run's bits.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import forecache as fc
from forecache.errors import ForecacheError, SiteError
from forecache.models.find import layout as find_layout
from pipelines.reference import Run, Sites, counted, fora

ROUNDING = 1e-3
"""Largest distance of two runs that differ by rounding alone, as a share of what reuse changes."""


@dataclass(frozen=True)
class Subject:
    """A pipeline, or a loop around a transformer, that can be sampled from.

    pipe: what plans are applied to
    models: the transformers that its runs call
    sample: one run, from the same noise each time, to whatever it gives out
    steps: the number of steps that the call asks for
    reference: the sites of the hand-written FORA
    patterns: module sites that a user names for a class that the library does not know; None for a known one
    level: of sites that a user asks for from the start; None for the finest
    """

    pipe: Any
    models: Sequence[nn.Module]
    sample: Callable[[], Any]
    steps: int
    reference: Sites
    patterns: tuple[str, ...] | None = None
    level: Any = None


@dataclass
class Row:
    """A row of the table.

    name: the pipeline's class
    variant: default, guided or batch of two
    verdict: right, refused, not built, or WRONG
    reason: the sentence of a refusal, why it is not built, or what is wrong
    level: branches, blocks or modules
    followed: what errors advised, and the user then did
    numbers: calls, computed, skipped, the distance to the hand-written FORA, what reuse changes
    """

    name: str
    variant: str
    verdict: str = "WRONG"
    reason: str = ""
    transformer: str = ""
    level: str = ""
    followed: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


class WrongError(Exception):
    """A check that failed."""


def check(subject: Subject, row: Row) -> None:
    """Fill the row in."""
    try:
        bare = _run(subject)
        again = _run(subject)
        with counted(subject.models) as counts:
            _run(subject)
    except Exception as error:
        row.verdict, row.reason = "not built", does_not_run(error)
        return
    if not _equal(bare, again):
        row.verdict, row.reason = "not built", "two runs without a plan differ"
        return
    if not all(torch.isfinite(part).all() for part in bare):
        row.verdict, row.reason = "not built", "the bare run of random weights is not finite"
        return
    if not counts.calls:
        row.verdict, row.reason = "not built", "no transformer was called"
        return
    before, tensors = _state(subject), _tensors()
    try:
        _planned(subject, row, bare, counts)
    except ForecacheError as error:
        row.verdict, row.reason = "refused", _sentence(error)
    except WrongError as wrong:
        row.verdict, row.reason = "WRONG", str(wrong)
    except Exception as error:
        row.verdict, row.reason = "WRONG", f"raises {_sentence(error)}"
    else:
        row.verdict = "right"
    if row.verdict != "WRONG":
        try:
            _clean(subject, bare, before, tensors)
        except WrongError as wrong:
            row.verdict, row.reason = "WRONG", str(wrong)


def _planned(subject: Subject, row: Row, bare: list[Tensor], counts: Run) -> None:
    request = Request(subject.pipe, subject.steps)
    computed, _ = _followed(subject, row, request, 1)
    if not _equal(computed, bare):
        raise WrongError(f"(a) a plan that computes everything differs from no plan by {_distance(computed, bare):.1e}")
    before = _state(subject)
    ours, stats = _followed(subject, row, request, 2)
    if (left := _state(subject)) != before:
        raise WrongError(f"(e) left behind: {_difference(before, left)}")
    sites = subject.reference
    with fora(subject.models, sites) as run:
        theirs = _run(subject)
    scale, far = _distance(theirs, bare), _distance(ours, theirs)
    row.numbers = {"calls": counts.calls, "computed": stats.computed, "skipped": stats.skipped}
    row.numbers |= {"distance": far, "effect": scale}
    if stats.skipped == 0:
        raise WrongError("(c) nothing was skipped, without a word")
    if not scale > 0:
        raise WrongError("(b) reuse changes nothing here, so that the check is empty")
    if not far <= ROUNDING * scale:
        raise WrongError(f"(b) FORA is {far:.1e} from the hand-written one; reuse changes {scale:.1e}")
    if (stats.computed, stats.skipped) != (run.computed, run.reused):
        raise WrongError(
            f"(c) {stats.computed} computed and {stats.skipped} skipped, {run.computed} and {run.reused} by hand"
        )
    second, _ = _followed(subject, row, request, 2)
    if not _equal(ours, second):
        raise WrongError(f"(d) a second run of FORA differs by {_distance(ours, second):.1e}")


@dataclass
class Request:
    """What the user asks for, after the advice of errors.

    target: what the plan is applied to
    steps: of the plan's grid
    sites: patterns of modules; None for the sites of the family
    lanes: names of the calls of a step
    """

    target: Any
    steps: int
    sites: tuple[str, ...] | None = None
    lanes: tuple[str, ...] = ()


def _followed(subject: Subject, row: Row, request: Request, interval: int) -> tuple[list[Tensor], fc.runtime.Stats]:
    """A run under FORA; what an error advises is done, as a user would, up to four times."""
    attempt = 0
    while True:
        try:
            sites = subject.patterns if subject.level == "modules" else request.sites
            grid = fc.grid(request.target, request.steps, sites=sites, level=subject.level)
            row.level = "modules" if sites else subject.level or _level(subject.models[0])
            plan = fc.fora(interval).plan(grid)
            with fc.apply(request.target, plan, lanes=request.lanes) as session:
                output = _run(subject)
            return output, session.stats
        except ForecacheError as error:
            attempt += 1
            if attempt > 4 or not _advised(str(error), error, subject, request, row):
                raise


def _advised(sentence: str, error: ForecacheError, subject: Subject, request: Request, row: Row) -> bool:
    """Do what a refusal advises; False if there is nothing new to do."""
    steps = re.search(r"num_steps=(\d+)", sentence)
    if "pass the diffusion transformer itself" in sentence and request.target is not subject.models[0]:
        request.target = subject.models[0]
        row.followed.append("on the transformer")
    elif isinstance(error, SiteError) and request.sites is None and subject.patterns:
        request.sites = subject.patterns
        row.followed.append("sites")
    elif steps and int(steps[1]) != request.steps:
        request.steps = int(steps[1])
        row.followed.append(f"num_steps={steps[1]}")
    elif "lanes=" in sentence and len(request.lanes) < 4:
        request.lanes = ("cond", "uncond", "third", "fourth")[: max(2, len(request.lanes) + 1)]
        row.followed.append(f"lanes of {len(request.lanes)}")
    else:
        return False
    return True


def _level(model: nn.Module) -> str:
    return find_layout(model).level


@torch.no_grad()
def _run(subject: Subject) -> list[Tensor]:
    """What a run gives out, as tensors."""
    torch.manual_seed(0)
    np.random.seed(0)
    return list(_parts(subject.sample()))


def _parts(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value.detach().double().clone()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        yield torch.from_numpy(value.copy()).double()
    elif isinstance(value, Image.Image):
        yield torch.from_numpy(np.array(value)).double()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _parts(part)


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    if [part.shape for part in one] != [part.shape for part in other]:
        return float("inf")
    return max((float((a - b).abs().max()) for a, b in zip(one, other, strict=True) if a.numel()), default=0.0)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ForecacheError) else f"{type(error).__name__}: {text}"[:300]


def does_not_run(error: Exception) -> str:
    """Why a pipeline is not built, from what it raises without a plan."""
    return f"no small form that runs is written: {type(error).__name__}, {' '.join(str(error).split())}"[:200]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")


def _state(subject: Subject) -> dict[str, Any]:
    """Types, names and functions of instance dictionaries, and hooks, of the pipeline and all its parts."""
    owners = {"pipe": subject.pipe}
    owners |= {name: part for name, part in getattr(subject.pipe, "components", {}).items() if part is not None}
    owners |= {f"model {number}": model for number, model in enumerate(subject.models)}
    state: dict[str, Any] = {}
    for name, owner in owners.items():
        modules = owner.named_modules() if isinstance(owner, nn.Module) else [("", owner)]
        for path, module in modules:
            own = getattr(module, "__dict__", {})
            functions = {key: id(value) for key, value in own.items() if callable(value) and not _is_part(value)}
            hooks = [sorted(map(id, own[key].values())) for key in HOOKS if key in own]
            state[f"{name}.{path}"] = type(module), sorted(own), functions, hooks
    return state


def _is_part(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    places = [place for place in before | after if before.get(place) != after.get(place)]
    return ", ".join(places[:3])


def _tensors() -> int:
    """The number of tensors that hold memory."""
    gc.collect()
    return sum(type(part) is Tensor and not part.is_meta for part in gc.get_objects())


def _clean(subject: Subject, bare: list[Tensor], before: dict[str, Any], tensors: int) -> None:
    if (left := _state(subject)) != before:
        raise WrongError(f"(e) left behind: {_difference(before, left)}")
    after = _run(subject)
    if not _equal(after, bare):
        raise WrongError(f"(e) a run after the plans differs from the one before by {_distance(after, bare):.1e}")
    del after
    if (more := _tensors() - tensors) > 0:
        raise WrongError(f"(e) {more} tensors more than before")


__all__ = ["Row", "Subject", "check", "does_not_run"]
