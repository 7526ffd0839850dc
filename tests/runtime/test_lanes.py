"""Lanes and threads: histories that share nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from support import reference
from support.small import CLASSES, generate, labels, noise, small_dit

import forecache as fc
from forecache.runtime import calls

T = 6
TIMES = reference.timesteps(T)
COND, UNCOND = torch.tensor([1, 2]), torch.full((2,), CLASSES)


def plan(target, method=None):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(target, T))


@torch.no_grad()
def call(dit, time, y, seed=0):
    return dit(noise(len(y), seed), timestep=torch.full((len(y),), time), class_labels=y).sample


def alone(dit, y, seed=0):
    with fc.apply(dit, plan(dit)):
        return [call(dit, time, y, seed) for time in TIMES]


def equal(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


# ---- lanes ----------------------------------------------------------------------------------------------------------


def test_two_lanes_equal_two_sessions(dit):
    expected = alone(dit, COND), alone(dit, UNCOND)
    cond, uncond = [], []
    with fc.apply(dit, plan(dit)) as session:
        for time in TIMES:
            with session.lane("cond"):
                cond.append(call(dit, time, COND))
            with session.lane("uncond"):
                uncond.append(call(dit, time, UNCOND))
    assert equal(cond, expected[0])
    assert equal(uncond, expected[1])


def test_lanes_of_one_generation_are_one_generation(dit):
    with fc.apply(dit, plan(dit)) as session:
        for _ in range(2):
            for time in TIMES:
                for name, y in (("cond", COND), ("uncond", UNCOND)):
                    with session.lane(name):
                        call(dit, time, y)
    assert (session.stats.generations, session.stats.calls) == (2, 4 * T)


def test_lanes_hold_the_sum_of_their_caches(dit):
    with fc.apply(dit, plan(dit)) as session:
        generate(dit, T, count=1)
    one = session.stats.peak_cache_bytes
    with fc.apply(dit, plan(dit)) as session:
        for time in TIMES:
            for name, y in (("cond", COND), ("uncond", UNCOND)):
                with session.lane(name):
                    call(dit, time, y)
    # both lanes keep two features from step 2 on; while one lane runs a step the other holds its own
    assert one < session.stats.peak_cache_bytes <= 2 * one


def test_a_lane_beside_unnamed_calls(dit):
    expected, other = alone(dit, COND), alone(dit, UNCOND)
    unnamed, named = [], []
    with fc.apply(dit, plan(dit)) as session:
        for time in TIMES:
            unnamed.append(call(dit, time, COND))
            with session.lane("uncond"):
                named.append(call(dit, time, UNCOND))
    assert equal(unnamed, expected)
    assert equal(named, other)


def test_a_lane_inside_a_lane(dit):
    """The inner one ends where the outer one goes on."""
    expected, other = alone(dit, COND), alone(dit, UNCOND)
    outer, inner = [], []
    with fc.apply(dit, plan(dit)) as session:
        for step, time in enumerate(TIMES):
            with session.lane("cond"):
                if step % 2:
                    outer.append(call(dit, time, COND))
                with session.lane("uncond"):
                    inner.append(call(dit, time, UNCOND))
                if not step % 2:
                    outer.append(call(dit, time, COND))
    assert equal(outer, expected)
    assert equal(inner, other)


def test_after_a_lane_that_failed_calls_are_unnamed_again(dit):
    expected = alone(dit, COND)
    with fc.apply(dit, plan(dit)) as session:
        outputs = [call(dit, time, COND) for time in TIMES[:3]]
        with pytest.raises(ZeroDivisionError), session.lane("uncond"):
            raise ZeroDivisionError
        outputs += [call(dit, time, COND) for time in TIMES[3:]]
    assert equal(outputs, expected)


def test_two_calls_a_step_without_lanes_are_refused_with_the_remedy(dit):
    words = r"one more model call.*name the calls with session\.lane\(name\)"
    with fc.apply(dit, plan(dit)), pytest.raises(fc.errors.StepCountError, match=words):
        [call(dit, time, y) for time in TIMES for y in (COND, UNCOND)]


def test_a_lane_that_stopped_early_is_refused_when_the_block_ends(dit):
    session = fc.apply(dit, plan(dit)).__enter__()
    for time in TIMES:
        call(dit, time, COND)
    with session.lane("uncond"):
        for time in TIMES[:2]:
            call(dit, time, UNCOND)
    with pytest.raises(fc.errors.StepCountError, match="made 2 model calls"):
        session.__exit__(None, None, None)


def test_a_generation_of_known_length_may_be_stopped_in_every_lane(pipe):
    """The scheduler told the length, so stopping early is the user's choice; one lane or two make no difference."""
    parts = SimpleNamespace(transformer=pipe.transformer, scheduler=pipe.scheduler)
    for lanes in (("cond",), ("cond", "uncond")):
        with fc.apply(parts, plan(parts)) as session:
            pipe.scheduler.set_timesteps(T)
            for time in pipe.scheduler.timesteps.tolist()[:3]:
                for name in lanes:
                    with session.lane(name):
                        call(pipe.transformer, time, COND)
        assert session.stats.calls == 3 * len(lanes)


