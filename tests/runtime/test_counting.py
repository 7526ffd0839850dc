"""What a scheduler announces, how often a model is called, and what is counted."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from support import counting as table
from support import runs
from support.reused import ASIDE, reused
from support.small import generate_images, labels, noise, small_dit, small_vae

import forecache as fc
from forecache.runtime import calls, counting
from forecache.runtime.counting import Announcement

DOCS = Path(__file__).parents[2] / "docs" / "sessions.md"
FORA = fc.fora(2)


def even(step):
    return step % 2 == 0


def plan(run, steps, method=FORA):
    return method.plan(fc.grid(run.pipe, steps, sites=run.sites))


# ---- every scheduler -------------------------------------------------------------------------------------------------
def rows():
    text = DOCS.read_text(encoding="utf-8")
    return text[text.index(table.BEGIN) + len(table.BEGIN) : text.index(table.END)].strip().splitlines()


SLOW = {"FlowMapEulerDiscreteScheduler", "AnyFlow, a KV cache filled after each chunk"}
"""Compiled attention."""


def with_marks(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("name", with_marks(name for name in table.schedulers() if name not in table.NOT_RUN))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_counted_is_what_is_called(name):
    run = table.run_with(name)
    announced, calls, found = table.counted(run)
    assert sum(found) == calls
    (row,) = [row for row in rows() if f"`{name}`" in row]
    of = [part.strip() for part in row.strip("|").split("|")][3:]
    assert of[0] == str(announced)
    assert of[1].split()[0] == str(calls)
    assert of[2] == (str(calls) if len(found) == 1 else f"{len(found)} x {found[0]}")


def test_the_table_names_every_scheduler_of_a_transformer():
    named = {row.split("`")[1] for row in rows()[2:]}
    assert named | set(table.NOT_RUN) == set(table.schedulers())
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in table.NOT_RUN)


# ---- where a run starts ----------------------------------------------------------------------------------------------
FLOW = (1000.0, 900.0, 750.0, 500.0, 1.0)
"""As flow-matching schedulers announce them; the last is what a model is given first, as a fraction."""


@pytest.mark.parametrize(
    ("timestep", "begin", "first"),
    [
        (1000.0, None, 0),
        (750.0, None, 2),
        (1.0, None, 0),  # 1000 / 1000, and not the last timestep
        (0.75, None, 2),
        (0.25, None, 2),  # 1 - 750 / 1000
        (0.0, None, 0),
        (752.0, None, 2),  # 750 in bfloat16
        (1.0, 4, 4),  # image-to-image with one call
        (0.001, 4, 4),
        (None, 3, 3),
        (None, None, 0),
        (1.6, 0, 0),
        (123.0, None, 0),
    ],
)
def test_where_a_run_starts(timestep, begin, first):
    scheduler = SimpleNamespace(begin_index=begin, config=SimpleNamespace(num_train_timesteps=1000))
    run = counting.run_of(Announcement(FLOW), timestep, scheduler)
    assert (run.total, run.num_calls, run.timesteps) == (5 - first, 5 - first, FLOW[first:])


def test_the_parts_of_two_transformers_and_the_rest_of_a_run():
    run = counting.run_of(Announcement(FLOW), 750.0, part=lambda timesteps: range(2, len(timesteps)))
    assert (run.total, run.indices, run.timesteps) == (5, range(2, 5), FLOW[2:])
    rest = run.rest(2)
    assert (rest.total, rest.indices, rest.timesteps, rest.num_calls) == (5, range(4, 5), (1.0,), 1)
    assert rest.timestep(0) == 1.0
    assert rest.timestep(1) is None


def test_a_scheduler_of_sana_sprint_announces_its_end_and_others_do_not():
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(2)
    assert len(scheduler.timesteps) == 3
    assert len(counting.announced(scheduler).timesteps) == 2
    other = diffusers.DDIMScheduler()
    other.set_timesteps(3)
    assert counting.announced(other) == Announcement(tuple(other.timesteps.tolist()))


# ---- pipelines that make other calls ---------------------------------------------------------------------------------
def chunks(count, steps, lanes=1):
    """Calls of several generations, each of so many steps, in so many lanes."""
    return [((chunk, lane), step) for chunk in range(count) for step in range(steps) for lane in range(lanes)]


def any_flow_calls(steps):
    calls = []
    for chunk in range(3):
        calls += [((chunk, 0), step) for step in range(steps)] + [ASIDE] * (chunk < 2)
    return calls


CHUNKED = {
    "AnyFlow, a KV cache filled after each chunk": (runs.any_flow, 5, any_flow_calls(5), 3),
    "SkyReels": (runs.sky_reels, 5, chunks(1, 5, 2), 1),
    "SkyReels, frames that lag behind": (runs.sky_reels_lagging, 9, chunks(1, 9, 2), 1),
    "SkyReels, windows that nothing announces": (runs.sky_reels_long, 5, chunks(3, 5, 2), 3),
    "LTX, windows of prompts": (runs.ltx_long, 5, chunks(2, 5), 2),
    "Sana-Sprint": (runs.sana_sprint, 5, chunks(1, 5), 1),
}
"""The run, the calls of one generation, all calls, and the number of generations."""


@pytest.mark.parametrize("name", CHUNKED)
def test_each_chunk_is_a_generation_and_the_announced_number_is_asked_for(name):
    make, steps, calls, generations = CHUNKED[name]
    run = make()
    bare = run.sample()
    with fc.apply(run.pipe, plan(run, steps, fc.fora(1))):
        assert torch.equal(run.sample(), bare)
    with fc.apply(run.pipe, plan(run, steps)) as session:
        found, again = run.sample(), run.sample()
    assert torch.equal(found, again)
    assert not torch.equal(found, bare)
    assert (session.stats.calls, session.stats.generations) == (2 * len(calls), 2 * generations)
    with reused(run.pipe.transformer, calls, even, run.sites):
        expected = run.sample()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", with_marks(CHUNKED))
def test_the_advice_of_a_wrong_number_leads_to_one_that_works(name):
    make, steps, *_ = CHUNKED[name]
    run = make()
    with fc.apply(run.pipe, plan(run, steps + 1)), pytest.raises(fc.errors.StepCountError) as error:
        run.sample()
    (advised,) = re.findall(r"num_steps=(\d+)\)", str(error.value))
    assert int(advised) == steps
    with fc.apply(run.pipe, plan(run, int(advised))):
        run.sample()
    assert "resample=True" in str(error.value)
    with fc.apply(run.pipe, plan(run, steps + 1), resample=True):
        run.sample()


def test_a_call_that_fills_a_kv_cache_is_told_by_its_arguments():
    layer = SimpleNamespace(mode="write")
    assert calls.fills_kv_cache({"kv_caches": SimpleNamespace(caches=[layer])})
    layer.mode = "read"
    assert not calls.fills_kv_cache({"kv_caches": SimpleNamespace(caches=[layer])})
    assert calls.fills_kv_cache({"kv_cache_flag": {"is_cache_step": True}})
    assert not calls.fills_kv_cache({"kv_cache_flag": {"is_cache_step": False}, "kv_caches": None})
    assert not calls.fills_kv_cache({"kv_cache": {}, "timestep": 1})


def test_both_transformers_of_ideogram_are_cached():
    run = runs.ideogram()
    bare = run.sample()
    with fc.apply(run.pipe, plan(run, 5, fc.fora(1))):
        assert torch.equal(run.sample(), bare)
    with fc.apply(run.pipe, plan(run, 5)) as session:
        found, again = run.sample(), run.sample()
    assert torch.equal(found, again)
    assert (session.stats.generations, session.stats.calls) == (2, 20)
    assert session.stats.computed == 2 * 2 * 3 * len(session.plan.grid.sites)
    peaks = [model.stats.peak_cache_bytes for model in session._models]
    assert session.stats.peak_cache_bytes == sum(peaks)
    words = "Ideogram4Transformer2DModel cannot be known from shapes alone"
    with fc.apply(run.pipe, plan(run, 5), max_cache_bytes=10**6), pytest.raises(fc.errors.InputError, match=words):
        run.sample()
    calls = chunks(1, 5)
    with (
        reused(run.pipe.transformer, calls, even, run.sites),
        reused(run.pipe.unconditional_transformer, calls, even, run.sites),
    ):
        torch.testing.assert_close(found, run.sample(), rtol=1e-4, atol=1e-4)
    assert torch.equal(run.sample(), bare)
    with pytest.raises(fc.errors.ModelError, match="pipe.transformer or pipe.unconditional_transformer"):
        fc.models.find.find(run.pipe)


# ---- runs of one call, and of few ------------------------------------------------------------------------------------
def dit_pipe():
    pipe = diffusers.DiTPipeline(small_dit(classes=1000, seed=2), small_vae(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_run_of_one_call_is_computed_whatever_the_plan():
    pipe = dit_pipe()
    bare = generate_images(pipe, 1)
    for method in (FORA, fc.goc(FORA, 0.8)):
        with fc.apply(pipe, method.plan(fc.grid(pipe, 6))) as session:
            assert (generate_images(pipe, 1) == bare).all()
            generate_images(pipe, 6)
        assert (session.stats.generations, session.stats.calls) == (2, 7)


def test_a_loop_that_made_one_call_is_not_told_to_make_a_plan_of_one_step(dit):
    def call():
        with torch.no_grad():
            dit(noise(4), timestep=torch.full((4,), 900), class_labels=labels())

    made = FORA.plan(fc.grid(dit, 6))
    words = "1 model call, .* outside of this block"
    with pytest.raises(fc.errors.StepCountError, match=words) as error, fc.apply(dit, made):
        call()
    assert "num_steps" not in str(error.value)
    call()  # as it says
    with fc.apply(dit, made) as session:  # and as it says, too
        call()
        session.new_run()


@pytest.mark.parametrize("steps", [2, 4, 5])
def test_a_plan_of_very_few_steps_is_told_of_once(steps, caplog):
    pipe = dit_pipe()
    with caplog.at_level(logging.WARNING, "forecache"):
        with fc.apply(pipe, FORA.plan(fc.grid(pipe, steps))):
            generate_images(pipe, steps)
            generate_images(pipe, steps)
        with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, steps))):
            generate_images(pipe, steps)
    told = [record.message for record in caplog.records if "distilled" in record.message]
    assert len(told) == (1 if steps <= 4 else 0)
    assert all(f"A plan of {steps} steps" in message for message in told)


# ---- time that goes up -----------------------------------------------------------------------------------------------
def rising_calls(dit, times, seed=0):
    x = noise(4, seed)
    outputs = []
    with torch.no_grad():
        for time in times:
            x = x - 0.1 * dit(x, timestep=torch.full((4,), time), class_labels=labels()).sample[:, :4]
            outputs.append(x)
    return outputs[-1]


def test_time_that_goes_up_in_a_loop_of_ones_own(dit):
    """Its direction is known after two steps, which are both computed; the next run follows the plan exactly."""
    times = [0.0, 100.0, 300.0, 500.0, 700.0, 900.0]
    made = FORA.plan(fc.grid(dit, len(times)))
    with fc.apply(dit, made) as session:
        first = rising_calls(dit, times)
        before = session.stats
        second, third = rising_calls(dit, times, seed=1), rising_calls(dit, times)
    sites = len(made.grid.sites)
    assert before.calls == 6
    assert session.stats.computed - before.computed == 2 * 3 * sites
    assert session.stats.skipped - before.skipped == 2 * 3 * sites
    assert before.skipped >= 2 * sites
    with reused(dit, [(0, step) for step in range(6)], even):
        torch.testing.assert_close(third, rising_calls(dit, times), rtol=1e-4, atol=1e-4)
    with reused(dit, [(0, step) for step in range(6)], even):
        torch.testing.assert_close(second, rising_calls(dit, times, seed=1), rtol=1e-4, atol=1e-4)
    with reused(dit, [(0, step) for step in range(6)], lambda step: step in (0, 1, 3, 5)):
        torch.testing.assert_close(first, rising_calls(dit, times), rtol=1e-4, atol=1e-4)


def euler_calls(parts, time_of, seed=0, stop=None, announce=True):
    """A loop of the user's own around a scheduler, whose model is given a time of the user's own."""
    x, outputs = noise(4, seed), []
    if announce:
        parts.scheduler.set_timesteps(6)
    with torch.no_grad():
        for time in parts.scheduler.timesteps.tolist()[:stop]:
            given = torch.full((4,), time_of(time))
            x = x - 0.1 * parts.transformer(x, timestep=given, class_labels=labels()).sample[:, :4]
            outputs.append(x)
    return outputs[-1]


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("time_of", [lambda time: time, lambda time: time / 1000, lambda time: 1 - time / 1000])
def test_a_loop_whose_scheduler_announced_its_steps_follows_the_plan_from_the_first_run_on(dit, time_of, announce):
    """Whatever the model is given as its time; and after a run that was stopped the next one is as if it were alone."""
    parts = SimpleNamespace(transformer=dit, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    with fc.apply(parts, FORA.plan(fc.grid(parts, 6))) as session:
        found = euler_calls(parts, time_of)
        sites = len(session.plan.grid.sites)
        assert (session.stats.calls, session.stats.computed) == (6, 3 * sites)
        for stop in (1, 3):
            euler_calls(parts, time_of, seed=9, stop=stop, announce=announce)
            assert torch.equal(euler_calls(parts, time_of, announce=announce), found)
    with reused(dit, [(0, step) for step in range(6)], even):
        torch.testing.assert_close(found, euler_calls(parts, time_of), rtol=1e-4, atol=1e-4)


def test_a_timestep_on_a_gpu_is_not_taken_for_one_of_another_run(dit, monkeypatch):
    """It is not read, and so neither known to be another nor the same."""
    monkeypatch.setattr(calls, "is_at_hand", lambda timestep: False)
    parts = SimpleNamespace(transformer=dit, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    with fc.apply(parts, FORA.plan(fc.grid(parts, 6))) as session:
        found = euler_calls(parts, lambda time: time)
        assert torch.equal(euler_calls(parts, lambda time: time), found)
    assert session.stats.generations == 2
    assert session.stats.computed == 2 * 3 * len(session.plan.grid.sites)


def test_a_time_that_goes_up_as_nothing_announced_it(dit):
    parts = SimpleNamespace(transformer=dit, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())

    def time_of(time):
        return 1 - (time / 1000) ** 2

    with fc.apply(parts, FORA.plan(fc.grid(parts, 6))) as session:
        euler_calls(parts, time_of)
        sites = len(session.plan.grid.sites)
        assert session.stats.skipped >= 2 * sites
        found = euler_calls(parts, time_of, seed=1)
    assert session.stats.calls == 12
    with reused(dit, [(0, step) for step in range(6)], even):
        torch.testing.assert_close(found, euler_calls(parts, time_of, seed=1), rtol=1e-4, atol=1e-4)


# ---- advice ----------------------------------------------------------------------------------------------------------
def falling_calls(dit, count):
    return rising_calls(dit, [1000 - 100 * step for step in range(count)])


@pytest.mark.parametrize("count", [2, 4])
def test_the_advice_to_a_loop_that_is_too_short(dit, count):
    with pytest.raises(fc.errors.StepCountError) as error, fc.apply(dit, FORA.plan(fc.grid(dit, 6))):
        falling_calls(dit, count)
    (advised,) = re.findall(r"num_steps=(\d+)\)", str(error.value))
    with fc.apply(dit, FORA.plan(fc.grid(dit, int(advised)))) as session:
        falling_calls(dit, count)
    assert session.stats.calls == count
    with fc.apply(dit, FORA.plan(fc.grid(dit, 6))) as session:
        falling_calls(dit, count)
        session.new_run()


class Forgetful(diffusers.DDIMScheduler):
    """Announces a call less than its loop makes."""

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.timesteps[:-1]


def test_the_advice_where_more_calls_are_made_than_were_announced(dit):
    parts = SimpleNamespace(transformer=dit, scheduler=Forgetful())

    def calls():
        parts.scheduler.set_timesteps(6)
        return rising_calls(dit, [*parts.scheduler.timesteps.tolist(), 0.0])

    words = "announced 5 model calls, and this run makes one more .*forecache.apply.pipe.transformer, plan"
    with fc.apply(parts, FORA.plan(fc.grid(parts, 5))), pytest.raises(fc.errors.StepCountError, match=words):
        calls()
    with fc.apply(parts.transformer, FORA.plan(fc.grid(parts, 6))) as session:
        calls()
    assert session.stats.calls == 6
