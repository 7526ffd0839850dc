"""Payback: a scheduler's step that moves the sample by what was found, in hindsight, to have been off before it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.parts.responses import Response, check_linear, history_of, responses, set_history
from forecache.plan.plan import Plan
from forecache.runtime import counting
from forecache.runtime.known import Known
from forecache.runtime.lanes import ThreadState


@dataclass
class Payback:
    """The correction of one run: the responses of its sampler.

    plan: the plan of the run.
    answers: by step, the response just before it to what is paid back there.
    """

    plan: Plan
    answers: Mapping[int, Response]


class PayingScheduler:
    """The ``step`` of a scheduler, for as long as a plan with looks may run.

    state: the state of this thread, or of the request in progress.
    is_ours: whether what this thread calls belongs to the session.
    """

    def __init__(self, state: Callable[[], ThreadState], is_ours: Callable[[], bool]) -> None:
        self._state, self._is_ours = state, is_ours
        self._measured: tuple[Payback, Sequence[float]] | None = None  # of the run before, which most runs are like

    def step_of(self, scheduler: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        """A function in the place of ``scheduler.step``; it has ``again``, which makes one for a copy of it."""

        @functools.wraps(step)
        def paying(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_ours():
                model_output, sample = self._paid(scheduler, model_output, timestep, sample, kwargs)
            return step(model_output, timestep, sample, *args, **kwargs)

        setattr(paying, AGAIN, self.step_of)
        return paying

    def _paid(
        self, scheduler: Any, prediction: Any, timestep: Any, sample: Any, options: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """The prediction that was computed, and the sample as it should have been."""
        state = self._state()
        lane = next(iter(state.lanes.values()), None)
        if lane is None or not lane.executable.plan.looks:
            return prediction, sample
        step = lane.step - 1
        if state.payback is None or state.payback.plan is not lane.executable.plan or step == 0:
            if step != 0:
                raise RunError(
                    f"The step {step} of a run was the first that its scheduler made, and hindsight needs the response "
                    "of the sampler from the beginning: call scheduler.step after every model call, and "
                    "scheduler.set_timesteps before a run."
                )
            state.payback = self._payback(scheduler, timestep, lane.executable.plan)
        if (
            options.get("eta")
            or options.get("use_clipped_model_output")
            or options.get("per_token_timesteps") is not None
        ):
            raise RunError(
                "Hindsight moves the sample by the linear response of a deterministic sampler: call the pipeline with "
                "eta=0 and without clipped outputs or timesteps a token, or leave hindsight out."
            )
        if not isinstance(prediction, Known):
            return prediction, sample
        answer = state.payback.answers.get(step)
        state.forget_looks()
        computed = prediction.computed
        if answer is None:
            return computed, sample
        wide = torch.promote_types(sample.dtype, torch.float32)
        error = computed.to(wide) - prediction.estimate.to(wide)
        history = history_of(scheduler)
        set_history(
            scheduler,
            {place: _moved(tensor, error, answer.of_history.get(place, 0.0)) for place, tensor in history.items()},
        )
        return computed, _moved(sample, error, answer.of_sample)

    def _payback(self, scheduler: Any, timestep: Any, plan: Plan) -> Payback:
        """The correction of a run that starts at ``timestep``; its sampler is measured once for equal runs."""
        check_linear(scheduler)
        times = counting.numbers(scheduler.timesteps)
        first = counting.first_step(times, float(timestep), scheduler)
        known = self._measured
        if known is None or known[0].plan is not plan or known[1] != times[first:]:
            timesteps = list(scheduler.timesteps[first : first + plan.num_steps])
            answers = responses(scheduler, timesteps, {look.step: dict(look.shares) for look in plan.looks})
            known = self._measured = Payback(plan, answers), times[first:]
        return known[0]


AGAIN = "again"
"""The attribute of a paying step that makes one for a copy of the scheduler."""


def followed(copied: Any, original: Any) -> Any:
    """A copy of a scheduler, for one run of a sampling loop, that pays back as the original does."""
    again = getattr(vars(original).get("step"), AGAIN, None)
    if again is not None:
        copied.step = again(copied, copied.step)
    return copied


def _moved(tensor: Tensor, error: Tensor, share: float) -> Tensor:
    """The tensor plus a multiple of the error, in its own dtype."""
    return torch.add(tensor.to(torch.promote_types(tensor.dtype, error.dtype)), error, alpha=share).to(tensor.dtype)
