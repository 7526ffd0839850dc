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
from support.others import BRANCHES, FAMILIES, RULE, T, block_of, check, depth_of, louder, patched, plan, unpatched
from support.slow import slow_but
from support.tiny import SHORT, TINY
from support.traces import everything

import forecache as fc
from forecache.models.find import layout
from forecache.runtime.plan_source import Fixed

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
@pytest.mark.parametrize("name", ["DiT", "FLUX.1", pytest.param("Qwen-Image", marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("name", slow_but(FAMILIES, *SHORT, "facebook"))
def test_a_patch_on_a_block_of_every_family(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    instance(block_of(model))
    with fc.apply(model, made):
        found = family.generate(model)
    check(found, expected(name), name)


# ---- torch.compile --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "put"),
    [("DiT", by_diffusers), ("Qwen-Image", lambda block: block.register_forward_hook(double))],
)
def test_a_compiled_model_with_a_patched_block(name, put):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    put(block_of(model))
    with fc.apply(model, made):
        right = family.generate(model)
    assert (right - unpatched(name)).abs().max() > 1e-2
    compiled = torch.compile(model, backend="eager")
    with fc.apply(compiled, made) as session:
        found = family.generate(compiled)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    assert session.stats.skipped > 0


def double(module, args, output):
    return louder(output)


@pytest.mark.parametrize("put", [instance, lambda block: block.register_forward_hook(double)])
def test_blocks_that_are_compiled_one_by_one(put):
    name = "FLUX.1"
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    put(block_of(model))
    with fc.apply(model, made):
        right = family.generate(model)
    model.compile_repeated_blocks(backend="eager")
    with fc.apply(model, made):
        torch.testing.assert_close(family.generate(model), right, rtol=1e-5, atol=1e-5)


# ---- what looks at branches -----------------------------------------------------------------------------------------


def test_branches_of_a_patched_block_cannot_be_measured():
    model = FAMILIES["DiT"].model()
    grid = fc.grid(model, T)
    seen = layout(model)
    instance(block_of(model))
    with (
        pytest.raises(fc.errors.RunError, match=r"Block 1 of this .*, so measuring its branches is not possible"),
        fc.Session(Fixed(fc.fora(1).plan(grid)), [seen], watch=lambda *_: None),
    ):
        pass


@pytest.mark.parametrize("name", ["DiT", "Qwen-Image"])
def test_the_cost_of_a_patched_model_is_that_of_its_own_forwards(name):
    model = FAMILIES[name].model()
    made = plan(model)
    inputs = FAMILIES[name].inputs(torch.zeros(FAMILIES[name].shape), 500)
    own = made.cost(model, inputs=inputs)
    instance(block_of(model))
    assert made.cost(model, inputs=inputs) == own


# ---- replaced blocks ------------------------------------------------------------------------------------------------


class Around(torch.nn.Module):
    """A module around a block, with the block's attributes or without."""

    def __init__(self, block, transparent):
        super().__init__()
        self.block, self.transparent = block, transparent

    def __getattr__(self, name):
        if name in ("block", "transparent") or not self.__dict__.get("transparent"):
            return super().__getattr__(name)
        return getattr(super().__getattr__("block"), name)

    def forward(self, *args, **kwargs):
        return louder(self.block(*args, **kwargs))


class Unknown(torch.nn.Module):
    """A module that passes its streams on."""

    def forward(self, hidden_states, *_, encoder_hidden_states=None, temb=None, **__):
        is_joint = encoder_hidden_states is not None and temb is not None
        return (encoder_hidden_states, hidden_states) if is_joint else hidden_states


def exchange(model, replacement):
    block = block_of(model)
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    blocks = next(part for part in lists if any(other is block for other in part))
    blocks[list(blocks).index(block)] = replacement(block)


@pytest.mark.parametrize("name", slow_but(TINY, *SHORT))
def test_a_block_replaced_by_a_module_around_it(name):
    family = FAMILIES[name]
    for transparent in (True, False) if name in BRANCHES else (False,):
        model = family.model()
        exchange(model, functools.partial(Around, transparent=transparent))
        before = everything(model)
        with fc.apply(model, plan(model)) as session:
            found = family.generate(model)
        check(found, expected(name), name)
        assert session.stats.skipped > 0
        assert everything(model) == before


@pytest.mark.parametrize("name", ["DiT", "PixArt", "SD3", "FLUX.1", "Wan 2.1"])
def test_a_block_of_an_unknown_class_is_refused_and_modules_are_taken(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    exchange(model, lambda block: Unknown())
    with pytest.raises(fc.errors.ModelError, match=r"a Unknown, has not the parts of a .*name modules as sites"):
        fc.apply(model, made)
    blocks = "blocks" if name == "Wan 2.1" else "transformer_blocks"
    grid = fc.grid(model, made.num_steps, sites=[f"{blocks}.0.*.to_q"])
    with fc.apply(model, fc.fora(2).plan(grid)) as session:
        family.generate(model)
    assert session.stats.skipped > 0


@pytest.mark.parametrize("name", ["PixArt", "FLUX.1", "Qwen-Image"])
def test_a_class_that_is_called_in_its_own_way(name):
    """What is done around the block's forward sees the stream in a run of skipped blocks, too, as a hook does."""
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, block, seen = plan(model), block_of(model), []
    kind = type(block)

    def call(self, *args, **kwargs):
        seen.append(args[0] if args else next(iter(kwargs.values())))
        return kind.__call__(self, *args, **kwargs)

    block.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": call})
    with fc.apply(model, made):
        found = family.generate(model)
    torch.testing.assert_close(found, unpatched(name), rtol=1e-5, atol=1e-5)
    assert len({float(stream.sum()) for stream in seen}) == len(seen) == made.num_steps


@pytest.mark.parametrize("name", ["DiT", "FLUX.1", "Qwen-Image"])
def test_a_patch_that_is_taken_off_inside_by_what_was_there_before(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    block = block_of(model)
    with fc.apply(model, plan(model)):
        family.generate(model)
        before = block.forward
        block.forward = patched(before)
        check(family.generate(model), expected(name), name)
        block.forward = before
    assert "forward" not in vars(block)
    with fc.apply(model, plan(model)):
        assert torch.equal(family.generate(model), unpatched(name))
