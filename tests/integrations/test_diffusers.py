"""Forecache as one of diffusers' hooks, and steps that pipelines tell to cache_context."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, UniPCMultistepScheduler
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry
from support.tiny import TINY

import forecache as fc
from forecache.integrations.diffusers import remove_forecache, session_of
from forecache.runtime.pipelines import PipelineHost

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


# ---- timesteps and noise levels that are told -----------------------------------------------------------------------


def test_a_told_timestep_is_read_and_not_that_of_the_model():
    """The model gets the same sample and time again and again: only what is told says that the steps go on."""
    model, x = FLUX.model(), torch.randn(FLUX.shape, generator=torch.Generator().manual_seed(0))

    def sample(told):
        with fc.apply(model, fc.fora(2), num_steps=6) as session, torch.no_grad():
            for time in TIMES:
                with model.cache_context("cond", timestep=torch.tensor(float(time)) if told else None):
                    FLUX.predict(model, x, 500)
            assert session.stats.last.computed_calls == 3

    sample(told=True)
    with pytest.raises(fc.errors.StepCountError, match="several times a step, at timestep 0.5 "):
        sample(told=False)


def test_a_told_sigma_is_the_noise_level_that_a_scheduler_would_say():
    rule, decided = fc.seacache(0.4), {}
    scheduler = FlowMatchEulerDiscreteScheduler()

    def run(name, target, call, **how):
        with fc.apply(target, rule, **how) as session, torch.no_grad():
            if how.get("only_requests"):
                session.requests.begin("a", len(TIMES))
            else:
                scheduler.set_timesteps(sigmas=[time / 1000 for time in TIMES])
            x = torch.randn(FLUX.shape, generator=torch.Generator().manual_seed(0))
            for step, time in enumerate(TIMES):
                with call(session, step, time / 1000):
                    x = x - 0.1 * FLUX.predict(model, x, time)
            decided[name] = session.decided().rows, x

    model = FLUX.model()
    whole = SimpleNamespace(transformer=model, scheduler=scheduler)
    run("scheduler", whole, lambda session, step, sigma: nullcontext())
    run("told", model, lambda session, step, sigma: model.cache_context("x", sigma=sigma), num_steps=6)
    run("request", model, lambda session, step, sigma: session.requests.call("a", sigma=sigma), only_requests=True)
    rows, wanted = decided["scheduler"]
    assert 0 < sum(bool(cell.reads) for cell in rows[0]) < len(TIMES)
    for name in ("told", "request"):
        assert decided[name][0] == rows
        assert torch.equal(decided[name][1], wanted)
    with pytest.raises(fc.errors.RunError, match="noise level of every step.*sigma="):
        run("nothing", model, lambda session, step, sigma: model.cache_context("x"), num_steps=6)


def test_noise_levels_are_those_of_the_samples_that_a_scheduler_makes():
    """sample = a x + b noise has the share b / (a + b); a sigma is b / a, but in flow matching, where a = 1 - b."""
    ddim, flow = DDIMScheduler(), UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    for time in (20, 500, 980):
        one = torch.ones(1)
        signal, noise = (ddim.add_noise(x, one - x, torch.tensor([time])).item() for x in (one, one * 0))
        share = PipelineHost(FLUX.model(), None, ddim).noise
        assert share(time, None) == pytest.approx(noise / (signal + noise), rel=1e-5)
        assert share(None, noise / signal) == pytest.approx(noise / (signal + noise), rel=1e-5)
        share = PipelineHost(FLUX.model(), None, flow).noise
        assert share(time, None) == pytest.approx(time / 1000)
        assert share(time, 0.3) == 0.3
    assert PipelineHost(FLUX.model()).noise(500, None) is None