# ---- threads --------------------------------------------------------------------------------------------------------


def together(*works):
    """Run the works in threads of their own; each gets ``meet``, which waits for the others."""
    barrier = threading.Barrier(len(works), timeout=60)
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work, barrier.wait) for work in works]
        return [future.result() for future in futures]


def sampling(dit, seed, y):
    """The calls of one generation, in step with the other threads."""

    def work(meet):
        outputs = []
        for time in TIMES:
            meet()
            outputs.append(call(dit, time, y, seed))
        return outputs

    return work


def test_one_session_gives_each_thread_what_it_gives_it_alone(dit):
    expected = [alone(dit, COND, seed) for seed in range(3)]
    with fc.apply(dit, plan(dit)) as session:
        found = together(*(sampling(dit, seed, COND) for seed in range(3)))
    assert all(map(equal, found, expected))
    assert (session.stats.generations, session.stats.calls) == (3, 3 * T)


def test_two_models_in_two_threads_share_nothing(dit):
    other = small_dit(num_layers=2, seed=5)
    expected = alone(dit, COND), alone(other, UNCOND, 1)
    with fc.apply(dit, plan(dit)) as first, fc.apply(other, plan(other)) as second:
        found = together(sampling(dit, 0, COND), sampling(other, 1, UNCOND))
    assert all(map(equal, found, expected))
    assert first.stats.calls == second.stats.calls == T


def test_threads_that_open_their_own_sessions_share_nothing(dit):
    other = small_dit(seed=5)
    expected = alone(dit, COND), alone(other, COND)

    def work(model):
        def opened(meet):
            meet()
            with fc.apply(model, plan(model)):
                return sampling(model, 0, COND)(meet)

        return opened

    assert all(map(equal, together(work(dit), work(other)), expected))


def test_lanes_belong_to_their_thread(dit):
    """Two threads use the same name of a lane at the same time."""
    expected = [alone(dit, COND, seed) for seed in range(2)]
    with fc.apply(dit, plan(dit)) as session:

        def work(seed):
            def named(meet):
                with session.lane("cond"):
                    return sampling(dit, seed, COND)(meet)

            return named

        found = together(work(0), work(1))
    assert all(map(equal, found, expected))


def test_a_failure_in_one_thread_leaves_the_other_alone(dit):
    expected = alone(dit, COND)

    def failing(meet):
        for time in TIMES:
            meet()
            with pytest.raises(IndexError):  # a label that the model does not have
                call(dit, time, COND + CLASSES)

    with fc.apply(dit, plan(dit)):
        found = together(sampling(dit, 0, COND), failing)
    assert equal(found[0], expected)


def test_a_thread_that_stopped_early_is_refused_when_the_block_ends(dit):
    with pytest.raises(fc.errors.StepCountError, match="made 2 model calls"), fc.apply(dit, plan(dit)):
        together(lambda meet: [call(dit, time, labels(1)) for time in TIMES[:2]])


