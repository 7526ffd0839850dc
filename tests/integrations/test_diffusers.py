"""Forecache as one of diffusers' hooks, and steps that pipelines tell to cache_context."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry
from support.tiny import TINY

import forecache as fc
from forecache.integrations.diffusers import remove_forecache, session_of

TIMES = (990, 850, 700, 550, 400, 250)
FLUX = TINY["FLUX.1"]


def sample(model, times=TIMES, told=False, lanes=("cond", "uncond"), seed=0):
    """As a Modular pipeline samples: guidance in two named calls, whose steps it may tell."""
    x = torch.randn(FLUX.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for step, time in enumerate(times):
            how = {"step_index": step, "num_inference_steps": len(times), "sigma": time / 1000} if told else {}
            outputs = []
            for lane in lanes:
                with model.cache_context(lane, **how):
                    outputs.append(FLUX.predict(model, x, time))
            x = x - 0.1 * (2 * outputs[0] - outputs[-1])
    return x


def by_session(method, **how):
    model = FLUX.model()
    with fc.apply(model, method, num_steps=len(TIMES)) as session:
        return sample(model, **how), session.stats


def test_the_hook_is_a_session_until_it_is_removed():
    model = FLUX.model()
    bare = sample(model)
    method = fc.taylorseer(fc.fora(3), 1)
    wanted, stats = by_session(method)
    fc.apply_forecache(model, fc.ForecacheConfig(method, num_inference_steps=6, max_cache_bytes=10**9))
    with pytest.raises(fc.errors.AlreadyAppliedError, match="remove_forecache"):
        fc.apply_forecache(model)
    for _ in range(2):
        assert torch.equal(sample(model), wanted)
    assert session_of(model).stats.skipped == 2 * stats.skipped > 0
    sample(model, TIMES[:2])
    model._reset_stateful_cache()  # of diffusers, for a run that was stopped
    assert torch.equal(sample(model), wanted)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(fc.errors.RunError, match="two caches would skip the same blocks"):
        sample(model)
    model.disable_cache()
    remove_forecache(model)
    assert session_of(model) is None
    assert torch.equal(sample(model), bare)
    assert vars(model)["forward"].__func__ is FluxTransformer2DModel.forward  # as every hook of diffusers leaves it
    with pytest.raises(fc.errors.RunError, match="no forecache on this Flux"):
        remove_forecache(model)
    fc.apply_forecache(model, fc.ForecacheConfig(speedup=2.0, num_inference_steps=6, level="stack"))
    HookRegistry.check_if_exists_or_initialize(model).remove_hook("forecache")  # as any code of diffusers may
    assert torch.equal(sample(model), bare)


def test_what_cannot_be_applied_leaves_no_hook():
    model = FLUX.model()
    with pytest.raises(fc.errors.PlanError, match="number from 1.3 to 5"):
        fc.apply_forecache(model, fc.ForecacheConfig(speedup=9))
    with fc.apply(model, fc.fora(2), num_steps=6), pytest.raises(fc.errors.AlreadyAppliedError):
        fc.apply_forecache(model, fc.ForecacheConfig(num_inference_steps=6))
    assert session_of(model) is None
    assert isinstance(model, FluxTransformer2DModel)


def test_a_method_needs_no_number_where_the_pipeline_tells_its_steps():
    model, method = FLUX.model(), fc.goc(fc.fora(3), 0.8)
    wanted, _ = by_session(method)
    with fc.apply(model, method) as session:
        assert torch.equal(sample(model, told=True), wanted)
        sample(model, TIMES[:4], told=True)  # another length
        sample(model, told=True, lanes=("cond",), seed=1)
        assert torch.equal(sample(model, told=True), wanted)
        assert session.stats.generations == 4
    with fc.apply(model, method), pytest.raises(fc.errors.StepCountError, match="no scheduler has announced"):
        sample(model)


def test_told_steps_that_are_left_out_and_a_run_that_stops():
    """As guidance that is for some of the steps only: its lane begins with a computed call."""
    model = FLUX.model()

    def call(step, lane):
        x = torch.randn(FLUX.shape, generator=torch.Generator().manual_seed(step))
        with torch.no_grad(), model.cache_context(lane, step_index=step, num_inference_steps=6):
            return FLUX.predict(model, x, TIMES[step])

    bare = [call(step, "cond") for step in range(6)]
    with fc.apply(model, fc.fora(6)) as session:
        same = {(step, lane): torch.equal(call(step, lane), bare[step])
                for step in range(5) for lane in ("cond", "uncond") if lane == "cond" or step in (1, 2, 4)}  # fmt: skip
        assert [key for key, equal in same.items() if equal] == [(0, "cond"), (1, "uncond"), (4, "uncond")]
        assert torch.equal(call(0, "cond"), bare[0])  # the next run
        assert torch.equal(call(2, "uncond"), bare[2])
        assert session.stats.generations == 2
