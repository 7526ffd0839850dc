"""Runs that are stopped by their caller: the next one is not harmed, and the one that stopped is told."""

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from support import reference
from support.small import CLASSES, labels, noise
from support.tiny import TINY, normal

import forecache as fc

T = 6
TIMES = reference.timesteps(T)
COND, UNCOND = torch.tensor([1, 2]), torch.full((2,), CLASSES)
METHODS = [fc.fora(2), fc.goc(fc.fora(2), 0.8)]


class CancelledError(Exception):
    pass


def plan(target, method=METHODS[1]):
    return method.plan(fc.grid(target, T))


def sample(dit, seed=0, count=2, stop=None, times=TIMES):
    """A loop of the user's own, cancelled before call ``stop``; batches of any size."""
    x, y = noise(count, seed), torch.arange(count)
    with torch.no_grad():
        for step, time in enumerate(times):
            if step == stop:
                raise CancelledError
            x = x - 0.1 * dit(x, timestep=torch.full((count,), time), class_labels=y).sample[:, :4]
    return x


def alone(dit, method=METHODS[1], **how):
    with fc.apply(dit, plan(dit, method)):
        return sample(dit, **how)


def cancel(dit, stop, **how):
    with pytest.raises(CancelledError):
        sample(dit, seed=9, stop=stop, **how)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", range(1, T))
@pytest.mark.parametrize("counts", [(2, 2), (3, 2)])
def test_the_next_run_is_what_it_is_alone(dit, method, stop, counts, caplog):
    expected = alone(dit, method)
    session = fc.apply(dit, plan(dit, method)).__enter__()
    with caplog.at_level(logging.WARNING, "forecache"):
        cancel(dit, stop, count=counts[0])
        assert torch.equal(sample(dit, count=counts[1]), expected)
        assert torch.equal(sample(dit, count=counts[1]), expected)
    with pytest.raises(fc.errors.StepCountError, match=f"made {stop} model calls?, the plan has {T} steps"):
        session.__exit__(None, None, None)
    assert [record.message for record in caplog.records if "A run stopped after" in record.message] == [
        f"A run stopped after {stop} of {T} model calls, and another one began: nothing of it is reused. If it was "
        "stopped on purpose, call session.new_run(); else make a plan of as many steps as the run has calls."
    ]
    assert not any("forward" in vars(module) for module in dit.modules())


@pytest.mark.parametrize("stops", [(1, 1, 1), (3, 1, 3), (2, 5, 2)])
def test_several_cancelled_requests_in_a_row(dit, stops):
    expected = alone(dit)
    session = fc.enable(dit, plan(dit))
    for stop in stops:
        cancel(dit, stop)
        cancel(dit, stop, count=3)
        assert torch.equal(sample(dit), expected)
    assert torch.equal(sample(dit), expected)
    assert session.stats.calls == 2 * sum(stops) + 4 * T
    with pytest.raises(fc.errors.StepCountError, match="call session.new_run"):
        fc.disable(dit)
    with pytest.raises(fc.errors.RunError, match="is not enabled"):
        fc.disable(dit)
    assert not any("forward" in vars(module) for module in dit.modules())


def test_new_run_says_that_it_was_on_purpose(dit, caplog):
    expected = alone(dit)
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(dit, plan(dit)) as session:
        for stop in range(1, T):
            cancel(dit, stop)
            session.new_run()
            assert torch.equal(sample(dit), expected)
    assert not caplog.records


