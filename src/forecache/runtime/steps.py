"""The step of a model call: what the plan says, or what is decided about it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forecache.errors import RunError
from forecache.runtime import calls
from forecache.runtime.calls import Call
from forecache.runtime.deciding import Deciding, sample_of
from forecache.runtime.lanes import Lane, Local
from forecache.runtime.per_sample import divided, samples_of
from forecache.runtime.program import Step

Noise = Callable[[float | None, float | None], float | None]
"""The share of noise in a sample, from the timestep and the sigma of a call, as `forecache.runtime.host.Host.noise`."""


def begin_step(lane: Lane, local: Local, noise: Noise) -> Step:
    """Begin the step of the model call in progress, which belongs to this lane.

    All that is decided at a step is decided here, or where the call reaches the first block that may be skipped.
    noise: says the noise level to rules that ask for it.
    """
    sample = lane.signature.sample
    image = sample[0] if sample is not None else None
    deciding, executor = lane.deciding, lane.executor
    if lane.left_at is not None and lane.step >= lane.left_at:
        return _computed(lane, image)
    if deciding is None:
        step = lane.executable.steps[lane.step]
        executor.begin(step, image)
        return step
    call = local.call
    assert call is not None
    if lane.executable.options.per_sample and lane.step == 1 and deciding.is_open:
        _decide_apart(lane, deciding, call)
    if lane.samples is not None:
        if not lane.samples.begin(call.arguments, call.value, lambda: _noise(lane, call, noise)):
            _check_eager(lane, local)
        lane.executor = lane.samples.whole(image)
        return lane.executor.step
    decided = deciding.begin(call.arguments, call.value, lambda: _noise(lane, call, noise))
    executor.begin(decided or lane.executable.open_step, image)
    if decided is None:
        _check_eager(lane, local)
        assert lane.executable.first is not None
        executor.deferred = deciding.inside(executor, lane.executable.first)
    return executor.step


def _decide_apart(lane: Lane, deciding: Deciding, call: Call) -> None:
    """Let the samples of a lane decide each for itself, from its second call on: now it shows which rows are one."""
    leaders = lane.leader.samples if lane.leader is not None else None
    if lane.leader is not None and leaders is None:
        return
    whole = sample_of(call.arguments, call.value)
    lane.samples = samples_of(lane.executable.layout, lane.executable, deciding, leaders, whole, lane.cache)
    if lane.samples is not None and lane.record is not None:
        lane.record.divide(
            lane,
            [
                (sample, divided(call.arguments, sample.places, len(whole), lane.executable.layout.model))
                for sample in lane.samples.samples
            ],
        )


def _computed(lane: Lane, image: Any) -> Step:
    """Begin a step of a generation that has left what was calibrated: all is computed."""
    if lane.deciding is not None and lane.deciding.is_open:
        step = lane.deciding.compute()
    else:
        step = lane.executable.open_step
        lane.clear()
    lane.executor.begin(step, image)
    return step


def look_of(lane: Lane) -> Step | None:
    """The estimate of the lane's step, which is computed afterwards; None where nothing is to be estimated."""
    has_left = lane.left_at is not None and lane.step >= lane.left_at
    return None if has_left else lane.executable.look_steps.get(lane.step)


def begin_look(lane: Lane, look: Step) -> None:
    """Begin the estimate of the lane's step, which is computed afterwards."""
    sample = lane.signature.sample
    lane.executor.begin(look, sample[0] if sample is not None else None)


def _noise(lane: Lane, call: Call, noise: Noise) -> float:
    """The share of noise in the sample of a call, for rules that filter by it."""
    known = call.told.timestep is None and lane.run.timestep(lane.step) is not None
    timestep = lane.run.timestep(lane.step) if known else calls.as_number(call.time)
    level = noise(timestep, calls.as_number(call.told.sigma))
    if level is None:
        raise RunError(
            "This plan's rule needs the noise level of every step, and no scheduler says it: apply the plan to the "
            "pipeline, or to an object with the `transformer` and the `scheduler` of the loop, or tell it, "
            "requests.call(key, sigma=...)."
        )
    return level


def _check_eager(lane: Lane, local: Local) -> None:
    """Raises RunError for a decision in the middle of a call that is compiled as one graph."""
    if local.compiler is not None or torch.compiler.is_compiling():
        raise RunError(
            f"{lane.plan.provenance.get('method', 'This plan')} decides in the middle of a model call, and a compiled "
            "step is one graph: do not compile the model, or take a rule that decides before the call, such as "
            "easycache or seacache."
        )
