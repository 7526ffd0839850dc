"""The caches of other libraries on a bare DiT transformer, each with the setup that it needs, and ours.

A cache is put on once; the function that `put_on` returns is called before every generation. What a cache needs beyond
that is documented next to it. Written with cache-dit 1.5.3, diffusers 0.42.1, dit-smoothcache 0.1.1.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from peer_runs import BARE, Cache, Called, Start

import forecache as fc

Mask = Callable[[int], list[int]]
"""The mask of a number of steps: 1 for computed steps, 0 for the others."""
OURS = "forecache"
MODULES = r"transformer_blocks\.\d+\.(attn1|ff)"


def ours(method: fc.Method) -> Callable[[Called], Start]:
    """A plan of ours."""

    def put_on(called: Called) -> Start:
        session = fc.apply(called.model, method.plan(fc.grid(called.model, called.num_steps)))
        session.__enter__()
        return session.new_run

    return put_on


def _hooks(model: Any) -> Start:
    """diffusers: DiT is no CacheMixin, so cache contexts are opened and hooks are reset here, before every run."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    registry = HookRegistry.check_if_exists_or_initialize(model)
    registry.invalidate_child_registries_cache()

    def start() -> None:
        registry.reset_stateful_hooks(recurse=True)  # of the context, too, which is opened again
        _set_cache_context(model, CacheContext("cond"))

    return start


def first_block(threshold: float) -> Callable[[Called], Start]:
    """FirstBlockCache."""

    def put_on(called: Called) -> Start:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        apply_first_block_cache(called.model, FirstBlockCacheConfig(threshold=threshold))
        return _hooks(called.model)

    return put_on


def mag(threshold: float) -> Callable[[Called], Start]:
    """MagCache. It calibrates its ratios on one run and prints them; they are read from the hook, which holds them as
    long as it waits for one step more than there are.
    """

    def put_on(called: Called) -> Start:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        steps = called.num_steps
        apply_mag_cache(called.model, MagCacheConfig(calibrate=True, num_inference_steps=steps + 1))
        _hooks(called.model)()
        called.run(called)
        hook = called.model.transformer_blocks[0]._diffusers_hook.hooks["mag_cache_leader_block_hook"]
        ratios = list(hook.state_manager._state_cache["cond"].calibration_ratios)
        config = {"threshold": threshold, "max_skip_steps": 3, "retention_ratio": 0.15}
        apply_mag_cache(called.model, MagCacheConfig(mag_ratios=ratios, num_inference_steps=steps, **config))
        return _hooks(called.model)

    return put_on


def taylor(interval: int, order: int) -> Callable[[Called], Start]:
    """TaylorSeer. Its default patterns end in ``attn`` and match no module of DiT, so the modules are named."""

    def put_on(called: Called) -> Start:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=3,
            max_order=order,
            taylor_factors_dtype=called.dtype,
            cache_identifiers=[MODULES],
        )
        apply_taylorseer_cache(called.model, config)
        return _hooks(called.model)

    return put_on


def pyramid(interval: int) -> Callable[[Called], Start]:
    """PAB, which skips attention alone and asks for the timestep."""

    def put_on(called: Called) -> Start:
        from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=interval,
            spatial_attention_timestep_skip_range=(100, 950),
            current_timestep_callback=lambda: called.now,
        )
        apply_pyramid_attention_broadcast(called.model, config)
        return _hooks(called.model)

    return put_on


def dbcache(
    calibrator: str = "", order: int | None = None, mask: Mask | None = None, **options: Any
) -> Callable[[Called], Start]:
    """cache-dit without a pipeline. Its own refresh comes one step late, so it is called before every run.

    mask: the computed steps, in place of a threshold.
    """

    def put_on(called: Called) -> Start:
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
        library = importlib.import_module("cache_dit")
        settings: dict[str, Any] = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 3}
        settings |= {"num_inference_steps": called.num_steps, **options}
        if mask is not None:
            settings |= {"max_warmup_steps": 1, "steps_computation_policy": "static"}
            settings["steps_computation_mask"] = mask(called.num_steps)
        more = {} if order is None else {"taylorseer_order": order}
        added = {"calibrator_config": getattr(library, calibrator)(**more)} if calibrator else {}
        config = library.DBCacheConfig(**settings)
        library.enable_cache(called.model, cache_config=config, **added)
        return lambda: library.refresh_context(called.model, cache_config=config, **added)

    return put_on


