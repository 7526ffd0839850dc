"""A sampling of ComfyUI as a request of a forecache session.

The wrapper around a sampling opens a session on the model and begins a request; that around a model call names its
lane and its step. The lane is the conditioning (its uuids), the step is where the call's sigma lies among those of the
sampler. A sampler that calls the model twice in a step has a second lane for its second calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import forecache as fc

LOGGER = logging.getLogger("forecache.comfyui")
KEY = "forecache"


@dataclass(frozen=True)
class Settings:
    """The settings of a Forecache node.

    method: "speed-up", "fora", "taylorseer" or "goc".
    speedup: times fewer MACs, for "speed-up".
    interval: steps from one computed step to the next, for the others.
    cache: "gpu" keeps features where they are computed, "cpu" on the CPU.
    plan: path of a plan file, in place of the method; "" for none.
    level: "stack" or "blocks".
    """

    method: str
    speedup: float
    interval: int
    cache: str
    plan: str = ""
    level: str = "stack"

    def source(self, num_steps: int) -> fc.Plan | fc.Method:
        """The plan or the method of a run of ``num_steps`` steps."""
        if self.plan:
            return fc.Plan.load(self.plan)
        if self.method == "speed-up":
            return fc.methods.recommended.method(self.speedup, num_steps)
        base = fc.fora(self.interval)
        return {"fora": base, "taylorseer": fc.taylorseer(base, 1), "goc": fc.goc(base, 0.8)}[self.method]

    def plan_for(self, model: Any, num_steps: int) -> fc.Plan:
        """The plan of a run of ``num_steps`` steps of a diffusion model."""
        source = self.source(num_steps)
        if isinstance(source, fc.Plan):
            return source if source.num_steps == num_steps else fc.methods.resampled(source, num_steps)
        return source.plan(fc.grid(model, num_steps, level=cast(Literal["stack", "blocks"], self.level)))

    def session(self, model: Any, num_steps: int) -> fc.Session:
        """A session on a diffusion model, for one run."""
        device = "cpu" if self.cache == "cpu" else None
        plan = self.plan_for(model, num_steps)
        return fc.apply(model, plan, cache_device=device, only_requests=True)


class Steps:
    """The steps and lanes of the model calls of a run.

    sigmas: of the run, falling, with the last one where it ends.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._starts = sigmas[:-1]
        self._made: dict[str, list[int]] = {}

    def of(self, conditioning: str, sigma: float) -> tuple[str, int]:
        """The lane and the step of a call.

        The step is the last one that begins at this sigma or above it. A call at a step that the lane has made
        already, or has passed, belongs to the next lane of its conditioning.
        """
        step = max(0, sum(start >= sigma * (1 - 1e-4) for start in self._starts) - 1)
        made = self._made.setdefault(conditioning, [])
        number = next((number for number, last in enumerate(made) if last < step), len(made))
        made[number : number + 1] = [step]
        return f"{conditioning} {number}", step


class Wrappers:
    """What ComfyUI calls around a sampling and around its model calls, for one Forecache node.

    settings: of the node.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: tuple[fc.Session, Steps] | None = None
        self._said: set[str] = set()

    def outer_sample(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One sampling, in a session of its own; nothing is left of it, however it ends."""
        guider: Any = getattr(executor, "class_obj", None)
        sigmas = [float(sigma) for sigma in (args[3] if len(args) > 3 else kwargs["sigmas"])]
        before, self._running = self._running, None
        try:
            if before is not None or len(sigmas) < 2 or self._is_windowed(guider):
                return executor(*args, **kwargs)
            with self.settings.session(guider.model_patcher.model.diffusion_model, len(sigmas) - 1) as session:
                session.requests.begin(KEY, len(sigmas) - 1)
                self._running = session, Steps(sigmas)
                try:
                    return executor(*args, **kwargs)
                finally:
                    self._running = None
                    session.requests.abort(KEY)
                    LOGGER.info("Forecache: %s", summary(session))
        finally:
            self._running = before

    def apply_model(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One model call, as a call of the request."""
        options = _options(args, kwargs)
        if self._running is None or options is None:
            return executor(*args, **kwargs)
        if self.settings.level == "stack" and _control(args, kwargs):
            self._say("A ControlNet adds to every block, so nothing is skipped: set the level to blocks.")
            return executor(*args, **kwargs)
        session, steps = self._running
        lane, step = steps.of(" ".join(map(str, options["uuids"])), float(options["sigmas"].flatten()[0]))
        with session.requests.call(KEY, lane, step):
            return executor(*args, **kwargs)

    def _is_windowed(self, guider: Any) -> bool:
        """Whether model calls are of windows of a longer video, whose frames change from step to step."""
        if guider.model_options.get("context_handler") is None:
            return False
        self._say("Context windows change from step to step, so nothing is skipped with them.")
        return True

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            LOGGER.warning("Forecache: %s", sentence)


def _options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The options of a model call that say which conditionings and which sigma it is for; None if there are none."""
    for value in (kwargs.get("transformer_options"), *args):
        if isinstance(value, dict) and value.get("uuids") and value.get("sigmas") is not None:
            return value
    return None


def _control(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a ControlNet adds to the blocks in this call: x, t, c_concat, c_crossattn, control, ..."""
    control = kwargs.get("control", args[4] if len(args) > 4 else None)
    return control is not None


def summary(session: fc.Session) -> str:
    """One line about a run: its calls, and which of them were skipped."""
    last = session.stats.last
    if last is None:
        return "the model was not called."
    calls = sum(stretch.calls for stretch in last.stretches)
    return f"{last.skipped_calls} of {calls} model calls skipped, {' | '.join(last.picture.splitlines())}"
