"""Where a generation begins and ends: it starts clean, and a run of another length is an error, not a wrong image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from support import reference
from support.small import CLASSES, generate, generate_images, labels, noise

import forecache as fc

T = 6
TIMES = reference.timesteps(T)


def plan(target, method=None, num_steps=T):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(target, num_steps))


def call(dit, time, count=2, dtype=None):
    """One model call at a timestep, always with the same noise."""
    x = torch.cat([noise(count)] * 2).to(dtype or dit.dtype)
    with torch.no_grad():
        return dit(x, timestep=torch.full((2 * count,), time), class_labels=labels(count)).sample


def calls(dit, times, **how):
    return torch.stack([call(dit, time, **how) for time in times])


@pytest.fixture
def parts(pipe):
    """What a loop of the user's own takes of a pipeline."""
    return SimpleNamespace(transformer=pipe.transformer, scheduler=pipe.scheduler)


def alone(dit, times=TIMES, **how):
    """The calls in a session of their own."""
    with fc.apply(dit, plan(dit)):
        return calls(dit, times, **how)


# ---- a new generation -----------------------------------------------------------------------------------------------


def test_two_generations_in_sequence_equal_two_sessions(dit):
    fresh = []
    for seed in (0, 1):
        with fc.apply(dit, plan(dit)):
            fresh.append(generate(dit, T, seed=seed))
    with fc.apply(dit, plan(dit)) as session:
        both = [generate(dit, T, seed=seed) for seed in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(fresh, both, strict=True))
    assert not torch.equal(*both)
    assert session.stats.generations == 2


