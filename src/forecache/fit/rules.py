"""Fits of rules that decide while a plan runs: TeaCache's polynomial, MagCache's ratios, and thresholds.

B batch, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor, nn

from forecache.errors import InputError, PlanError, StatisticsError
from forecache.methods import registry
from forecache.models.chain import chain_of
from forecache.models.find import find
from forecache.parts.bounds import Decision
from forecache.plan.method import Method
from forecache.plan.online import known_decisions
from forecache.plan.recipe import Recipe
from forecache.runtime.apply import apply
from forecache.runtime.deciding import first_attention, first_tensor, stream_of
from forecache.sampling import sources

DEGREE = 4
"""Of TeaCache's polynomial."""
TRIES = 12
"""Thresholds that are tried for a number of computed steps."""


@dataclass(frozen=True)
class Rules:
    """What rules that decide while a plan runs need to know of a model, a scheduler and a number of steps.

    num_steps: model calls of a run
    samples: number of samples that were measured
    coefficients: of TeaCache's polynomial, the highest power first: from the relative change of the first block's
        modulated input to that of the model's output, by least squares over all steps and batches
    r2: share of the variance of the output's changes that the polynomial explains, at most 1
    changes: mean|v_t - v_s| / mean|v_t| of the model's outputs v at all pairs of steps s < t, in the order (0, 1),
        (0, 2), ..., (1, 2), ..., mean over batches; for `forecache.adaptive`
    ratios: MagCache's ratio of every step, 1 for the first: mean over tokens and samples of what the blocks add to a
        token, as an L2 norm, over what they added at the step before
    """

    num_steps: int
    samples: int
    coefficients: tuple[float, ...]
    r2: float
    ratios: tuple[float, ...]
    changes: tuple[float, ...]


@dataclass
class _Seen:
    """What the calls of one generation showed, call by call.

    modulated, outputs: the first block's modulated input and the model's output
    residuals: L2 norm of what the blocks added to every token (B, N)
    before: the stream in front of the blocks in the call in progress
    """

    modulated: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    before: Tensor | None = None


