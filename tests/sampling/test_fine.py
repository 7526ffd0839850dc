"""Converged samples: solvers of second order, by hand; how fine is found; what has none is refused."""

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

import forecache as fc
from forecache.sampling import fine
from forecache.sampling.sources import Sampling

NOISE = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)


@dataclass
class Analytic:
    """Samples of one number a pixel whose model is exact for data of standard deviation ``spread``."""

    target: Any
    spread: float
    flow: bool
    classes: int = 1

    def label(self, name):
        return 0

    def generate(self, labels, how, first_index=0, on_step=None):
        scheduler = self.target.scheduler
        scheduler = type(scheduler).from_config(scheduler.config)
        scheduler.set_timesteps(how.num_steps)
        x = NOISE.expand(len(labels), 1, 1, 7).clone()
        for t in scheduler.timesteps:
            x = scheduler.step(self.predict(x, t), t, x, return_dict=False)[0]
        return (x / 8 + 0.5).clamp(0, 1)

    def predict(self, x, t):
        """E[noise | x], or E[noise - data | x]; both are linear, as data and noise are normal."""
        if self.flow:
            sigma = float(t) / 1000
            data, noise = (1 - sigma) * self.spread**2, sigma
        else:
            share = float(self.target.alphas[int(t)])
            data, noise = share**0.5 * self.spread**2, (1 - share) ** 0.5
        variance = data**2 / self.spread**2 + noise**2
        return (noise - self.flow * data) / variance * x

    def exact(self, first_share):
        """The solution: x is scaled by the ratio of its standard deviations at the start and at the end."""
        start = 1.0 if self.flow else (first_share * self.spread**2 + 1 - first_share) ** 0.5
        return (NOISE * self.spread / start / 8 + 0.5).clamp(0, 1).expand(1, 1, 1, 7)


def analytic(scheduler, flow):
    return Analytic(SimpleNamespace(scheduler=scheduler, alphas=getattr(scheduler, "alphas_cumprod", None)), 0.4, flow)


@pytest.mark.parametrize(
    ("scheduler", "flow"),
    [
        (diffusers.DDIMScheduler(), False),
        (diffusers.UniPCMultistepScheduler(), False),
        (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), False),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), True),
        (diffusers.FlowMatchEulerDiscreteScheduler(), True),
    ],
)
def test_the_fine_run_comes_to_the_solution_of_the_equation(scheduler, flow, caplog):
    """The model is the exact one of normal data, whose solution is known."""
    source = analytic(scheduler, flow)
    with caplog.at_level(logging.INFO, "forecache"):
        run = fine.fine_run(source, [0], how := Sampling(10, 1.0, 0))
    exact = source.exact(float(source.target.alphas[-1]) if not flow else 0)
    with fine.in_fine_steps(source, run, how) as (finer, fine_how):
        images = finer.generate([0], fine_how)
    own = float(fc.evaluate.psnr(source.generate([0], how), exact))
    assert run.is_converged
    assert run.change >= min(fine.ENOUGH_DB, run.own + fine.MARGIN_DB)
    assert float(fc.evaluate.psnr(images, exact)) > own + 15
    assert str(run) in caplog.text
    assert source.target.scheduler is scheduler


def test_flow_matchings_fine_steps_are_of_second_order():
    """Twice the steps change less than a third as much as the doubling before; Euler's change half as much."""
    source = analytic(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), True)

    def shrinking():
        runs = [source.generate([0], Sampling(num_steps, 1.0, 0)) for num_steps in (16, 32, 64)]
        return float((runs[0] - runs[1]).norm() / (runs[1] - runs[2]).norm())

    assert shrinking() == pytest.approx(2, abs=0.3)
    source.target.scheduler = fine.fine_solver(source.target.scheduler)
    assert shrinking() > 3.5


def test_a_limit_of_steps_is_told(monkeypatch, caplog):
    monkeypatch.setattr(fine, "MOST_STEPS", 80)
    monkeypatch.setattr(fine, "ENOUGH_DB", 300.0)
    monkeypatch.setattr(fine, "MARGIN_DB", 300.0)
    run = fine.fine_run(analytic(diffusers.DDIMScheduler(), False), [0], Sampling(20, 1.0, 0))
    assert (run.num_steps, run.is_converged) == (80, False)
    assert "which is not converged" in str(run)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (diffusers.DDPMScheduler(), "no deterministic sampler that forecache knows"),
        (diffusers.EulerAncestralDiscreteScheduler(), "no deterministic sampler"),
        (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "draws noise on its way"),
        (diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "draws noise on its way"),
    ],
)
def test_a_sampler_without_a_converged_sample_is_refused(scheduler, why):
    with pytest.raises(fc.errors.InputError, match=rf"{type(scheduler).__name__} .*{why}.*reference='own'"):
        fine.fine_solver(scheduler)
    with pytest.raises(fc.errors.InputError, match="has no scheduler that forecache could run"):
        fine.fine_run(SimpleNamespace(target=object()), [0], Sampling(4, 1.0, 0))


def test_converged_images_do_not_depend_on_the_batch_and_leave_the_pipelines_scheduler(monkeypatch):
    monkeypatch.setattr(fine, "MOST_STEPS", 32)
    scheduler = diffusers.DDIMScheduler()
    source = analytic(scheduler, False)
    whole = fc.sampling.converged(source, [0, 0, 0], num_steps=4, guidance=1.0, batch=3)
    parts = fc.sampling.converged(source, [0, 0, 0], num_steps=4, guidance=1.0, batch=2)
    assert torch.equal(whole.images, parts.images)
    assert whole.run == parts.run
    assert source.target.scheduler is scheduler
    with pytest.raises(fc.errors.InputError, match="0 conditions"):
        fc.sampling.converged(source, [], num_steps=4)
