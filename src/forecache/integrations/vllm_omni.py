"""A cache backend for vLLM-Omni, and the plugin that adds it to the engine's backends under the name "forecache".

vLLM-Omni loads the plugin by its entry point (``vllm_omni.general_plugins``):

    vllm serve MODEL --omni --cache-backend forecache --cache-config '{"speedup": 2.0}'

Its fields in the cache config:

speedup             times fewer computations of the blocks, by the recipe on record [2.0]
plan                path of a plan file, or a hub repository, in place of a recipe
interval            compute one step in so many, in place of a recipe; with the engine's own ``max_warmup_steps``,
                    ``enable_taylorseer`` and ``taylorseer_order``
level               "stack" [default]: one feature of all blocks; "blocks": one of each
cache_device        device of kept features [where they are computed]
max_cache_bytes     the most bytes that a request may keep [no limit]

Written for vLLM-Omni 0.30.0. Its step mode has no cache backends.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from forecache.errors import InputError, ModelError
from forecache.methods import fora, recommended, taylorseer, warmup
from forecache.methods.replan import resampled
from forecache.models.arguments import Arguments
from forecache.models.find import grid
from forecache.plan.method import Method
from forecache.plan.plan import Plan
from forecache.runtime import Session, apply, calls
from forecache.runtime.asked import check_speedup

LOGGER = logging.getLogger("forecache")
NAME = "forecache"
"""The name of the backend, and of its requests."""

SELECTOR = "vllm_omni.diffusion.cache.selector"
RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"
"""Modules that hold the engine's function from a name to a backend."""


class ForecacheBackend:
    """A cache backend of vLLM-Omni: skipped steps are estimated by a plan, one schedule for all transformers.

    It is registered as a subclass of the engine's `CacheBackend` by `register`.

    config: the engine's cache config, whose fields of ours are listed in this module's docstring.
    enabled: whether it is on a pipeline.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.enabled = False
        self._stack = ExitStack()
        self._turns = Turns()
        self._models: list[_Calls] = []

    def enable(self, pipeline: Any) -> None:
        """Put the backend on the transformers of a pipeline, once, at start; nothing is skipped before `refresh`.

        Raises ModelError for a pipeline without a transformer, and PlanError for a config that makes no plan.
        """
        if self.enabled:
            return
        self._method(20)  # what cannot be planned is refused at start
        self._models = [_Calls(model, self._plan, self._options(), self._turns) for model in _transformers(pipeline)]
        with ExitStack() as stack:
            for model in self._models:
                model.install(stack)
            self._stack = stack.pop_all()
        self.enabled = True

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        """Begin a generation of ``num_inference_steps`` steps; what is left of the one before is dropped.

        Where the number is not known (0), nothing is skipped. Raises what a plan of this number of steps does.
        """
        self._turns.begin(num_inference_steps)
        for model in self._models:
            model.begin(num_inference_steps)
        if verbose:
            LOGGER.info("forecache: a generation of %d steps begins.", num_inference_steps)

    def is_enabled(self) -> bool:
        """Whether the backend is on a pipeline."""
        return self.enabled

    def disable(self, pipeline: Any = None) -> None:
        """Take the backend off; the transformers are then as before."""
        self._stack.close()
        self.enabled = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(config={self.config})"

    def _get(self, name: str, default: Any) -> Any:
        value = getattr(self.config, name, None)
        return default if value is None else value

    def _options(self) -> dict[str, Any]:
        return {name: self._get(name, None) for name in ("cache_device", "max_cache_bytes")}

    def _method(self, num_steps: int) -> Method | Plan:
        if (path := self._get("plan", None)) is not None:
            return Plan.load(path) if Path(path).suffix == ".json" else Plan.from_pretrained(path)
        if (interval := self._get("interval", None)) is None:
            speedup = self._get("speedup", recommended.DEFAULT)
            check_speedup(speedup)
            return recommended.method(speedup, num_steps)
        method = warmup(fora(interval), self._get("max_warmup_steps", 0))
        return taylorseer(method, self._get("taylorseer_order", 1)) if self._get("enable_taylorseer", False) else method

    def _plan(self, model: nn.Module, num_steps: int) -> Plan:
        """The plan of a run on a transformer."""
        method = self._method(num_steps)
        if isinstance(method, Plan):
            return method if method.num_steps == num_steps else resampled(method, num_steps)
        level = self._get("level", "stack")
        if level not in ("stack", "blocks"):
            raise InputError(f'level in the cache config is "stack" or "blocks", not {level!r}.')
        return method.plan(grid(model, num_steps, level=level, blocks=declared_blocks(model)))


class Turns:
    """The step and the lane of every model call in a generation, over all transformers of a pipeline.

    A call at another timestep than the one before is the next step; further calls at a timestep, as for guidance, are
    further lanes.

    num_steps: of the generation; 0 where nothing is skipped.
    """

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, num_steps: int) -> None:
        """A generation of so many steps begins."""
        self.num_steps, self._step, self._lane = num_steps, -1, 0
        self._timestep: float | None = None

    def next(self, timestep: float | None) -> tuple[int, str]:
        """The step and the lane of the next call, which is at this timestep."""
        if timestep is None or timestep != self._timestep:
            self._step, self._lane, self._timestep = self._step + 1, 0, timestep
        else:
            self._lane += 1
        return self._step, str(self._lane)


class _Calls:
    """The calls of one transformer as calls of a request: torch's hooks around its forward say which one it is.

    plan: makes the plan of a number of steps for the model.
    """

    def __init__(self, model: nn.Module, plan: Any, options: dict[str, Any], turns: Turns) -> None:
        self._model, self._plan, self._options, self._turns = model, plan, options, turns
        self._find_timestep = calls.timestep_finder(model)
        self._session: Session | None = None
        self._plans: dict[int, Plan] = {}
        self._call = ExitStack()
        self._said = False

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on the model until the stack is closed."""
        stack.callback(self._close)
        before = self._model.register_forward_pre_hook(self._before, with_kwargs=True)
        stack.callback(before.remove)
        after = self._model.register_forward_hook(self._after, with_kwargs=True, always_call=True)
        stack.callback(after.remove)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._session is None:
            return
        timestep = calls.as_number(self._find_timestep(Arguments(args, kwargs)))
        step, lane = self._turns.next(timestep)
        if step >= self._turns.num_steps:
            self._say_once(step)
            return
        self._call = ExitStack()
        self._call.enter_context(self._session.requests.call(NAME, lane, step))

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._call.close()

    def begin(self, num_steps: int) -> None:
        """Open a session for a new generation, or keep that of the one before if the plan is the same."""
        if not num_steps:
            self._close()
            return
        if num_steps not in self._plans:
            self._plans[num_steps] = self._plan(self._model, num_steps)
        plan = self._plans[num_steps]
        if self._session is None or self._session.plan is not plan:
            self._close()
            self._session = apply(self._model, plan, only_requests=True, **self._options).__enter__()
        self._session.requests.abort(NAME)
        self._session.requests.begin(NAME, num_steps)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _say_once(self, step: int) -> None:
        if not self._said:
            self._said = True
            LOGGER.warning(
                "forecache: a generation of %d steps makes a model call for step %d, which runs as it is; two calls a "
                "step at different timesteps, as of second-order samplers, count as steps.",
                self._turns.num_steps,
                step,
            )


