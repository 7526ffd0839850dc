"""Correction in hindsight while a model samples: by hand, exact where it can be, in lanes, pipelines and threads."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from support.pipelines import PAIR, POOLED, SQUARE, pipeline
from support.small import generate_images, small_dit, small_vae
from support.tiny import TINY, normal
from torch import nn

import forecache as fc
from forecache.runtime.known import Known
from forecache.sampling.loop import sample

T, PATTERN = 10, "#..#..#..#"
SCHEDULERS = {
    "ddim": DDIMScheduler(clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "dpm": DPMSolverMultistepScheduler(),
    "unipc": UniPCMultistepScheduler(),
}


class Feature(nn.Module):
    """A polynomial of the step, and a share of the sample."""

    def __init__(self, degree, of_sample):
        super().__init__()
        self.coefficients = nn.Parameter(torch.linspace(0.5, -0.3, 3)[: degree + 1])
        self.of_sample = of_sample

    def forward(self, x, step):
        return sum(c * (step / 4) ** power for power, c in enumerate(self.coefficients)) + self.of_sample * x.tanh()


class Line(nn.Module):
    """A model of one site; scale is 1 or the label of guidance."""

    def __init__(self, degree=1, of_sample=0.0):
        super().__init__()
        self.site = Feature(degree, of_sample)
        self.times = ()

    def forward(self, x, timestep, scale):
        step = self.times.index(float(timestep))
        return (self.site(x, step) * scale + 0.05 * scale**2,)


@dataclass
class Loop:
    transformer: Any
    scheduler: Any


def run(loop, steps=T, guided=None, session=None, first=0):
    """The sample at the end; guided: None, "batch" or "lanes"."""
    loop.scheduler.set_timesteps(steps)
    if first:
        loop.scheduler.set_begin_index(first)
    loop.transformer.times = tuple(map(float, loop.scheduler.timesteps))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 0.7])[:, None, None]
    with torch.no_grad():
        for t in loop.scheduler.timesteps[first:]:
            if guided == "batch":
                both = loop.transformer(torch.cat([x, x]), t, torch.cat([scale, -scale]))[0]
                conditional, unconditional = both.chunk(2)
            elif guided == "lanes":
                with session.lane("cond"):
                    conditional = loop.transformer(x, t, scale)[0]
                with session.lane("uncond"):
                    unconditional = loop.transformer(x, t, -scale)[0]
            else:
                conditional = unconditional = loop.transformer(x, t, scale)[0]
            guess = unconditional + 1.5 * (conditional - unconditional)
            x = loop.scheduler.step(guess, t, x, return_dict=False)[0]
    return x


def planned(loop, method, steps=T):
    return method.plan(fc.grid(loop.transformer, steps, sites=["site"]))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_model_that_is_linear_in_time_is_paid_back_exactly(name):
    """After the last computed step the sample is that of a run without a cache, in a guidance pair and in two lanes."""
    loop = Loop(Line(), copy.deepcopy(SCHEDULERS[name]))
    bare = run(loop, guided="batch")
    before = set(vars(loop.scheduler))
    step = type(loop.scheduler).step
    for guided in ("batch", "lanes"):
        for theta, is_exact in ((0.0, False), (1.0, True)):
            plan = planned(loop, fc.hindsight(fc.explicit(pattern=PATTERN), theta))
            with fc.apply(loop, plan) as session:
                found = run(loop, guided=guided, session=session)
            difference = float((found - bare).norm() / bare.norm())
            assert difference < 1e-5 if is_exact else difference > 1e-3
            assert session.stats.peak_cache_bytes > 0
    assert set(vars(loop.scheduler)) == before
    assert loop.scheduler.step.__func__ is step


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_a_straight_line_through_two_features_pays_back_a_parabola(name):
    loop = Loop(Line(degree=2), copy.deepcopy(SCHEDULERS[name]))
    bare = run(loop)
    method = fc.taylorseer(fc.explicit(pattern="##..#..#.#"), 1)
    with fc.apply(loop, planned(loop, fc.hindsight(method, 1.0))):
        found = run(loop)
    with fc.apply(loop, planned(loop, method)):
        without = run(loop)
    assert float((found - bare).norm() / bare.norm()) < 1e-5
    assert float((without - bare).norm() / bare.norm()) > 1e-3


def test_a_model_that_answers_to_the_sample_by_hand():
    """DDIM, reuse at N = 3, written out: e at a computed step, from the sample before it is moved."""
    theta, loop = 0.6, Loop(Line(of_sample=0.8), DDIMScheduler(clip_sample=False))
    with fc.apply(loop, planned(loop, fc.hindsight(fc.explicit(pattern=PATTERN), theta))):
        found = run(loop)
    scheduler = loop.scheduler
    shares = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), float(scheduler.final_alpha_cumprod)]
    a = [(shares[s + 1] / shares[s]) ** 0.5 for s in range(T)]
    c = [(1 - shares[s + 1]) ** 0.5 - a[s] * (1 - shares[s]) ** 0.5 for s in range(T)]
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 0.7])[:, None, None]
    feature = None
    with torch.no_grad():
        for s in range(T):
            moved = x
            if PATTERN[s] == "#":
                new = loop.transformer.site(x, s)
                if s:
                    error = (new - feature) * scale
                    last = s - 3
                    for u in (last + 1, last + 2):
                        answer = c[u] * a[u + 1] if u == last + 1 else c[u]
                        moved = moved + theta * (u - last) / 3 * answer * error
                feature = new
            x = a[s] * moved + c[s] * (feature * scale + 0.05 * scale**2)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_a_run_that_starts_in_the_middle():
    loop = Loop(Line(), FlowMatchEulerDiscreteScheduler(shift=2.0))
    bare = run(loop, first=3)
    plan = planned(loop, fc.hindsight(fc.explicit(pattern="#..#..#"), 1.0), 7)
    with fc.apply(loop, plan):
        torch.testing.assert_close(run(loop, first=3), bare, rtol=0, atol=1e-4)
    loop.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)


def test_image_to_image_and_methods_that_are_planned_when_the_run_is_announced():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4, shift_factor=0.0, **blocks)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = pipeline("StableDiffusion3Img2ImgPipeline", TINY["SD3"].model(), scheduler, vae=vae.eval())
    pools = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED}
    how = PAIR | SQUARE | pools | {"image": normal(1, 3, 64, 64).sigmoid(), "strength": 0.6, "num_inference_steps": 10}

    def sampled():
        return pipe(**how, generator=torch.Generator().manual_seed(0), output_type="latent").images

    base = fc.explicit(pattern="#.#.#.")
    found = {}
    for theta in (None, 0.0, 0.5):
        with fc.apply(pipe, base if theta is None else fc.hindsight(base, theta)):
            found[theta] = sampled()
    assert torch.equal(found[None], found[0.0])
    assert not torch.equal(found[None], found[0.5])
    assert type(found[0.5]) is torch.Tensor
    assert "step" not in vars(pipe.scheduler)


def test_a_pipeline_in_which_nothing_is_left_after_an_exception():
    pipe = DiTPipeline(small_dit(classes=1000, seed=2), small_vae(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    bare = generate_images(pipe, 6)
    method = fc.hindsight(fc.fora(2), 0.5)
    with fc.apply(pipe, method) as session:
        first, again = generate_images(pipe, 6), generate_images(pipe, 6)
    assert (first == again).all()
    assert not (first == bare).all()
    assert session.stats.peak_cache_bytes == method.plan(fc.grid(pipe, 6)).cost(pipe, 2, guidance=True).cache_bytes
    pipe.vae.decode = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("on purpose"))
    with pytest.raises(RuntimeError, match="on purpose"), fc.apply(pipe, method):
        generate_images(pipe, 6)
    del pipe.vae.decode
    assert "step" not in vars(pipe.scheduler)
    assert (generate_images(pipe, 6) == bare).all()


def test_what_is_predicted_is_counted_in_threads_too():
    model, scheduler = small_dit(), DDIMScheduler(clip_sample=False)
    loop = Loop(model, scheduler)
    plan = fc.hindsight(fc.goc(fc.fora(3), 0.8), 0.5).plan(fc.grid(model, 7))

    def sampled(transformer):
        return sample(transformer, scheduler, [1, 2], num_steps=7, guidance=1.5)

    with fc.apply(loop, plan) as session:
        eager = sampled(model)
        in_threads = list(ThreadPoolExecutor(2).map(lambda _: sampled(model), range(2)))
    assert all(torch.equal(eager, other) for other in in_threads)
    cost = plan.cost(model, 2, guidance=True)
    assert session.stats.last is not None
    assert session.stats.last.macs == (cost.macs, cost.macs_uncached)
    assert session.stats.peak_cache_bytes == cost.cache_bytes
    without = replace(plan, looks=()).cost(model, 2, guidance=True)
    assert cost.macs > without.macs
    assert cost.cache_bytes > without.cache_bytes
    needs = cost.cache_bytes
    with fc.apply(loop, plan, max_cache_bytes=needs):
        sampled(model)
    with pytest.raises(fc.errors.CacheBudgetError), fc.apply(loop, plan, max_cache_bytes=needs - 1):
        sampled(model)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same():
    model, scheduler = small_dit(1), DDIMScheduler(clip_sample=False)
    plan = fc.hindsight(fc.fora(2), 0.5).plan(fc.grid(model, 3))

    def sampled(transformer):
        with fc.apply(Loop(transformer, scheduler), plan) as session:
            return sample(transformer, scheduler, [1, 2], num_steps=3, guidance=1.5), session.stats.peak_cache_bytes

    (eager, peak), (compiled, other) = sampled(model), sampled(torch.compile(model, backend="eager"))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    assert other >= peak


def test_a_prediction_goes_through_guidance_twice():
    """Rescaled guidance is not linear: the estimate of it is that of the estimates."""
    computed, estimate, text = normal(2, 3, 4), normal(2, 3, 4, seed=2), normal(2, 3, 4, seed=3)

    def guided(both):
        conditional, unconditional = torch.cat([both, text]).chunk(2)
        out = unconditional + 3 * (conditional - unconditional)
        out *= conditional.std((1, 2), keepdim=True) / out.std((1, 2), keepdim=True)
        return out.to(torch.float64)

    known = guided(Known.of(computed.clone(), estimate.clone()))
    assert isinstance(known, Known)
    assert torch.equal(known.computed, guided(computed))
    assert torch.equal(known.estimate, guided(estimate))
    assert known.shape == (2, 3, 4)
    plain = torch.zeros(2, 3, 4)
    for write in (
        lambda: plain.add_(Known.of(computed, estimate)),
        lambda: plain.__setitem__(0, Known.of(computed, estimate)[0]),
    ):
        with pytest.raises(fc.errors.RunError, match="writes a prediction into another tensor"):
            write()
    assert not plain.any()


@dataclass
class Elsewhere(Loop):
    """Its own scheduler is never used."""


def test_what_cannot_work_is_refused():
    method = fc.hindsight(fc.explicit(pattern="#.#."), 0.5)
    line = Line()
    plan = planned(Loop(line, None), method, 4)
    with pytest.raises(fc.errors.PlanError, match="this run has no scheduler"):
        fc.apply(line, plan)
    with pytest.raises(fc.errors.PlanError, match="HeunDiscreteScheduler"):
        fc.apply(Loop(line, HeunDiscreteScheduler()), plan)
    loop = Loop(line, DDIMScheduler(clip_sample=False))
    with pytest.raises(fc.errors.PlanError, match="requests have schedulers of their host"):
        fc.apply(loop, plan, only_requests=True)
    loop.scheduler.set_timesteps(4)
    line.times = times = tuple(map(float, loop.scheduler.timesteps))
    x, scale = torch.ones(1, 3, 4), torch.ones(1, 1, 1)

    def own_sampler():
        moving = x
        for time in times:
            moving = moving + 0.1 * line(moving, time, scale)[0]

    def with_noise():
        loop.scheduler.step(line(x, times[0], scale)[0], int(times[0]), x, eta=0.5)

    def one_step_left_out():
        line(x, times[0], scale)
        loop.scheduler.step(line(x, times[1], scale)[0], int(times[1]), x)

    for sentence, sampled in (
        ("without passing through the scheduler", own_sampler),
        ("eta=0", with_noise),
        ("needs the response", one_step_left_out),
    ):
        with fc.apply(loop, plan):
            loop.scheduler.set_timesteps(4)
            with pytest.raises(fc.errors.RunError, match=sentence):
                sampled()