def test_an_exception_that_leaves_the_block_is_the_only_one(dit):
    with pytest.raises(CancelledError), fc.apply(dit, plan(dit)):
        sample(dit, stop=3)
    assert not any("forward" in vars(module) for module in dit.modules())


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("between", [False, True])
def test_a_run_of_two_lanes(dit, stop, between):
    """Cancelled between two steps, or between the two calls of a step."""

    def calls(session, seed, stop=None):
        outputs = []
        for step, time in enumerate(TIMES):
            for name, y in (("cond", COND), ("uncond", UNCOND)):
                if step == stop and (name == "uncond" or not between):
                    return outputs
                with session.lane(name), torch.no_grad():
                    outputs.append(dit(noise(2, seed), timestep=torch.full((2,), time), class_labels=y).sample)
        return outputs

    with fc.apply(dit, plan(dit)) as session:
        expected = calls(session, 0)
    session = fc.apply(dit, plan(dit)).__enter__()
    calls(session, 9, stop)
    assert all(map(torch.equal, calls(session, 0), expected))
    assert all(map(torch.equal, calls(session, 0), expected))
    with pytest.raises(fc.errors.StepCountError):
        session.__exit__(None, None, None)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_lanes_that_take_turns(dit, stop):
    """Cancelled after the first call of a run, after the first step, and between the calls of a later step."""

    def calls(seed, stop=None):
        outputs = []
        for time, y in [(time, y) for time in TIMES for y in (COND, UNCOND)][:stop]:
            with torch.no_grad():
                outputs.append(dit(noise(2, seed), timestep=torch.full((2,), time), class_labels=y).sample)
        return outputs

    with fc.apply(dit, plan(dit), lanes=["cond", "uncond"]):
        expected = calls(0)
    session = fc.apply(dit, plan(dit), lanes=["cond", "uncond"]).__enter__()
    calls(9, stop)
    assert all(map(torch.equal, calls(0), expected))
    assert all(map(torch.equal, calls(0), expected))
    with pytest.raises(fc.errors.StepCountError):
        session.__exit__(None, None, None)


def test_threads_are_not_told_of_each_others_runs(dit, caplog):
    expected = alone(dit)
    found, session = [], fc.enable(dit, plan(dit))
    thread = threading.Thread(target=cancel, args=(dit, 3))
    with caplog.at_level(logging.WARNING, "forecache"):
        thread.start()
        thread.join()
        other = threading.Thread(target=lambda: found.extend(sample(dit) for _ in range(2)))
        other.start()
        other.join()
    assert all(torch.equal(image, expected) for image in found)
    assert session.stats.calls == 3 + 2 * T
    with pytest.raises(fc.errors.StepCountError, match="made 3 model calls"):
        fc.disable(dit)


class Pipeline:
    """A pipeline without a scheduler, so that nobody announces how many steps it takes."""

    def __init__(self, transformer):
        self.transformer = transformer

    def __call__(self, **how):
        return sample(self.transformer, **how)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_pipelines_exception_tells_of_it(dit, stop, caplog):
    pipe = Pipeline(dit)
    with fc.apply(pipe, plan(pipe)):
        expected = pipe()
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(pipe, plan(pipe)):
        for count in (2, 3):
            with pytest.raises(CancelledError):
                pipe(seed=9, count=count, stop=stop)
            assert torch.equal(pipe(), expected)
    assert not caplog.records


def test_a_loop_whose_scheduler_announced_its_steps_may_stop(dit, caplog):
    parts = SimpleNamespace(transformer=dit, scheduler=DDIMScheduler())

    def calls(count, stop=None):
        outputs = []
        parts.scheduler.set_timesteps(T)
        for time in parts.scheduler.timesteps.tolist()[:stop]:
            with torch.no_grad():
                out = dit(noise(2 * count), timestep=torch.full((2 * count,), time), class_labels=labels(count))
            outputs.append(out.sample)
        return outputs

    with fc.apply(parts, plan(parts)):
        expected = calls(2)
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(parts, plan(parts)):
        for stop in (1, 3):
            calls(3, stop)
            assert all(map(torch.equal, calls(2), expected))
    assert not caplog.records


@pytest.mark.parametrize("name", ["FLUX.1", "Qwen-Image", "Z-Image"])
def test_families_at_every_level(name):
    """Of branches, of blocks, and one whose time goes up."""
    tiny = TINY[name]
    model = tiny.model()
    times = (990, 850, 700, 550)
    made = fc.fora(2).plan(fc.grid(model, len(times)))
    with fc.apply(model, made):
        expected = tiny.generate(model, times)
    session = fc.apply(model, made).__enter__()
    for stop in (1, 3):
        x = normal(*tiny.shape, seed=9)
        with torch.no_grad():
            for time in times[:stop]:
                tiny.predict(model, x.clone(), time)
        assert torch.equal(tiny.generate(model, times), expected)
    with pytest.raises(fc.errors.StepCountError, match="made . model calls?"):
        session.__exit__(None, None, None)
