"""The papers' sampler, against the respaced process written out in float64 from the DDPM papers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from support.small import small_dit, small_vae

import forecache as fc
from forecache.sampling.loop import generators
from forecache.sampling.respaced import RespacedDDIM, respaced, signal_shares, spaced_timesteps
from forecache.sampling.sources import DiTSource, Sampling

LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}


class Respaced:
    """A diffusion process on a subset of timesteps: its own betas, and deterministic steps in them, all in float64.

    Nichol & Dhariwal 2021: beta'_i = 1 - abar(t_i) / abar(t_{i-1}). Ho et al. 2020: the predicted image. Song et al.
    2021, Eq. 12 with sigma 0.
    """

    def __init__(self, count, total=1000):
        betas = [1e-4 + (0.02 - 1e-4) * index / (total - 1) for index in range(total)]
        bars, product = [], 1.0
        for beta in betas:
            product *= 1 - beta
            bars.append(product)
        self.times = [round(index * (total - 1) / (count - 1)) for index in range(count)]
        last, self.betas = 1.0, []
        for time in self.times:
            self.betas.append(1 - bars[time] / last)
            last = bars[time]

    def sample(self, predict, x):
        """From noise to image, with every x on the way. predict: (x, original timestep) -> noise."""
        bars, product = [], 1.0
        for beta in self.betas:
            product *= 1 - beta
            bars.append(product)
        path = [x]
        for index in reversed(range(len(self.times))):
            bar, before = bars[index], bars[index - 1] if index else 1.0
            e = predict(x, self.times[index])
            image = (1 / bar) ** 0.5 * x - (1 / bar - 1) ** 0.5 * e
            x = before**0.5 * image + (1 - before) ** 0.5 * e
            path.append(x)
        return path


def test_the_timesteps_are_those_of_the_papers():
    times = spaced_timesteps(20, 1000)
    assert times[:3] == (999, 946, 894)
    assert times[-3:] == (105, 53, 0)
    for count in (2, 20, 50, 250, 1000):
        assert list(spaced_timesteps(count, 1000)) == Respaced(count).times[::-1]
    scheduler = RespacedDDIM(**LINEAR)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == list(times)


@pytest.mark.parametrize("count", [0, 1, 1001])
def test_a_number_of_steps_that_no_respaced_process_has_is_refused(count):
    with pytest.raises(fc.errors.InputError, match=f"2 to 1000 steps.*; {count} were asked for"):
        spaced_timesteps(count, 1000)


@pytest.fixture
def pipe():
    """A small random DiTPipeline of 1000 classes, in float64."""
    pipe = DiTPipeline(small_dit(classes=1000, seed=2), small_vae(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


@pytest.fixture
def steps(monkeypatch):
    """Timestep and latent of every step that a scheduler took."""
    taken, keep = [], RespacedDDIM.step

    def step(self, output, timestep, sample, **more):
        moved = keep(self, output, timestep, sample, **more)
        taken.append((int(timestep), moved.prev_sample))
        return moved

    monkeypatch.setattr(RespacedDDIM, "step", step)
    return taken


def start(count, seed=0):
    """The noise of the first samples (count, 4, 8, 8), float64."""
    drawn = generators(seed, range(count))
    return torch.cat([torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64) for generator in drawn])


def trajectory(model, labels, count, scale):
    """The latents (B, 4, 8, 8) after every step, with guidance on the first three channels."""
    y = torch.tensor([*labels, *[1000] * len(labels)])

    @torch.no_grad()
    def predict(x, time):
        out = model(torch.cat([x, x]), timestep=torch.full((len(y),), time), class_labels=y).sample[:, :4]
        c, u = out.chunk(2)
        return torch.cat([u[:, :3] + scale * (c - u)[:, :3], c[:, 3:]], 1)

    return Respaced(count).sample(predict, start(len(labels)))[1:]


@pytest.mark.parametrize(("count", "scale"), [(20, 4.0), (7, 1.5)])
def test_a_trajectory_is_that_of_the_respaced_process(pipe, steps, count, scale):
    """Every latent through diffusers' pipeline, within 1e-6."""
    respaced(pipe).generate([3, 700], Sampling(count, scale, 0))
    assert [time for time, _ in steps] == Respaced(count).times[::-1]
    for (_, latent), expected in zip(steps, trajectory(pipe.transformer, [3, 700], count, scale), strict=True):
        torch.testing.assert_close(latent[:2], expected, rtol=0, atol=1e-6)


def test_three_channels_and_the_timesteps_matter(pipe, steps):
    """The pipeline's own sampler gives other images: the test above can tell."""
    how = Sampling(20, 4.0, 0)
    own = DiTSource(pipe).generate([3], how)
    papers = respaced(pipe).generate([3], how)
    every_channel = DiTSource(pipe).generate([3], how)
    assert (papers - own).abs().max() > 1e-3
    assert (papers - every_channel).abs().max() > 1e-3


def test_without_guidance_every_channel_is_the_conditional_prediction(pipe, steps):
    respaced(pipe).generate([3, 700], Sampling(5, 1.0, 0))
    expected = trajectory(pipe.transformer, [3, 700], 5, 1.0)
    torch.testing.assert_close(steps[-1][1], expected[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_with_every_timestep_a_step_is_that_of_diffusers(kind):
    theirs = DDIMScheduler(**LINEAR, prediction_type=kind, clip_sample=False)
    ours = RespacedDDIM.from_config(theirs.config)
    theirs.set_timesteps(1000)
    ours.set_timesteps(1000)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, predicted = start(2), start(2, seed=1)
    for time in (999, 500, 1, 0):
        expected = theirs.step(predicted, time, x).prev_sample
        torch.testing.assert_close(ours.step(predicted, time, x).prev_sample, expected, rtol=1e-4, atol=1e-4)


def test_a_sampled_plan_follows_the_respaced_steps_and_leaves_no_trace(pipe):
    source = respaced(pipe)
    how = Sampling(20, 4.0, 0)
    bare = source.generate([3], how)
    with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, 20))):
        assert torch.equal(source.generate([3], how), bare)
    with fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 20))) as session:
        assert not torch.equal(source.generate([3], how), bare)
    assert (session.stats.generations, session.stats.calls) == (1, 20)
    assert not pipe.transformer._forward_hooks


def test_what_the_sampler_does_not_know_is_refused():
    with pytest.raises(fc.errors.InputError, match="sampler is that of DiT, and a SimpleNamespace guides all"):
        respaced(SimpleNamespace())
    with pytest.raises(fc.errors.InputError, match="knows linear, scaled_linear and listed betas.*squaredcos_cap_v2"):
        RespacedDDIM(**LINEAR | {"beta_schedule": "squaredcos_cap_v2"})
    with pytest.raises(fc.errors.InputError, match="no predictions of type 'flow'"):
        RespacedDDIM(**LINEAR, prediction_type="flow")
    with pytest.raises(fc.errors.InputError, match="Timestep 950 is not among those of this run"):
        RespacedDDIM(**LINEAR).step(start(1), 950, start(1))


def test_betas_are_those_of_the_scheduler():
    for more in ({}, {"beta_schedule": "scaled_linear"}, {"trained_betas": [0.01 * index for index in range(1, 21)]}):
        theirs = DDIMScheduler(**LINEAR | more)
        torch.testing.assert_close(signal_shares(theirs.config).float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-8)
