"""Shares of an error by hand, and the linear response of samplers against finite differences and formulas of papers."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from forecache.errors import PlanError
from forecache.parts.hindsight import Gap, Hindsight, gaps, shares
from forecache.parts.responses import HISTORIES, check_linear, history_of, responses
from forecache.sampling.respaced import RespacedDDIM


def test_gaps_are_the_skipped_steps_that_a_computed_one_follows():
    computed = [sign == "#" for sign in "#..##.#."]
    assert gaps(computed) == [Gap(range(1, 3), 3, (0,)), Gap(range(5, 6), 6, (4, 3, 0))]
    assert gaps([True] * 4) == [] == gaps([True, False, False])


@pytest.mark.parametrize("degree", [1, 2])
def test_shares_are_exact_where_the_feature_is_a_polynomial_of_the_next_degree(degree):
    """The interpolation through as many points as the degree says misses the next power by exactly these shares."""
    gap = Gap(range(6, 9), 9, (5, 3, 0))
    points = gap.before[:degree]

    def missed(step):
        weights = [math.prod((step - b) / (a - b) for b in points if b != a) for a in points]
        return step**degree - sum(weight * a**degree for weight, a in zip(weights, points, strict=True))

    expected = [missed(step) / missed(gap.after) for step in gap.steps]
    assert shares(gap, degree) == pytest.approx(expected)
    assert shares(gap, 5) == shares(gap, 2)


def test_what_is_no_share_is_refused():
    with pytest.raises(PlanError, match="between 0 and 2"):
        Hindsight(2.5)
    with pytest.raises(PlanError, match="between 0 and 2"):
        Hindsight(0.5, (0.1, math.nan))
    with pytest.raises(PlanError, match="2 gaps with a computed step after them, which are at the steps"):
        Hindsight(0.5, (0.1,)).of_gaps([Gap(range(1, 2), 2, (0,)), Gap(range(3, 4), 4, (2, 0))])


DPM, UNI, FLOW = DPMSolverMultistepScheduler, UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler
SAMPLERS = {
    "ddim": DDIMScheduler(clip_sample=False),
    "ddim of v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing"),
    "respaced": RespacedDDIM.from_config(DDIMScheduler().config),
    "flow": FLOW(shift=3.0),
    "dpm++ 2m": DPM(),
    "dpm++ 3m, karras": DPM(solver_order=3, use_karras_sigmas=True, prediction_type="v_prediction"),
    "dpm++ 2m, heun, flow": DPM(solver_type="heun", use_flow_sigmas=True, prediction_type="flow_prediction"),
    "dpm, of noise": DPM(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    "unipc 2": UNI(),
    "unipc 3, bh1, of noise": UNI(solver_order=3, solver_type="bh1", predict_x0=False, final_sigmas_type="sigma_min"),
    "unipc of flow": UNI(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
}
T, STEPS, SHARES = 8, {3: {1: 0.4, 2: 0.7}, 6: {5: 1.3}}, "#..#.#."


def sampled(scheduler, predictions, first=0):
    """Samples and histories before every step of a run with these predictions, float64."""
    scheduler.set_timesteps(T)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    states = []
    for step, timestep in enumerate(scheduler.timesteps[first:]):
        states.append((x, dict(history_of(scheduler))))
        x = scheduler.step(predictions[step], timestep, x, return_dict=False)[0].double()
    return states


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("first", [0, 2])
def test_the_response_is_the_finite_difference_of_the_real_scheduler(name, first):
    scheduler = SAMPLERS[name]
    draw = torch.Generator().manual_seed(1)
    predictions = torch.randn(T, 2, 3, 4, 4, generator=draw, dtype=torch.float64)
    error = torch.randn(2, 3, 4, 4, generator=draw, dtype=torch.float64)
    steps = {step: impulse for step, impulse in STEPS.items() if step < T - first}
    bare = sampled(scheduler, predictions, first)
    scheduler.set_timesteps(T)
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    before = {key: value for key, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    found = responses(scheduler, list(scheduler.timesteps[first:]), steps)
    assert before == {key: value for key, value in vars(scheduler).items() if not isinstance(value, torch.Tensor)}
    for step, impulse in steps.items():
        changed = predictions.clone()
        for earlier, share in impulse.items():
            changed[earlier] += share * error
        x, history = sampled(scheduler, changed, first)[step]
        expected, theirs = bare[step]
        torch.testing.assert_close(expected + found[step].of_sample * error, x, rtol=1e-5, atol=1e-4)
        assert abs(found[step].of_sample) > 0.01
        assert set(found[step].of_history) == set(history) == set(theirs)
        for place, tensor in history.items():
            moved = theirs[place] + found[step].of_history[place] * error
            torch.testing.assert_close(moved, tensor, rtol=1e-5, atol=1e-4, check_dtype=False)
        if HISTORIES[type(scheduler).__name__]:
            assert any(abs(value) > 0.01 for value in found[step].of_history.values())


def test_ddim_by_its_formula():
    """x' = A x + C e with A = s'/s and C = n' - s' n / s, for signal s and noise n (arXiv 2010.02502, Eq. 12)."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(T)
    shares_of = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    signal, noise = shares_of.sqrt(), (1 - shares_of).sqrt()
    a = signal[1:] / signal[:-1]
    c = noise[1:] - signal[1:] * noise[:-1] / signal[:-1]
    expected = 0.4 * c[1] * a[2] + 0.7 * c[2]
    found = responses(scheduler, list(scheduler.timesteps), STEPS)
    assert found[3].of_sample == pytest.approx(float(expected), rel=1e-5)
    assert found[3].of_history == {}


