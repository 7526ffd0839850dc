"""The laws of a session: an all-compute plan changes no bit, and nothing of ours stays on the model."""

import copy
import functools
import gc
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from support.small import generate, generate_images, labels, noise
from support.traces import everything

import forecache as fc

T = 8


def plan(target, method=None, num_steps=T):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(target, num_steps))


class UserError(Exception):
    """Something of the user's that goes wrong."""


def fail_at(call):
    """A forward pre-hook that raises at its ``call``-th call."""
    calls = iter(range(call + 1))

    def hook(module, args):
        if next(calls) == call:
            raise UserError

    return hook


# ---- law 1: computing everything ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_all_compute_plan_changes_no_bit(dit, dtype):
    dit.to(dtype)
    bare = generate(dit, T)
    with fc.apply(dit, plan(dit, fc.fora(1))):
        planned = generate(dit, T)
    assert planned.dtype == dtype
    assert torch.equal(planned, bare)


def test_an_all_compute_plan_changes_no_bit_of_a_pipelines_images(pipe):
    bare = generate_images(pipe, T)
    with fc.apply(pipe, plan(pipe, fc.fora(1))):
        planned = generate_images(pipe, T)
    assert np.array_equal(planned, bare)


@pytest.mark.parametrize("sites", [None, ["blocks.*"], ["x_embedder", "blocks.1.mlp.fc?"]])
def test_an_all_compute_plan_changes_no_bit_at_module_sites(facebook, sites):
    x, t, y = torch.cat([noise()] * 2), torch.full((4,), 500), labels()
    with torch.no_grad():
        bare = facebook(x, t, y)
        with fc.apply(facebook, fc.fora(1).plan(fc.grid(facebook, 1, sites=sites))):
            assert torch.equal(facebook(x, t, y), bare)


def test_a_plan_that_skips_does_change_the_samples(dit):
    """Or else the tests of what a session leaves behind would prove nothing."""
    bare = generate(dit, T)
    with fc.apply(dit, plan(dit)):
        assert (generate(dit, T) - bare).abs().max() > 1e-2


# ---- law 2: nothing stays -------------------------------------------------------------------------------------------


def test_after_the_block_the_model_is_as_before(dit, tmp_path):
    bare, keys, before = generate(dit, T), list(dit.state_dict()), everything(dit)
    with fc.apply(dit, plan(dit)):
        generate(dit, T)
        assert everything(dit) != before
        assert list(dit.state_dict()) == keys
    assert everything(dit) == before
    assert list(dit.state_dict()) == keys
    assert torch.equal(generate(dit, T), bare)
    dit.save_pretrained(tmp_path)
    assert torch.equal(generate(DiTTransformer2DModel.from_pretrained(tmp_path), T), bare)
    assert torch.equal(generate(copy.deepcopy(dit), T), bare)
    assert torch.equal(generate(pickle.loads(pickle.dumps(dit)), T), bare)


def test_after_the_block_the_pipeline_is_as_before(pipe, tmp_path):
    generate_images(pipe, T)
    bare = generate_images(pipe, T)
    before = everything(pipe.transformer, pipe.vae, pipe)
    names, config = set(vars(pipe.scheduler)), dict(pipe.scheduler.config)
    with fc.apply(pipe, plan(pipe)):
        generate_images(pipe, T)
    assert everything(pipe.transformer, pipe.vae, pipe) == before
    assert set(vars(pipe.scheduler)) == names
    assert dict(pipe.scheduler.config) == config
    assert np.array_equal(generate_images(pipe, T), bare)
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(generate_images(again, T), bare)


def test_after_an_exception_inside_a_block_the_model_is_as_before(dit):
    bare = generate(dit, T)
    dit.transformer_blocks[1].attn1.register_forward_pre_hook(fail_at(2))
    before = everything(dit)
    with pytest.raises(UserError), fc.apply(dit, plan(dit)):
        generate(dit, T)
    assert everything(dit) == before
    dit.transformer_blocks[1].attn1._forward_pre_hooks.clear()
    assert torch.equal(generate(dit, T), bare)


def test_after_an_exception_in_a_pipelines_model_the_pipeline_is_as_before(pipe, tmp_path):
    bare = generate_images(pipe, T)
    pipe.transformer.transformer_blocks[1].ff.register_forward_pre_hook(fail_at(2))
    before, names = everything(pipe.transformer, pipe), set(vars(pipe.scheduler))
    with pytest.raises(UserError), fc.apply(pipe, plan(pipe)):
        generate_images(pipe, T)
    assert everything(pipe.transformer, pipe) == before
    assert set(vars(pipe.scheduler)) == names
    pipe.save_pretrained(tmp_path)
    pipe.transformer.transformer_blocks[1].ff._forward_pre_hooks.clear()
    assert np.array_equal(generate_images(pipe, T), bare)


def stop_after_one_call(dit, error):
    dit(noise(4), timestep=torch.full((4,), 900), class_labels=labels())
    raise error


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, GeneratorExit])
def test_after_an_exception_in_the_users_loop_the_model_is_as_before(dit, error):
    """The user's error comes out as it is, not hidden behind a StepCountError."""
    bare, before = generate(dit, T), everything(dit)
    with pytest.raises(error), fc.apply(dit, plan(dit)):
        stop_after_one_call(dit, error)
    assert everything(dit) == before
    assert torch.equal(generate(dit, T), bare)