def measure_rules(
    target: Any,
    conditions: Sequence[sources.Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 8,
) -> Rules:
    """Measure what TeaCache and MagCache need, over one sample per condition, in one pass without a cache.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `forecache.sampling.sources.Source`
    conditions: class labels or texts, one for each sample
    num_steps: model calls of a run
    guidance: classifier-free guidance scale
    seed: of the noise
    batch: samples of a generation

    Where the model is called several times a step, the first call is measured. Raises InputError without conditions,
    StatisticsError for a model whose calls are not those of ``num_steps``, and SiteError or RunError for a model whose
    blocks or attention are not found.
    """
    source = sources.as_source(target)
    labels = sources.check_conditions(source, conditions)
    if not labels or batch < 1 or num_steps < 2:
        raise InputError(
            f"A fit needs conditions, a batch from 1 on and two steps; there are {len(labels)}, batch={batch} and "
            f"num_steps={num_steps}."
        )
    model = find(source.target)
    changes: list[tuple[float, float]] = []
    ratios: list[list[float]] = []
    pairs: list[list[float]] = []
    for first in range(0, len(labels), batch):
        seen = _Seen()
        with ExitStack() as stack:
            _watch(model, seen, stack)
            how = sources.Sampling(num_steps, guidance, seed)
            source.generate(list(labels[first : first + batch]), how, first)
        lanes, rest = divmod(len(seen.outputs), num_steps)
        if rest or not lanes:
            raise StatisticsError(
                f"The model was called {len(seen.outputs)} times in a run of {num_steps} steps: give the number of "
                "model calls that a run makes as num_steps."
            )
        modulated, outputs, norms = (values[::lanes] for values in (seen.modulated, seen.outputs, seen.residuals))
        changes += [
            (_change(modulated[step], modulated[step - 1]), _change(outputs[step], outputs[step - 1]))
            for step in range(1, num_steps)
        ]
        ratios.append([float((norms[step] / (norms[step - 1] + 1e-8)).mean()) for step in range(1, num_steps)])
        pairs.append([_share(earlier, later) for earlier, later in combinations(outputs, 2)])
    coefficients, r2 = _polynomial(changes)
    means = map(float, np.mean(ratios, axis=0))
    return Rules(num_steps, len(labels), coefficients, r2, (1.0, *means), tuple(map(float, np.mean(pairs, axis=0))))


def _watch(model: nn.Module, seen: _Seen, stack: ExitStack) -> None:
    """Hooks of torch that note what a run shows; the stack takes them off."""
    blocks = chain_of(model).blocks
    first, last = blocks[0].module, blocks[-1]

    def on_first(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.before = stream_of(module, args, kwargs).detach().clone()

    def on_attention(module: nn.Module, args: Any, kwargs: Any) -> None:
        values = (kwargs["hidden_states"], *args) if "hidden_states" in kwargs else (*args, *kwargs.values())
        seen.modulated.append(first_tensor(values).detach().clone())

    def on_last(module: nn.Module, args: Any, output: Any) -> None:
        assert seen.before is not None
        after = last.streams_of(output, dict.fromkeys(range(len(last.inputs)), seen.before)) if last.inputs else {}
        place = last.inputs.index("hidden_states") if "hidden_states" in last.inputs else 0
        stream = after.get(place, first_tensor([output] if isinstance(output, Tensor) else output))
        seen.residuals.append((stream - seen.before).float().norm(dim=-1))

    def on_model(module: nn.Module, args: Any, output: Any) -> None:
        values = (
            [output] if isinstance(output, Tensor) else list(output.values() if hasattr(output, "values") else output)
        )
        seen.outputs.append(first_tensor(values).detach().clone())

    for handle in (
        first.register_forward_pre_hook(on_first, with_kwargs=True),
        first_attention(first).register_forward_pre_hook(on_attention, with_kwargs=True),
        last.module.register_forward_hook(on_last),
        model.register_forward_hook(on_model),
    ):
        stack.callback(handle.remove)


def _change(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def _share(earlier: Tensor, later: Tensor) -> float:
    """The change between two steps as a share of the later one, as `Followed` measures it."""
    return float((later - earlier).abs().mean() / later.abs().mean())


def _polynomial(changes: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], float]:
    """The polynomial of least squares, the highest power first, and the share of variance that it explains."""
    x, y = np.asarray(changes, dtype=np.float64).reshape(-1, 2).T
    degree = min(DEGREE, max(0, len(set(x.tolist())) - 1))
    fitted = np.polynomial.Polynomial.fit(x, y, degree).convert()
    coefficients = np.zeros(DEGREE + 1)
    coefficients[: len(fitted.coef)] = fitted.coef
    spread = float(np.square(y - y.mean()).sum())
    missed = float(np.square(y - fitted(x)).sum())
    return tuple(float(number) for number in coefficients[::-1]), 1 - missed / spread if spread else 1.0


# ---- thresholds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """A threshold for a number of computed steps.

    method: the method with it
    threshold: the threshold
    computed: mean number of computed steps with it over the samples
    spread: the fewest and the most computed steps of a batch
    """

    method: Method
    threshold: float
    computed: float
    spread: tuple[int, int]


def threshold_for(
    method: Method,
    target: Any,
    conditions: Sequence[sources.Condition],
    *,
    computed: float,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 1,
    tries: int = TRIES,
) -> Threshold:
    """The threshold with which a method computes a wanted mean number of steps, found by sampling with it.

    method: a registered method on a base that decides while it runs, such as `forecache.easycache`; its threshold is
        where the search starts, its bounds stay
    target, conditions, guidance, seed: of the samples, as for `forecache.calibrate`
    computed: mean number of computed steps that is wanted, at least 1 and at most ``num_steps``
    num_steps: model calls of a run
    batch: samples that decide together, 1 by default
    tries: thresholds that are tried; each samples all conditions

    The nearest of the tried thresholds is given. Raises PlanError for a method without a threshold to look for, and for
    a number of steps that its bounds do not allow.
    """
    source = sources.as_source(target)
    labels = sources.check_conditions(source, conditions)
    if not labels or batch < 1 or tries < 1:
        raise InputError(f"A threshold needs conditions, a batch and tries from 1 on; {len(labels)}, {batch}, {tries}.")
    recipe = method.recipe
    if recipe is None or method.decider is None or _threshold_of(recipe) is None:
        raise PlanError(
            f"{method.name} has no threshold to look for: give a registered method that decides while it runs, such as "
            "forecache.easycache(0.1)."
        )
    if not 1 <= computed <= num_steps:
        raise PlanError(f"computed= is a mean number of steps from 1 to {num_steps}; {computed!r} was asked for.")
    how = sources.Sampling(num_steps, guidance, seed)

    def tried(threshold: float) -> Threshold:
        own = registry.build(_with_threshold(recipe, threshold))
        counts: list[int] = []
        with apply(source.target, own, num_steps=num_steps) as session:
            for first in range(0, len(labels), batch):
                source.generate(list(labels[first : first + batch]), how, first)
                counts.append(known_decisions(session.decided().rows).count(Decision.COMPUTE))
        return Threshold(own, threshold, sum(counts) / len(counts), (min(counts), max(counts)))

    return _search(tried, computed, _threshold_of(recipe) or 0.1, tries)


def _search(tried: Callable[[float], Threshold], computed: float, start: float, tries: int) -> Threshold:
    """The nearest of some thresholds: the scale is found by doubling, then the interval is halved."""
    best: Threshold | None = None
    low, high = 0.0, math.inf
    threshold = start
    for _ in range(tries):
        result = tried(threshold)
        if best is None or abs(result.computed - computed) < abs(best.computed - computed):
            best = result
        if result.computed == computed:
            break
        if result.computed > computed:
            low = threshold
        else:
            high = threshold
        threshold = low * 2 if high == math.inf else (low + high) / 2
    assert best is not None
    return best


def _threshold_of(recipe: Recipe) -> float | None:
    """The threshold of the base of a recipe; None where it has none."""
    *_, (_, base) = registry.links(recipe)
    return base.get("threshold")


def _with_threshold(recipe: Recipe, threshold: float) -> Recipe:
    if "base" in recipe:
        return {**recipe, "base": _with_threshold(recipe["base"], threshold)}
    return {**recipe, "threshold": threshold}