def smooth(interval: int) -> Callable[[Called], Start]:
    """SmoothCache with a static schedule."""

    def put_on(called: Called) -> Start:
        library = importlib.import_module("SmoothCache")
        block, parts = type(called.model.transformer_blocks[0]), ["attn1", "ff"]
        schedule = {part: every(interval)(called.num_steps) for part in parts}
        helper = library.SmoothCacheHelper(called.model, [block], parts, schedule)
        helper.enable()
        return helper.reset_state

    return put_on


def every(interval: int, warmup: int = 0) -> Mask:
    """The mask of every n-th step, after ``warmup`` computed ones."""
    return lambda num_steps: [int(step < warmup or step % interval == 0) for step in range(num_steps)]


def by_pattern(pattern: str) -> Mask:
    """The mask of a pattern."""
    return lambda num_steps: [int(sign == "#") for sign in pattern]


def static(mask: Mask, calibrator: str = "", order: int | None = None) -> Callable[[Called], Start]:
    """cache-dit with a static schedule."""
    return dbcache(calibrator, order, mask)


CACHES = [
    Cache(BARE, OURS, lambda called: lambda: None),
    *(Cache(f"ours: FORA, N = {n}", OURS, ours(fc.fora(n))) for n in (2, 3, 4)),
    *(Cache(f"ours: GOC 0.8, N = {n}", OURS, ours(fc.goc(fc.fora(n), 0.8))) for n in (2, 3, 4)),
    *(Cache(f"ours: Taylor 1, N = {n}", OURS, ours(fc.taylorseer(fc.fora(n), 1))) for n in (2, 3, 4)),
    Cache("ours: Taylor 2, N = 3", OURS, ours(fc.taylorseer(fc.fora(3), 2))),
    Cache("ours: Taylor 1, N = 3 after 3", OURS, ours(fc.taylorseer(fc.warmup(fc.fora(3), 3), 1))),
    *(Cache(f"diffusers FirstBlockCache {t}", "diffusers", first_block(t)) for t in (0.05, 0.1, 0.2)),
    *(Cache(f"diffusers MagCache {t}", "diffusers", mag(t)) for t in (0.06, 0.12)),
    *(Cache(f"diffusers TaylorSeer {m}, N = 3 after 3", "diffusers", taylor(3, m)) for m in (0, 1, 2)),
    Cache("diffusers PAB, N = 2", "diffusers", pyramid(2)),
    *(Cache(f"cache-dit DBCache {t}", "cache-dit", dbcache(residual_diff_threshold=t)) for t in (0.08, 0.24)),
    *(Cache(f"cache-dit static, N = {n}", "cache-dit", static(every(n))) for n in (2, 3, 4)),
    Cache("cache-dit static + Taylor 1, N = 3", "cache-dit", static(every(3), "TaylorSeerCalibratorConfig", 1)),
    Cache(
        "cache-dit static + Taylor 1, N = 3 after 3", "cache-dit", static(every(3, 3), "TaylorSeerCalibratorConfig", 1)
    ),
    Cache("cache-dit static + FoCa, N = 3 after 3", "cache-dit", static(every(3, 3), "FoCaCalibratorConfig")),
    Cache("cache-dit static + FoCa, N = 3", "cache-dit", static(every(3), "FoCaCalibratorConfig")),
    Cache("cache-dit static + DMD, N = 3", "cache-dit", static(every(3), "DMDCalibratorConfig")),
    *(Cache(f"SmoothCache static, N = {n}", "dit-smoothcache", smooth(n)) for n in (2, 3)),
]
