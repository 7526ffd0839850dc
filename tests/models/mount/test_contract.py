"""What others put on a model: patched forwards, hooks, group offload, other caches; before the plan and inside it.

What is right is sampling written out by hand with the same patch: a patched block runs as it is when it is computed,
and when it is skipped, its estimate is of what it gave out.
"""

import functools
import types

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook
from support import reference
from support.by_hand import generate_by_hand
from support.others import FAMILIES, RULE, block_of, check, depth_of, louder, patched, plan, unpatched
from support.traces import everything

import forecache as fc

# ---- patched forwards -----------------------------------------------------------------------------------------------


def instance(block):
    block.forward = patched(block.forward)
    return lambda: vars(block).pop("forward")


def method(block):
    """As spatiotemporal guidance does it."""
    own = type(block).forward
    block.forward = types.MethodType(lambda self, *args, **kwargs: louder(own(self, *args, **kwargs)), block)
    return lambda: vars(block).pop("forward")


def wrapped(block):
    block.forward = functools.wraps(block.forward)(patched(block.forward))
    return lambda: vars(block).pop("forward")


def of_class(block):
    """A class of the block's own, as if a library had put another forward on the class."""
    kind, own = type(block), type(block).forward
    block.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    type(block).forward = functools.wraps(own)(lambda self, *args, **kwargs: louder(own(self, *args, **kwargs)))
    return lambda: setattr(block, "__class__", kind)


def by_diffusers(block):
    class Louder(ModelHook):
        def post_forward(self, module, output):
            return louder(output)

    registry = HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(Louder(), "louder")

    def undo():
        registry.remove_hook("louder")
        vars(block).pop("forward", None)
        vars(block).pop("_diffusers_hook")

    return undo


def by_accelerate(block):
    class Louder(AccelerateHook):
        def post_forward(self, module, output):
            return louder(output)

    add_hook_to_module(block, Louder())

    def undo():
        remove_hook_from_module(block)
        vars(block).pop("forward", None)

    return undo


WAYS = [instance, method, wrapped, of_class, by_diffusers, by_accelerate]


def expected(name, patch=patched, rule=RULE):
    model = FAMILIES[name].model()
    return generate_by_hand(FAMILIES[name], model, rule, {depth_of(model): patch})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("name", ["DiT", "FLUX.1", "Qwen-Image"])
def test_a_patch_on_a_block_runs_wherever_the_block_is_computed(name, when, way):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, before = plan(model), everything(model)
    if when == "before":
        undo = way(block_of(model))
    with fc.apply(model, made) as session:
        if when == "inside":
            family.generate(model)
            undo = way(block_of(model))
        found = family.generate(model)
    check(found, expected(name), name)
    assert session.stats.skipped == session.stats.generations * made.num_steps * len(made.grid.sites) * 5 // 8
    uncached = generate_by_hand(family, FAMILIES[name].model(), reference.everything, {depth_of(model): patched})
    torch.testing.assert_close(family.generate(model), uncached, rtol=1e-5, atol=1e-5)  # the patch stays
    undo()
    assert everything(model) == before
    with fc.apply(model, made):
        assert torch.equal(family.generate(model), unpatched(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_on_a_block_of_every_family(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    instance(block_of(model))
    with fc.apply(model, made):
        found = family.generate(model)
    check(found, expected(name), name)