def test_a_second_call_with_the_same_sample_is_refused_at_once_however_long_the_plan_is(dit):
    """A plan of twice the steps would let the two calls of a step reuse each other's features."""
    x, time = noise(2), torch.full((2,), TIMES[0])
    twice = fc.fora(2).plan(fc.grid(dit, 2 * T))
    words = r"several times a step, at timestep \d+ with the same sample again.*session\.lane\(name\)"
    with torch.no_grad(), fc.apply(dit, twice) as session:
        dit(x, timestep=time, class_labels=COND)
        with pytest.raises(fc.errors.StepCountError, match=words):
            dit(x, timestep=time, class_labels=UNCOND)
        dit(x, timestep=time, class_labels=COND)
        x.add_(1)  # another sample in the same memory, as of a second-order sampler, is the next step
        dit(x, timestep=time, class_labels=COND)
        session.new_run()
    assert session.stats.skipped > 0


def test_turns_begin_anew_with_every_generation(dit):
    """After a failure in the first call of a step, after new_run, and after a plan of one step."""
    with fc.apply(dit, fc.fora(1).plan(fc.grid(dit, 1)), lanes=["cond", "uncond"]) as session:
        first = [call(dit, TIMES[0], y) for y in (COND, UNCOND)]
        assert equal([call(dit, TIMES[0], y) for y in (COND, UNCOND)], first)
    assert session.stats.generations == 2
    with fc.apply(dit, plan(dit), lanes=["cond", "uncond"]) as session:
        call(dit, TIMES[0], COND)
        session.new_run()
        handle = dit.proj_out_2.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(dit, TIMES[0], COND)
        handle.remove()
        found = {y: [] for y in (COND, UNCOND)}
        for time in TIMES:
            for y, outputs in found.items():
                outputs.append(call(dit, time, y))
    assert all(equal(outputs, alone(dit, y)) for y, outputs in found.items())


class Told:
    """A scheduler whose first two timesteps are one in bfloat16."""

    def set_timesteps(self, count):
        self.timesteps = torch.tensor([998.0, 997.0, *TIMES[2:]][:count])


def test_steps_that_are_rounded_to_one_timestep_are_told_apart_where_a_scheduler_told_them(dit):
    parts = SimpleNamespace(transformer=dit, scheduler=Told())
    found = {y: [] for y in (COND, UNCOND)}
    with fc.apply(parts, plan(dit), lanes=["cond", "uncond"]) as session:
        parts.scheduler.set_timesteps(T)
        for number, time in enumerate(parts.scheduler.timesteps.to(torch.bfloat16).tolist()):
            for y, outputs in found.items():
                outputs.append(call(dit, int(time), y, seed=number))
    assert session.stats.calls == 2 * T
    for y, outputs in found.items():
        with fc.apply(dit, plan(dit)):
            times = parts.scheduler.timesteps.to(torch.bfloat16).tolist()
            assert equal(outputs, [call(dit, int(time), y, seed=number) for number, time in enumerate(times)])


def test_a_timestep_that_lies_on_a_gpu_is_read_once_a_generation(dit, monkeypatch):
    """Where a scheduler has announced the timesteps, calls take the names in turn, and no timestep is read."""
    reads, as_number = [], calls.as_number
    monkeypatch.setattr(calls, "is_at_hand", lambda timestep: False)
    monkeypatch.setattr(calls, "as_number", lambda *args: reads.append(1) or as_number(*args))
    parts = SimpleNamespace(transformer=dit, scheduler=Told())
    with fc.apply(parts, plan(dit), lanes=["cond", "uncond"]) as session:
        parts.scheduler.set_timesteps(T)
        for number_of_step, time in enumerate(TIMES):
            for y in (COND, UNCOND):
                call(dit, time, y, seed=number_of_step)
    assert session.stats.calls == 2 * T
    assert len(reads) <= 1 + 2  # whose turn it is, and where each lane begins
