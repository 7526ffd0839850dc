"""Forward hooks of torch on blocks: they see the stream as it is there, at every step; and modules inside of blocks."""

import pytest
import torch
from support import reference
from support.by_hand import generate_by_hand
from support.others import FAMILIES, RULE, block_of, check, depth_of, louder, patched, plan, unpatched
from support.statistics import measured
from support.traces import everything
from torch.nn.modules import module as torch_module

import forecache as fc
from forecache.models.find import layout


def after(block):
    return block.register_forward_hook(lambda module, args, output: louder(output))


def after_with_kwargs(block):
    return block.register_forward_hook(lambda module, args, kwargs, output: louder(output), with_kwargs=True)


def before(block):
    """The first argument, or the one by its name, is a stream."""

    def louder_input(module, args, kwargs):
        names = [name for name in ("hidden_states", "x") if name in kwargs]
        return (louder(args[0]), *args[1:]) if args else args, kwargs | {name: louder(kwargs[name]) for name in names}

    return block.register_forward_pre_hook(louder_input, with_kwargs=True)


def of_all_modules(block):
    """A hook of every module, which acts on one."""
    return torch_module.register_module_forward_hook(
        lambda module, args, output: louder(output) if module is block else None
    )


def expected(name, hook):
    model = FAMILIES[name].model()
    with hook(block_of(model)):
        return generate_by_hand(FAMILIES[name], model, RULE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hook_that_alters_the_stream_in_a_run_of_skipped_blocks(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    handle = after(block_of(model))
    with fc.apply(model, made) as session:
        found = family.generate(model)
    check(found, expected(name, after), name)
    assert session.stats.skipped == len(made.grid.sites) * 5, "hooks cost no step"
    handle.remove()


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("hook", [after_with_kwargs, before, of_all_modules])
@pytest.mark.parametrize("name", ["PixArt", "FLUX.1", "Qwen-Image"])
def test_hooks_of_every_kind(name, hook, when):
    family, model = FAMILIES[name], FAMILIES[name].model()
    if when == "before":
        handle = hook(block_of(model))
    with fc.apply(model, plan(model)):
        if when == "inside":
            family.generate(model)
            handle = hook(block_of(model))
        found = family.generate(model)
        handle.remove()
        torch.testing.assert_close(family.generate(model), unpatched(name), rtol=1e-5, atol=1e-5)
    check(found, expected(name, hook), name)


@pytest.mark.parametrize("name", ["PixArt", "SD3", "Sana"])
def test_hooks_that_only_read_see_every_step(name):
    """As identity adapters between blocks do; the image is the one without hooks."""
    family, model, seen, right = FAMILIES[name], FAMILIES[name].model(), [], []
    block = layout(model).blocks[1][1].module
    with block.register_forward_hook(lambda module, args, output: right.append(output)):
        generate_by_hand(family, model, RULE)
    with block.register_forward_hook(lambda module, args, output: seen.append(output)), fc.apply(model, plan(model)):
        found = family.generate(model)
    torch.testing.assert_close(found, unpatched(name), rtol=1e-5, atol=1e-5)
    assert len(seen) == len(right) == 8
    for stream, wanted in zip(seen, right, strict=True):
        torch.testing.assert_close(stream, wanted, rtol=1e-5, atol=1e-5)


# ---- between blocks -------------------------------------------------------------------------------------------------


def test_a_forward_of_the_model_that_reads_between_blocks(monkeypatch):
    """As PuLID adds to the stream after a block what it reads there: spans of skipped blocks are single blocks."""
    from diffusers import PixArtTransformer2DModel

    name = "PixArt"
    family, own = FAMILIES[name], PixArtTransformer2DModel.forward

    def adding(self, *args, **kwargs):
        """The model's forward, with an addition after every block."""
        blocks = self.transformer_blocks
        self._modules["transformer_blocks"] = [lambda *a, block=block, **k: louder(block(*a, **k)) for block in blocks]
        try:
            return own(self, *args, **kwargs)
        finally:
            self._modules["transformer_blocks"] = blocks

    right = FAMILIES[name].model()
    with torch_module.register_module_forward_hook(
        lambda module, args, output: louder(output) if module in list(right.transformer_blocks) else None
    ):
        expected = generate_by_hand(family, right, RULE)
    model = family.model()
    made = plan(model)
    with monkeypatch.context() as patch:
        patch.setattr(PixArtTransformer2DModel, "forward", adding)
        with fc.apply(model, made):
            found = family.generate(model)
    check(found, expected, name)


# ---- inside of blocks -----------------------------------------------------------------------------------------------

INSIDE = {"DiT": "norm1", "FLUX.1": "norm", "SD3": "norm1_context", "Wan 2.1": "norm2", "PixArt": "ff"}
"""Modules that a block calls. Branches write out the first three themselves."""


@pytest.mark.parametrize("how", ["patch", "hook"])
@pytest.mark.parametrize("name", INSIDE)
def test_a_module_inside_of_a_block_runs_as_it_is(name, how):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, untouched = plan(model), everything(model)

    def put(block):
        module = block.get_submodule(INSIDE[name])
        if how == "hook":
            return module.register_forward_hook(lambda module, args, output: louder(output)).remove
        module.forward = patched(module.forward)
        return lambda: vars(module).pop("forward")

    undo = put(block_of(model))
    with fc.apply(model, made):
        found = family.generate(model)
    right = family.model()
    put(block_of(right))
    is_written_out = name in ("DiT", "FLUX.1", "SD3")
    patches = {depth_of(right): lambda forward: forward} if is_written_out else None
    check(found, generate_by_hand(family, right, RULE, patches), name)
    undo()
    assert everything(model) == untouched or how == "hook"


def test_uneven_plans_compute_a_patched_block_where_any_of_its_branches_is():
    name = "DiT"
    family, model = FAMILIES[name], FAMILIES[name].model()
    skipped = {"attn": {1, 3, 4, 6}, "mlp": {3, 4, 5, 6}}

    def schedule(step, site, grid):
        return fc.parts.Action.SKIP if step in skipped[site.kind] else fc.parts.Action.COMPUTE

    made = fc.Method("uneven", schedule).plan(fc.grid(model, 8))
    depth = depth_of(model)
    block_of(model).forward = patched(block_of(model).forward)
    with fc.apply(model, made) as session:
        found = family.generate(model)

    def rule(memory, step, compute):
        kinds = {0: (skipped["attn"] & skipped["mlp"])} | skipped  # a patched block is the stream number 0
        return reference.fora(set(range(8)) - kinds[memory["kind"]])(memory, step, compute)

    right = generate_by_hand(family, family.model(), rule, {depth: patched})
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    blocks = len(layout(model).blocks)
    assert session.stats.skipped == 8 * (blocks - 1) + 2 * 3


def test_some_tokens_of_a_patched_block_are_all_of_them():
    name = "DiT"
    family, model = FAMILIES[name], FAMILIES[name].model()
    grid = fc.grid(model, 8)
    some = fc.selective(fc.fora(2), 0, 0.5, every=1, kinds=("mlp",)).plan(grid)
    block_of(model).forward = patched(block_of(model).forward)
    number = {site.name: index for index, site in enumerate(grid.sites)}
    others = [row for index, row in enumerate(some.rows) if grid.sites[index].depth != depth_of(model)]
    assert any(cell.tokens is not None for row in others for cell in row), number
    with fc.apply(model, some) as session:
        found = family.generate(model)
    assert torch.isfinite(found).all()
    assert session.stats.partial == sum(cell.tokens is not None for row in others for cell in row)


def test_a_plan_that_corrects_a_patched_block_is_refused():
    model = FAMILIES["DiT"].model()
    averages = measured(fc.grid(model, 8), tokens=16, width=32)
    made = fc.eoc(fc.fora(2), averages).plan(fc.grid(model, 8))
    block_of(model).forward = patched(block_of(model).forward)
    with (
        pytest.raises(fc.errors.PlanMismatchError, match=r"Block 1 of this.*patches or hooks it.*corrects them"),
        fc.apply(model, made),
    ):
        FAMILIES["DiT"].generate(model)
