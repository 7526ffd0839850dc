"""Nothing of ours is left on a model, in whatever order others put hooks on it and take them off."""

import gc
import types

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, ModelHook, apply_group_offloading
from support.others import FAMILIES, block_of, plan, unpatched

import forecache as fc

CPU = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}


def ours():
    """Forwards of sessions that anything holds."""
    gc.collect()
    return {
        id(function)
        for function in gc.get_objects()
        if isinstance(function, types.FunctionType) and function.__qualname__.startswith("Forwards.of_")
        and "<locals>" in function.__qualname__
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize(
    "name",
    ["FLUX.1", "Qwen-Image"] + [pytest.param(name, marks=pytest.mark.slow) for name in ("DiT", "Wan 2.1")],
)
def test_group_offload_that_is_switched_on_inside(name, kind):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, bare, held = plan(model), family.generate(model), ours()
    how = {**CPU, "offload_type": kind} | ({"num_blocks_per_group": 2} if kind == "block_level" else {})
    with fc.apply(model, made):
        apply_group_offloading(model, **how)
        torch.testing.assert_close(family.generate(model), unpatched(name), rtol=1e-5, atol=1e-5)
    assert ours() <= held
    assert torch.equal(family.generate(model), bare)
    fc.enable(model, made)
    torch.testing.assert_close(family.generate(model), unpatched(name), rtol=1e-5, atol=1e-5)
    fc.disable(model)
    assert ours() <= held
    assert torch.equal(family.generate(model), bare)


class Idle(ModelHook):
    """A hook of diffusers that does nothing."""


def of_diffusers(block):
    registry = HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(Idle(), "idle")
    return lambda: registry.remove_hook("idle")


def of_accelerate(block):
    add_hook_to_module(block, AccelerateHook())
    return lambda: remove_hook_from_module(block)


def identity(output):
    return output


def by_attribute(block):
    """As cache-dit keeps the forward that it replaces."""
    block._original_forward = block.forward
    block.forward = lambda *args, **kwargs: identity(block._original_forward(*args, **kwargs))

    def undo():
        block.forward = types.MethodType(getattr(block._original_forward, "__func__", block._original_forward), block)
        del block._original_forward

    return undo


def by_closure(block):
    own = block.forward
    block.forward = lambda *args, **kwargs: identity(own(*args, **kwargs))
    return lambda: setattr(block, "forward", own)


@pytest.mark.parametrize("order", ["on with off end", "with on off end", "with on end off", "on with end off"])
@pytest.mark.parametrize("put", [of_diffusers, of_accelerate, by_attribute, by_closure])
@pytest.mark.parametrize("name", ["DiT", pytest.param("Qwen-Image", marks=pytest.mark.slow)])
def test_hooks_go_on_and_off_in_any_order(name, put, order):
    """The hooks change nothing, so that the samples of blocks that are computed or skipped as a whole are the right
    ones; twice in a row."""
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, bare, held, undo = plan(model), family.generate(model), ours(), []
    for _ in range(2):
        session = fc.apply(model, made)
        for action in order.split():
            if action == "on":
                undo.append(put(block_of(model)))
            elif action == "off":
                undo.pop()()
            elif action == "with":
                session.__enter__()
            else:
                session.__exit__(None, None, None)
            found = family.generate(model)
            if action in ("end", "off") and "end" in order.split()[: order.split().index(action) + 1]:
                assert torch.equal(found, bare)
        assert torch.equal(family.generate(model), bare)
        del session
    with fc.apply(model, made):
        assert torch.equal(family.generate(model), unpatched(name))
    if put is not by_closure:
        assert ours() <= held
    vars(block_of(model)).pop("forward", None)


@pytest.mark.parametrize("disabled", ["inside", "after"])
def test_another_cache_that_is_switched_on_inside_leaves_nothing(disabled):
    name = "FLUX.1"
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, bare, held = plan(model), family.generate(model), ours()
    with fc.apply(model, made):
        model.enable_cache(FirstBlockCacheConfig(0.1))
        with pytest.raises(fc.errors.RunError, match="FirstBlockCacheConfig"):
            family.generate(model)
        if disabled == "inside":
            model.disable_cache()
            assert torch.equal(family.generate(model), unpatched(name))
    if disabled == "after":
        model.disable_cache()
    assert ours() <= held
    assert torch.equal(family.generate(model), bare)
    with fc.apply(model, made):
        assert torch.equal(family.generate(model), unpatched(name))