def declared_blocks(model: nn.Module) -> list[str] | None:
    """The lists of blocks that a transformer of vLLM-Omni declares for its caches; None for one that declares none."""
    declared = getattr(getattr(model, "_cache_dit_adapter_config", None), "block_forward_patterns", None)
    names = list(declared or getattr(model, "_layerwise_offload_blocks_attrs", None) or ())
    return [name for name in names if isinstance(getattr(model, name, None), nn.ModuleList)] or None


def _transformers(pipeline: Any) -> list[nn.Module]:
    """The transformers of a pipeline, by the names that it declares or their usual ones."""
    names = getattr(pipeline, "_dit_modules", None) or ("transformer", "transformer_2")
    models = [model for name in names if isinstance(model := getattr(pipeline, name, None), nn.Module)]
    if not models:
        raise ModelError(
            f"This {type(pipeline).__name__} has no transformer by the names {', '.join(names)}: take another backend."
        )
    return models


def register() -> None:
    """Add the backend to vLLM-Omni's: ``--cache-backend forecache``. The plugin's entry point; twice is once."""
    base: Any = importlib.import_module("vllm_omni.diffusion.cache.base")
    base.CacheBackend.register(ForecacheBackend)
    selector: Any = importlib.import_module(SELECTOR)
    own = selector.get_cache_backend
    if getattr(own, "adds", None) == NAME:
        return

    @functools.wraps(own)
    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend != NAME:
            return own(cache_backend, cache_config)
        if isinstance(cache_config, dict):
            cache_config = selector.DiffusionCacheConfig.from_dict(cache_config)
        return ForecacheBackend(cache_config)

    get_cache_backend.adds = NAME  # type: ignore[attr-defined]
    for name in (SELECTOR, RUNNER):
        module: Any = sys.modules.get(name)
        if module is not None and getattr(module, "get_cache_backend", None) is own:
            module.get_cache_backend = get_cache_backend
