"""One long-lived pipeline and many requests: enable and disable, sharing, other lengths, guards, threads, processes."""

import asyncio
import gc
import logging
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from support.small import generate, generate_images, noise, small_dit, small_vae
from support.traces import everything

import forecache as fc

T = 6


def plan(target, method=None, steps=T):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(target, steps))


def dit_pipe(transformer=None, scheduler=None):
    pipe = DiTPipeline(transformer or small_dit(classes=1000, seed=2), small_vae(), scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def alone(pipe, made, steps=T, seed=0):
    with fc.apply(pipe, made):
        return generate_images(pipe, steps, seed)


# ---- enable and disable ---------------------------------------------------------------------------------------------


def test_enabled_until_disabled():
    pipe = dit_pipe()
    bare, expected = generate_images(pipe, T), alone(pipe, plan(pipe))
    before, kind = everything(pipe.transformer), type(pipe)
    session = fc.enable(pipe, plan(pipe))
    assert all(np.array_equal(generate_images(pipe, T), expected) for _ in range(2))
    assert session.stats.generations == 2
    fc.disable(pipe)
    assert everything(pipe.transformer) == before
    assert type(pipe) is kind
    assert np.array_equal(generate_images(pipe, T), bare)
    fc.enable(pipe, plan(pipe, fc.fora(3)))
    fc.disable(pipe)
    assert np.array_equal(generate_images(pipe, T), bare)


def test_enabling_twice_and_disabling_what_is_not_enabled_are_errors():
    pipe = dit_pipe()
    with pytest.raises(fc.errors.RunError, match="is not enabled"):
        fc.disable(pipe)
    fc.enable(pipe, plan(pipe))
    for target in (pipe, pipe.transformer):
        with pytest.raises(fc.errors.AlreadyAppliedError, match=r"forecache\.disable"):
            fc.enable(target, plan(pipe))
    with pytest.raises(fc.errors.AlreadyAppliedError), fc.apply(pipe, plan(pipe)):
        pass
    expected = generate_images(pipe, T)
    fc.disable(pipe)
    assert np.array_equal(alone(pipe, plan(pipe)), expected)
    with pytest.raises(fc.errors.RunError, match="is not enabled"):
        fc.disable(pipe)


# ---- sharing --------------------------------------------------------------------------------------------------------


def test_two_pipelines_of_one_class_are_independent():
    one, two = dit_pipe(), dit_pipe(small_dit(classes=1000, seed=7))
    bare, expected = generate_images(two, T), alone(one, plan(one))
    with fc.apply(one, plan(one)) as session:
        assert np.array_equal(generate_images(two, T), bare)
        assert np.array_equal(generate_images(one, T), expected)
    assert session.stats.generations == 1


@pytest.mark.parametrize("shared_scheduler", [False, True])
def test_two_pipelines_with_one_transformer_are_independent(shared_scheduler):
    """As `from_pipe` makes them: even the scheduler may be the same object."""
    one = dit_pipe()
    two = dit_pipe(one.transformer, one.scheduler if shared_scheduler else None)
    bare = generate_images(two, T)
    goc, fora = plan(one), plan(two, fc.fora(3))
    by_goc, by_fora = alone(one, goc), alone(two, fora)
    with fc.apply(one, goc):
        assert np.array_equal(generate_images(two, T), bare)
        assert np.array_equal(generate_images(one, T), by_goc)
    fc.enable(one, goc)
    fc.enable(two, fora)
    for _ in range(2):
        assert np.array_equal(generate_images(one, T), by_goc)
        assert np.array_equal(generate_images(two, T), by_fora)
    fc.disable(one)  # in the order in which they came, not the reverse
    assert np.array_equal(generate_images(two, T), by_fora)
    assert np.array_equal(generate_images(one, T), bare)
    fc.disable(two)
    assert np.array_equal(generate_images(two, T), bare)
    assert all("forward" not in vars(module) for module in one.transformer.modules())


def test_a_plan_on_a_pipeline_that_is_never_called_is_an_error():
    pipe = dit_pipe()
    session = fc.apply(pipe, plan(pipe)).__enter__()
    generate(pipe.transformer, T)
    with pytest.raises(fc.errors.RunError, match=r"called 6 times in this block, but never by that pipeline"):
        session.__exit__(None, None, None)


# ---- other lengths --------------------------------------------------------------------------------------------------


def test_another_length_is_an_error_or_resampled_with_a_line_in_the_log(caplog):
    pipe = dit_pipe()
    made = plan(pipe)
    with fc.apply(pipe, made), pytest.raises(fc.errors.StepCountError, match="resample=True"):
        generate_images(pipe, 10)
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(pipe, made, resample=True) as session:
        found = [generate_images(pipe, steps) for steps in (10, T, 10, 3)]
    assert [record.message for record in caplog.records] == [
        "A plan of 6 steps was resampled to 10: measure its quality.",
        "A plan of 6 steps was resampled to 3: measure its quality.",
        "A plan of 3 steps skips some of them. The steps of distilled models differ most, and each is a large part of "
        "the run: compare images with and without the plan before you keep it.",
    ]
    for image, steps in zip(found, (10, T, 10, 3), strict=True):
        assert np.array_equal(image, alone(pipe, fc.methods.resampled(made, steps), steps))
    assert session.stats.generations == 4


METHODS = {
    "fora": fc.fora(2),
    "goc": fc.goc(fc.fora(2), 0.8),
    "goc, long gaps": fc.goc(fc.fora(4), 1.2),
    "goc over computed": fc.goc(fc.fora(3), 0.5, history="computed"),
    "taylor": fc.taylorseer(fc.fora(3), 2),
    "feedback": fc.feedback(fc.fora(3), 2, 0.5),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_even_schedule_resampled_is_the_method_at_that_length(dit, name):
    method = METHODS[name]
    made = plan(dit, method, 20)
    for steps in (8, 12, 20, 40, 50):
        assert fc.methods.resampled(made, steps).rows == plan(dit, method, steps).rows


def test_a_resampled_schedule_is_dense_where_the_plan_was(dit):
    def picture(steps):
        return fc.methods.resampled(made, steps).picture()

    made = plan(dit, fc.Method("two halves", fc.parts.schedules.by_step("##########....#....#")), 20)
    assert made.picture() == picture(20) == "##########....#....#"
    # by hand: the computed steps lie at places 0 ... 9, 14, 19 of 20, one in five from 9 on
    assert picture(40) == "###################" + "....#" * 4 + "."
    assert picture(10) == "#####..#.."


def test_chosen_tokens_are_chosen_in_the_resampled_plan_as_well(dit):
    made = plan(dit, fc.selective(fc.fora(4), share=0.4, importance="random"), 12)
    again = fc.methods.resampled(made, 24)
    signs = [made.picture().replace("\n", ""), again.picture().replace("\n", "")]
    assert all({"#", "o"} <= set(each) for each in signs)
    assert signs[0].count("o") / len(signs[0]) == pytest.approx(signs[1].count("o") / len(signs[1]), abs=0.1)
    with fc.apply(dit, again) as session:
        generate(dit, 24)
    assert session.stats.partial > 0


def test_what_cannot_be_resampled_is_refused(dit):
    made = plan(dit)
    cell = replace(made.rows[0][3], reads=((2, 1.7), (0, -0.7)))
    odd = replace(made, rows=((*made.rows[0][:3], cell, *made.rows[0][4:]), *made.rows[1:]))
    with pytest.raises(fc.errors.PlanError, match="not those of reuse or of a Taylor forecast"):
        fc.methods.resampled(odd, 10)


# ---- guards ---------------------------------------------------------------------------------------------------------


def test_estimates_that_go_too_far_fall_back_to_reuse(dit):
    wild = plan(dit, fc.goc(fc.fora(2), 500.0))
    with fc.apply(dit, plan(dit, fc.fora(2))):
        reuse = generate(dit, T)
    with fc.apply(dit, wild, guards=fc.runtime.Guards(max_error=1e-6)) as session:
        assert torch.equal(generate(dit, T), reuse)
    cells = sum(cell.sign == "~" for row in wild.rows for cell in row)
    assert session.stats.fallbacks == 4 * cells  # every sample of the guidance pair of two
    with fc.apply(dit, plan(dit)):
        expected = generate(dit, T)
    with fc.apply(dit, plan(dit), guards=fc.runtime.Guards(max_error=1e6)) as session:
        torch.testing.assert_close(generate(dit, T), expected, rtol=1e-5, atol=1e-5)
    assert session.stats.fallbacks == 0


def test_a_sample_falls_back_by_itself(dit):
    """What the others in the batch are does not matter, nor that one of them is not finite."""
    x = noise(2)
    spoilt = torch.cat([x[:1], torch.full_like(x[1:], float("nan"))])

    def sample(start):
        outputs = []
        with torch.no_grad():
            for time in (900, 700, 500, 300):
                y, t = torch.tensor([1, 2]), torch.full((2,), time)
                outputs.append(dit(start * (time / 900), timestep=t, class_labels=y).sample[0])
        return outputs

    method = fc.goc(fc.fora(2), 0.8)
    runs = []
    for start in (x, spoilt):
        with fc.apply(dit, plan(dit, method, 4), guards=fc.runtime.Guards(max_error=0.1)):
            runs.append(sample(start))
    assert all(map(torch.equal, *runs))


def test_max_error_is_the_ratio_of_norms():
    from forecache.runtime.executor import limited

    newest = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    change = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    ratio = torch.tensor([0.1, 0.49, 0.51, 2.0]).view(4, 1, 1)
    change *= ratio * newest.flatten(1).norm(dim=1).view(4, 1, 1) / change.flatten(1).norm(dim=1).view(4, 1, 1)
    found, fallen = limited(newest + change, newest, 0.5)
    assert int(fallen) == 2
    torch.testing.assert_close(found[:2], (newest + change)[:2])
    assert torch.equal(found[2:], newest[2:])
    found, fallen = limited(torch.full_like(newest, torch.inf), newest, 0.5)
    assert torch.equal(found, newest)
    assert int(fallen) == 4


def test_a_plan_that_computes_too_little_is_refused(dit):
    with pytest.raises(fc.errors.PlanError, match=r"computes 50\.0% of the features, and min_computed asks for 60\.0%"):
        fc.apply(dit, plan(dit), guards=fc.runtime.Guards(min_computed=0.6))
    fc.apply(dit, plan(dit), guards=fc.runtime.Guards(min_computed=0.5))


def test_a_plan_of_other_weights_or_another_scheduler_is_refused():
    pipe, other = dit_pipe(), dit_pipe(small_dit(classes=1000, seed=9))
    guards = fc.runtime.Guards(same_model=True, same_scheduler=True)
    fc.apply(pipe, plan(pipe), guards=guards)
    fc.apply(pipe.to(torch.bfloat16), plan(pipe), guards=guards)
    with pytest.raises(fc.errors.PlanMismatchError, match="another model's weights"):
        fc.apply(other, plan(pipe), guards=guards)
    pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    with pytest.raises(fc.errors.PlanMismatchError, match="another scheduler"):
        fc.apply(pipe, plan(dit_pipe()), guards=fc.runtime.Guards(same_scheduler=True))


@pytest.mark.parametrize("wrong", [{"max_error": 0.0}, {"max_error": float("nan")}, {"min_computed": 1.5}])
def test_guards_that_make_no_sense_are_refused(wrong):
    with pytest.raises(fc.errors.PlanError, match=next(iter(wrong))):
        fc.runtime.Guards(**wrong)


# ---- threads, asyncio, processes ------------------------------------------------------------------------------------


def test_an_asyncio_server_with_a_pipeline_a_thread():
    """Pipelines keep their scheduler's state in themselves, so each thread has its own, on one transformer."""
    shared = small_dit(classes=1000, seed=2)
    pipes = [dit_pipe(shared) for _ in range(3)]
    plans = [plan(pipes[0]), plan(pipes[1], fc.fora(3)), None]
    expected = [
        [generate_images(pipe, T, seed) if made is None else alone(pipe, made, seed=seed) for seed in range(3)]
        for pipe, made in zip(pipes, plans, strict=True)
    ]
    for pipe, made in zip(pipes[:2], plans[:2], strict=True):
        fc.enable(pipe, made)

    async def serve():
        async def one(pipe):
            return [await asyncio.to_thread(generate_images, pipe, T, seed) for seed in range(3)]

        return await asyncio.gather(*map(one, pipes))

    found = asyncio.run(serve())
    for pipe in pipes[:2]:
        fc.disable(pipe)
    for images, wanted in zip(found, expected, strict=True):
        assert all(map(np.array_equal, images, wanted))


def test_threads_that_end_leave_nothing():
    pipe = dit_pipe()
    session = fc.enable(pipe, plan(pipe))
    for seed in range(8):
        thread = threading.Thread(target=generate_images, args=(pipe, T, seed))
        thread.start()
        thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(generate_images, pipe, T).result()
    assert len(session._models[0].runs.threads) <= 2
    assert session.stats.generations == 9
    fc.disable(pipe)


def in_child(pipe, queue):
    torch.set_num_threads(1)
    queue.put(generate_images(pipe, T))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_samples_by_the_plan():
    pipe = dit_pipe()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    context = multiprocessing.get_context("fork")
    with fc.apply(pipe, plan(pipe)) as session:
        expected = generate_images(pipe, T)
        queue = context.SimpleQueue()
        child = context.Process(target=in_child, args=(pipe, queue))
        child.start()
        found = queue.get()
        child.join(60)
        assert np.array_equal(found, expected)
        assert np.array_equal(generate_images(pipe, T), expected)
    assert session.stats.generations == 2
    torch.set_num_threads(threads)


def test_a_plan_can_be_sent_to_a_spawned_process(dit):
    made = plan(dit)
    assert pickle.loads(pickle.dumps(made)) == made


# ---- memory ---------------------------------------------------------------------------------------------------------


def tensor_bytes():
    gc.collect()
    tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
    return sum(tensor.nbytes for tensor in tensors), len(tensors)


def test_memory_after_200_generations_of_changing_shapes_is_that_after_5(dit):
    def sample(number):
        generate(dit, 2, seed=number, count=1 + number % 4)

    session = fc.enable(dit, plan(dit, steps=2))
    for number in range(5):
        sample(number)
    before = tensor_bytes()
    for number in range(195):
        sample(number)
    session.new_run()
    sample(0)
    assert tensor_bytes() == before
    assert session.stats.generations == 201
    fc.disable(dit)