def test_two_images_of_a_pipeline_in_sequence_equal_two_sessions(pipe):
    fresh = []
    for seed in (0, 1):
        with fc.apply(pipe, plan(pipe)):
            fresh.append(generate_images(pipe, T, seed))
    with fc.apply(pipe, plan(pipe)) as session:
        both = [generate_images(pipe, T, seed) for seed in (0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(fresh, both, strict=True))
    assert session.stats.generations == 2


def test_a_timestep_that_goes_up_starts_a_generation(dit):
    expected = alone(dit)
    with fc.apply(dit, plan(dit)) as session:
        calls(dit, TIMES)
        assert torch.equal(calls(dit, TIMES), expected)
    assert session.stats.generations == 2


def test_another_batch_size_starts_a_generation(dit):
    """The second run's timesteps go on falling, so that the batch alone tells the two apart."""
    later = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    expected = alone(dit, later, count=3)
    with fc.apply(dit, plan(dit)) as session:
        calls(dit, TIMES)
        assert torch.equal(calls(dit, later, count=3), expected)
    assert session.stats.generations == 2


def test_another_dtype_starts_a_generation(dit):
    later = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    dit.to(torch.bfloat16)
    expected = alone(dit, later)
    with fc.apply(dit, plan(dit)) as session:
        calls(dit.to(torch.float64), TIMES)
        assert torch.equal(calls(dit.to(torch.bfloat16), later), expected)
    assert session.stats.generations == 2


def test_one_step_runs_are_a_generation_each(dit):
    with fc.apply(dit, plan(dit, fc.fora(1), 1)) as session:
        assert torch.equal(call(dit, 500), call(dit, 500))
        call(dit, 400, count=1)
    assert session.stats.generations == 3


def test_a_model_without_a_timestep_starts_again_after_the_last_step():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    plan_ = fc.fora(3).plan(fc.grid(model, 3, sites=["0"]))
    with torch.no_grad(), fc.apply(model, plan_) as session:
        runs = [[model(torch.full((1, 4), float(10 * run + step))) for step in range(3)] for run in range(2)]
    for run, outputs in enumerate(runs):
        first = model(torch.full((1, 4), float(10 * run)))
        assert all(torch.equal(output, first) for output in outputs)
    assert session.stats.generations == 2


# ---- a generation that is cut short ---------------------------------------------------------------------------------


def test_after_an_exception_in_the_model_the_next_generation_starts_clean(dit):
    expected = alone(dit)
    with fc.apply(dit, plan(dit)):
        calls(dit, TIMES[:3])
        with pytest.raises(IndexError):  # a label that the model does not have
            dit(noise(4), timestep=torch.full((4,), TIMES[3]), class_labels=torch.full((4,), CLASSES + 1))
        assert torch.equal(calls(dit, TIMES), expected)


def test_after_an_exception_in_a_pipeline_the_next_image_starts_clean(pipe):
    with fc.apply(pipe, plan(pipe)):
        expected = generate_images(pipe, T)

    def stop(module, args, output):
        raise InterruptedError

    with fc.apply(pipe, plan(pipe)):
        handle = pipe.transformer.transformer_blocks[2].register_forward_hook(stop)
        with pytest.raises(InterruptedError):
            generate_images(pipe, T, seed=1)
        handle.remove()
        assert np.array_equal(generate_images(pipe, T), expected)


def test_new_run_forgets_a_run_that_was_cut_short(dit):
    expected = alone(dit)
    with fc.apply(dit, plan(dit)) as session:
        calls(dit, TIMES[:3])
        session.new_run()
        assert torch.equal(calls(dit, TIMES), expected)
        calls(dit, TIMES[:2])
        session.new_run()
    assert session.stats.generations == 3


def test_new_run_starts_a_generation_whose_timesteps_only_fall(dit):
    expected = alone(dit, [0.5] * T)
    with fc.apply(dit, plan(dit)) as session:
        calls(dit, TIMES)
        session.new_run()
        assert torch.equal(calls(dit, [0.5] * T), expected)


def test_setting_the_schedulers_timesteps_starts_a_generation(parts):
    """A loop of the user's own around a pipeline's parts, stopped in the middle and begun again."""
    with fc.apply(parts, plan(parts)) as session:
        parts.scheduler.set_timesteps(T)
        times = parts.scheduler.timesteps.tolist()
        expected = calls(parts.transformer, times)
        parts.scheduler.set_timesteps(T)
        calls(parts.transformer, times[:2])
        parts.scheduler.set_timesteps(T)
        assert torch.equal(calls(parts.transformer, times), expected)
    assert session.stats.generations == 3


def test_setting_the_schedulers_timesteps_starts_a_generation_whose_timesteps_go_on_falling(parts):
    """Stopped after two calls, then image-to-image from a lower timestep: the noise that is left tells nothing."""
    later = list(range(T, 0, -1))
    with fc.apply(parts, plan(parts)):
        expected = calls(parts.transformer, later)
    with fc.apply(parts, plan(parts)) as session:
        parts.scheduler.set_timesteps(T)
        calls(parts.transformer, parts.scheduler.timesteps.tolist()[:2])
        parts.scheduler.set_timesteps(T)
        assert torch.equal(calls(parts.transformer, later), expected)
    assert session.stats.generations == 2


def test_a_generation_that_was_stopped_is_not_counted_as_held(parts):
    """Three runs stopped where the cache is full, and a whole one: the peak is that of one run."""
    made = plan(parts)
    with fc.apply(parts, made) as session:
        parts.scheduler.set_timesteps(T)
        times = parts.scheduler.timesteps.tolist()
        calls(parts.transformer, times[:3])
        calls(parts.transformer, times)  # the timestep went up
        for _ in range(2):
            parts.scheduler.set_timesteps(T)
            calls(parts.transformer, times[:3])
        parts.scheduler.set_timesteps(T)
        calls(parts.transformer, times)
    assert session.stats.peak_cache_bytes == made.cost(parts, batch_size=2).cache_bytes


# ---- runs of another length -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [T - 1, T + 1, 2 * T])
def test_a_pipeline_with_another_number_of_steps_is_refused_before_anything_is_computed(pipe, asked):
    ran = []
    pipe.transformer.pos_embed.register_forward_hook(lambda *_: ran.append(1))
    words = rf"plan has {T} steps, but the pipeline is going to call the model {asked} times: make the plan with"
    with fc.apply(pipe, plan(pipe)) as session:
        with pytest.raises(fc.errors.StepCountError, match=words):
            generate_images(pipe, asked)
        assert not ran
        assert session.stats.calls == 0
        generate_images(pipe, T)
    assert session.stats.generations == 1


def test_a_loop_that_is_longer_than_the_plan_is_refused(dit):
    words = rf"plan has {T} steps, and this run makes one more model call \(timestep 0\.5\): make the plan"
    with fc.apply(dit, plan(dit)) as session:
        calls(dit, TIMES)
        with pytest.raises(fc.errors.StepCountError, match=words):
            call(dit, 0.5)
    assert session.stats.calls == T


def test_a_loop_that_is_shorter_than_the_plan_is_refused_when_the_block_ends(dit):
    words = rf"made 4 model calls, the plan has {T} steps: make the plan.*num_steps=4\).*call session\.new_run\(\)"
    with pytest.raises(fc.errors.StepCountError, match=words), fc.apply(dit, plan(dit)):
        calls(dit, TIMES[:4])
    with fc.apply(dit, plan(dit)):
        calls(dit, TIMES)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("done", [1, 4])
def test_after_a_run_that_was_stopped_the_next_one_runs_and_the_block_ends_in_an_error(dit, done, count, caplog):
    """A cancelled request: the next one is innocent, whatever its batch."""
    expected = alone(dit, count=count)
    words = rf"made {done} model calls?, the plan has {T} steps"
    session = fc.apply(dit, plan(dit)).__enter__()
    calls(dit, TIMES[:done])
    assert torch.equal(calls(dit, TIMES, count=count), expected)
    assert torch.equal(calls(dit, TIMES, count=count), expected)
    with pytest.raises(fc.errors.StepCountError, match=words):
        session.__exit__(None, None, None)
    assert f"A run stopped after {done} of {T} model calls" in caplog.text


def test_a_pipeline_that_starts_in_the_middle_of_its_timesteps_needs_a_plan_of_the_calls_it_makes(parts):
    """Image-to-image: ten timesteps are set, the last six are run."""
    with fc.apply(parts, plan(parts)) as session:
        parts.scheduler.set_timesteps(10)
        calls(parts.transformer, parts.scheduler.timesteps.tolist()[4:])
        parts.scheduler.set_timesteps(10)
        with pytest.raises(fc.errors.StepCountError, match="going to call the model 7 times"):
            call(parts.transformer, parts.scheduler.timesteps.tolist()[3])
    assert session.stats.calls == T


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_heun_calls_the_model_twice_at_a_timestep_and_needs_a_plan_of_its_calls(dit):
    """Second-order samplers repeat a timestep; a repeated timestep is the next step, not a new run."""

    def sample():
        scheduler = HeunDiscreteScheduler()
        scheduler.set_timesteps(4)
        x = noise() * scheduler.init_noise_sigma
        with torch.no_grad():
            for time in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, time)
                epsilon = dit(scaled, timestep=time.expand(2), class_labels=torch.tensor([1, 2])).sample[:, :4]
                x = scheduler.step(epsilon, time, x).prev_sample
        return x, len(scheduler.timesteps)

    bare, count = sample()
    assert count == 7
    with fc.apply(dit, plan(dit, fc.fora(1), count)):
        assert torch.equal(sample()[0], bare)
    with fc.apply(dit, plan(dit, fc.fora(2), count)) as session:
        first, again = sample()[0], sample()[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, bare)
    assert (session.stats.generations, session.stats.calls) == (2, 14)