def test_after_the_block_no_feature_is_held(dit):
    """Not even by a session that somebody keeps, nor of a run that was cut short."""
    features = []
    for block in dit.transformer_blocks:
        block.ff.register_forward_hook(lambda module, args, output: features.append(weakref.ref(output)))
    session = fc.apply(dit, plan(dit))
    with torch.no_grad(), pytest.raises(UserError), session:
        stop_after_one_call(dit, UserError)
    gc.collect()
    assert len(features) == 3
    assert not [ref for ref in features if ref() is not None]


def test_a_forward_that_somebody_else_put_on_the_model_is_there_again(dit):
    """accelerate and others set ``forward`` on the instance as well."""
    block, calls = dit.transformer_blocks[0].attn1, []
    inner = block.forward
    block.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    dit.forward = functools.partial(dit.forward)
    before, bare = everything(dit), generate(dit, T)
    with fc.apply(dit, plan(dit, fc.fora(2))):
        calls.clear()
        generate(dit, T)
    assert len(calls) == T // 2
    assert everything(dit) == before
    assert torch.equal(generate(dit, T), bare)


@pytest.mark.parametrize("wrap", [functools.wraps, lambda inner: lambda function: function])
def test_a_forward_that_somebody_puts_over_ours_does_not_keep_it_there(dit, wrap):
    """Hooks that are added inside the block wrap the forward that they find, and may copy its attributes."""
    bare = generate(dit, T)
    with fc.apply(dit, plan(dit)):
        for module in (dit, dit.transformer_blocks[1]):
            inner = module.forward
            module.forward = wrap(inner)(lambda *args, inner=inner, **kwargs: inner(*args, **kwargs))
        generate(dit, T)
    assert torch.equal(generate(dit, T), bare)


def test_a_session_can_be_entered_again(dit):
    session = fc.apply(dit, plan(dit))
    with session:
        first = generate(dit, T)
    bare = generate(dit, T)
    with session:
        assert torch.equal(generate(dit, T), first)
    assert torch.equal(generate(dit, T), bare)
    assert session.stats.generations == 2


# ---- a second session -----------------------------------------------------------------------------------------------


def test_a_second_session_on_the_model_is_refused_and_the_first_goes_on(dit):
    bare, before = generate(dit, T), everything(dit)
    with fc.apply(dit, plan(dit)):
        first = generate(dit, T)
        second = fc.apply(dit, plan(dit, fc.fora(4)))
        with pytest.raises(fc.errors.AlreadyAppliedError, match="already samples by a plan: leave its `with"), second:
            pass
        assert torch.equal(generate(dit, T), first)
    assert everything(dit) == before
    assert torch.equal(generate(dit, T), bare)


def test_a_second_session_on_the_pipelines_model_is_refused(pipe):
    names = set(vars(pipe.scheduler))
    with fc.apply(pipe.transformer, plan(pipe)):
        with (
            pytest.raises(fc.errors.AlreadyAppliedError, match="already samples by a plan"),
            fc.apply(pipe, plan(pipe)),
        ):
            pass
        assert set(vars(pipe.scheduler)) == names


def test_two_pipelines_with_one_scheduler_leave_it_clean_in_any_order(pipe):
    other = copy.copy(pipe)
    other.register_modules(transformer=copy.deepcopy(pipe.transformer))
    assert other.transformer is not pipe.transformer
    assert other.scheduler is pipe.scheduler
    names = set(vars(pipe.scheduler))
    first, second = fc.apply(pipe, plan(pipe)).__enter__(), fc.apply(other, plan(other)).__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert set(vars(pipe.scheduler)) == names


# ---- what a session counts ------------------------------------------------------------------------------------------


def test_stats_count_generations_calls_and_cells(dit):
    sites = 6
    with fc.apply(dit, plan(dit, fc.fora(3))) as session:
        assert session.stats == fc.runtime.Stats(0, 0, 0, 0, 0)
        generate(dit, T)
        generate(dit, T, seed=1)
        found = session.stats
    assert (found.generations, found.calls) == (2, 2 * T)
    assert (found.computed, found.skipped) == (2 * 3 * sites, 2 * 5 * sites)  # 0, 3, 6 of 8
    assert session.stats == found
    total, picture, counts = str(found).splitlines()
    assert total == "2 generations, 16 model calls, 37.5% of features computed, 0.0 MiB of cache at the peak"
    assert picture == "last: #..#..#."
    assert counts.strip().startswith("3 computed, 5 skipped, ")
    assert str(replace(found, generations=1, calls=1)).startswith("1 generation, 1 model call, ")


def test_stats_count_each_row_by_itself(dit):
    half = fc.Method(
        "half",
        fc.parts.schedules.at(fc.parts.schedules.kind("mlp"), fc.parts.schedules.every(2), fc.parts.schedules.every(1)),
    )
    with fc.apply(dit, plan(dit, half)) as session:
        generate(dit, T)
    assert (session.stats.computed, session.stats.skipped) == (3 * T + 3 * T // 2, 3 * T // 2)


def test_a_skipped_branch_does_not_run_its_modules(dit):
    calls = {"attn": 0, "mlp": 0, "norm": 0}
    block = dit.transformer_blocks[1]
    for name, module in (("attn", block.attn1), ("mlp", block.ff), ("norm", block.norm3)):
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    with fc.apply(dit, plan(dit, fc.fora(4))):
        generate(dit, T)
    assert calls == {"attn": 2, "mlp": 2, "norm": 2}