def test_euler_of_flow_matching_by_its_formula():
    scheduler = FLOW(shift=3.0)
    scheduler.set_timesteps(T)
    change = scheduler.sigmas.double().diff()
    found = responses(scheduler, list(scheduler.timesteps), STEPS)
    assert found[3].of_sample == pytest.approx(float(0.4 * change[1] + 0.7 * change[2]), rel=1e-5)


def test_dpm_solver_by_its_formula():
    """x' = (n'/n) x - s' (exp(-h) - 1) ((1 + 1/2r) d0 - 1/2r d1), with images d = (x - n e) / s (arXiv 2211.01095)."""
    scheduler = DPM()
    scheduler.set_timesteps(T)
    ratio = scheduler.sigmas.double()
    signal = 1 / (1 + ratio**2).sqrt()
    noise = ratio * signal
    lam = signal.log() - noise.log()
    x, before, images = 0.0, 0.0, {}
    for step in range(3):
        images[step] = (x - noise[step] * STEPS[3].get(step, 0.0)) / signal[step]
        h = lam[step + 1] - lam[step]
        d = images[step]
        if step:
            r = (lam[step] - lam[step - 1]) / h
            d = d + (d - before) / (2 * r)
        x = noise[step + 1] / noise[step] * x - signal[step + 1] * torch.expm1(-h) * d
        before = images[step]
    found = responses(scheduler, list(scheduler.timesteps), STEPS)[3]
    assert found.of_sample == pytest.approx(float(x), rel=1e-4)
    assert found.of_history["model_outputs", 1] == pytest.approx(float(images[2]), rel=1e-4)
    assert found.of_history["model_outputs", 0] == pytest.approx(float(images[1]), rel=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (None, "this run has no scheduler: set one of these"),
        (HeunDiscreteScheduler(), "this run has a HeunDiscreteScheduler: set one of these"),
        (EulerAncestralDiscreteScheduler(), "this run has a EulerAncestral"),
        (DDIMScheduler(), "DDIMScheduler with clip_sample=True is not linear: set"),
        (FLOW(stochastic_sampling=True), "stochastic_sampling=True is not linear: set"),
        (DPM(algorithm_type="sde-dpmsolver++"), "algorithm_type='sde-dpmsolver\\+\\+' is not linear: set"),
        (DPM(thresholding=True), "thresholding=True is not linear: set"),
        (UNI(solver_p=DDIMScheduler()), "solver_p="),
    ],
)
def test_what_is_not_linear_is_refused(scheduler, sentence):
    with pytest.raises(PlanError, match=sentence):
        check_linear(scheduler)
