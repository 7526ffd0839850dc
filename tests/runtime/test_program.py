"""Runs of skipped blocks as one sum: the same as block by block."""

import copy
import functools
import gc

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import LayerExecutionTrackerHook
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plans, reference
from support.small import CLASSES, generate, labels, noise, small_dit
from support.statistics import STEPS, random_statistics
from support.tiny import TIMES, TINY, normal
from torch import nn

import forecache as fc
from forecache.models.blocks import UNTOUCHED
from forecache.models.families import adaln_zero
from forecache.models.find import layout
from forecache.parts.grid import Action
from forecache.plan import slots
from forecache.runtime.executable import Executable
from forecache.runtime.forwards import Forwards
from forecache.runtime.program import COVERED


@pytest.fixture
def block_by_block(monkeypatch):
    """Sessions that run every block by its sites, skipped spans included."""

    def switch():
        monkeypatch.setattr(Forwards, "run_block", lambda self, block, x, args, kwargs: None)

    return switch


def sampled(model, plan, **how):
    with fc.apply(model, plan) as session:
        images = generate(model, plan.num_steps, **how)
    return images, session.stats


def run_dit(model, trained=False):
    """The last of a generation's outputs, on inputs of its own; trained: with gradients."""
    total = torch.zeros(())
    with torch.set_grad_enabled(trained):
        for step in range(STEPS):
            timestep = torch.full((4,), 990 - 70 * step)
            x = noise(4).to(model.dtype) + 0.1 * step
            total = total + model(x, timestep=timestep, class_labels=labels()).sample
    return total


def small_pixart():
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8}
    text = {"cross_attention_dim": 16, "caption_channels": 12, "norm_type": "ada_norm_single"}
    model = PixArtTransformer2DModel(**shape, **text, in_channels=4, out_channels=4, norm_elementwise_affine=False)
    return model.eval()


def run_pixart(model, trained=False):
    total = torch.zeros(())
    text = torch.ones(4, 5, 12, dtype=model.dtype)
    more = {"encoder_hidden_states": text, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    with torch.set_grad_enabled(trained):
        for step in range(STEPS):
            timestep = torch.full((4,), 990 - 70 * step)
            total = total + model(noise(4).to(model.dtype) + 0.1 * step, timestep=timestep, **more).sample
    return total


MODELS = {"DiT": lambda: small_dit(3), "PixArt": small_pixart}
MODEL_RUNS = {"DiT": run_dit, "PixArt": run_pixart}


METHODS = {
    "reuse": lambda model: fc.fora(3),
    "goc": lambda model: fc.goc(fc.fora(2), 0.8),
    "goc computed": lambda model: fc.goc(fc.fora(3), 0.5, history="computed"),
    "taylor": lambda model: fc.taylorseer(fc.fora(3), 2),
    "eoc relative": lambda model: fc.eoc(fc.fora(3), random_statistics(model), 0.1, judge="all"),
    "eoc per channel": lambda model: fc.eoc(fc.fora(3), random_statistics(model), 0.1, judge="all", per="channel"),
    "eoc additive on taylor": lambda model: fc.eoc(
        fc.taylorseer(fc.fora(3), 1), random_statistics(model), 0.5, form="additive", judge="all"
    ),
    "blocks 1 and 2": lambda model: fc.Method(
        "part",
        fc.parts.schedules.at(fc.parts.schedules.depth(1, 3), fc.parts.schedules.every(3), fc.parts.schedules.every(1)),
    ),
    "procache": lambda model: fc.procache("#...#...#...", 2, 0.3),
    "feedback and some tokens": lambda model: fc.selective(fc.feedback(fc.fora(4), 1), 2, 0.5),
    "feedback, correction with a gain in some blocks": lambda model: fc.eoc(
        fc.feedback(fc.fora(4), 1), random_statistics(model), 0.5, form="additive", judge=[3, 7]
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_collapsed_run_equals_block_by_block(block_by_block, name):
    model = small_dit(5)
    plan = METHODS[name](model).plan(fc.grid(model, STEPS))
    together, stats = sampled(model, plan)
    block_by_block()
    apart, others = sampled(model, plan)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert stats == others


@settings(max_examples=30)
@given(st.data())
def test_any_plan_collapses_to_the_same(data):
    """Rows that no method would make, each site its own."""
    model = small_dit(3).double()  # weights up to 4, step after step: in float32 they could overflow
    grid = fc.grid(model, 6)
    rows = [data.draw(plans.rows(6)) for _ in range(3)]
    table = tuple(rows[data.draw(st.integers(0, 2))] for _ in grid.sites)
    plan = fc.Plan(grid, table)
    together, stats = sampled(model, plan)
    assert stats.peak_cache_bytes == plan.cost(model, 2).cache_bytes
    run_block = Forwards.run_block
    try:
        Forwards.run_block = lambda self, block, x, args, kwargs: None
        apart, _ = sampled(model, plan)
    finally:
        Forwards.run_block = run_block
    assert apart.isfinite().all()
    assert (together - apart).abs().max() < 1e-4 * apart.abs().max().clamp(min=1)


def test_a_block_whose_output_ranks_the_tokens_of_another_is_not_skipped_whole(block_by_block):
    """All of block 0 is estimated, and block 2 chooses its tokens by what block 0's attention gives out."""
    model = small_dit(4)
    grid = fc.grid(model, 6)
    tokens = fc.parts.Tokens(0.5, "attn_norm", "blocks.0.attn")
    skipped, partial = fc.parts.Cell(((0, 1.0),)), fc.parts.Cell(((0, 1.0),), tokens=tokens)
    rows = tuple(
        (fc.parts.Cell(), *(partial if site.name == "blocks.2.mlp" else skipped for _ in range(5)))
        for site in grid.sites
    )
    plan = fc.Plan(grid, rows)
    together, stats = sampled(model, plan)
    assert stats.partial == 5
    block_by_block()
    apart, _ = sampled(model, plan)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_runs_are_found():
    assert slots.consecutive([0, 1, 2, 5, 7, 8]) == [range(3), range(5, 6), range(7, 9)]
    assert slots.consecutive([]) == []
    model = small_dit(4)
    schedule = fc.parts.schedules.at(
        fc.parts.schedules.depth(1, 2), fc.parts.schedules.every(1), fc.parts.schedules.every(2)
    )
    executable = Executable(layout(model), fc.Method("all but block 1", schedule).plan(fc.grid(model, 2)))
    first, second = executable.steps
    assert first.blocks == (None, UNTOUCHED, None, None)
    assert [found if found in (UNTOUCHED, COVERED) else found.sites for found in second.blocks] == [
        range(2), UNTOUCHED, range(4, 8), COVERED
    ]  # fmt: skip


@torch.no_grad()
def test_the_gates_of_a_run_are_those_of_its_blocks(dit):
    found = layout(dit)
    x_BND, t, y = torch.randn(4, 16, 16), torch.tensor([981.0, 981, 981, 500]), labels()
    arguments = (x_BND, None, None, None, t, None, y)
    stacked = found.gates(range(1, 3))
    assert isinstance(stacked, adaln_zero.StackedGates)
    one_by_one = [
        branch.gate(block.condition(*arguments)) for _, block in found.blocks[1:3] for branch in block.branches
    ]
    for ours, own in zip(stacked(*arguments), one_by_one, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)
    by_name = stacked(x_BND, timestep=t, class_labels=y)
    assert torch.equal(by_name, stacked(*arguments))


class Adapted(nn.Linear):
    """As LoRA does it: more than its weight says."""

    def forward(self, x):
        return super().forward(x) * 1.1


def change_linear(model):
    norm = model.transformer_blocks[1].norm1
    adapted = Adapted(norm.linear.in_features, norm.linear.out_features)
    adapted.load_state_dict(norm.linear.state_dict())
    norm.linear = adapted


def hook(model):
    norm = model.transformer_blocks[1].norm1
    norm.linear.register_forward_hook(lambda module, args, output: output * 1.1)


def own_forward(model):
    linear = model.transformer_blocks[1].norm1.linear
    before = linear.forward
    linear.forward = lambda x: before(x) * 1.1


@pytest.mark.parametrize("change", [change_linear, hook, own_forward])
def test_gates_that_are_not_what_their_weights_say_are_made_one_by_one(block_by_block, change):
    model = small_dit(3)
    plan = fc.fora(3).plan(fc.grid(model, STEPS))
    before, _ = sampled(model, plan)
    change(model)
    plan = fc.fora(3).plan(fc.grid(model, STEPS))
    with torch.no_grad():
        assert not isinstance(layout(model).gates(range(3)), adaln_zero.StackedGates)
    together, _ = sampled(model, plan)
    block_by_block()
    apart, _ = sampled(model, plan)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, before, atol=1e-4)


def test_weights_that_change_between_generations_count(block_by_block):
    model = small_dit(3)
    plan = fc.fora(3).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan):
        first = generate(model, STEPS)
        with torch.no_grad():
            for block in model.transformer_blocks:
                block.norm1.linear.weight.mul_(1.2)
        second = generate(model, STEPS)
        model.double().float()  # elsewhere in memory
        third = generate(model, STEPS)
    assert torch.equal(second, third)
    assert not torch.equal(first, second)
    block_by_block()
    torch.testing.assert_close(sampled(model, plan)[0], second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["DiT", "PixArt"])
def test_weights_that_are_written_where_nobody_counts_count(family):
    """As peft merges adapters and diffusers copies averaged weights, through ``.data``: no version tells."""
    model = MODELS[family]()
    plan = fc.fora(3).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan):
        before = MODEL_RUNS[family](model)
        for block in model.transformer_blocks:
            (block.norm1.linear.weight if family == "DiT" else block.scale_shift_table).data.mul_(1.5)
        after = MODEL_RUNS[family](model)
    with fc.apply(model, plan):
        assert torch.equal(MODEL_RUNS[family](model), after)
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("family", ["DiT", "PixArt"])
def test_gradients_of_parameters_are_those_of_block_by_block(block_by_block, family):
    model = MODELS[family]().double()
    plan = fc.fora(3).plan(fc.grid(model, STEPS))

    def gradients():
        model.zero_grad()
        with fc.apply(model, plan):
            MODEL_RUNS[family](model, trained=True).square().sum().backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    together = gradients()
    block_by_block()
    apart = gradients()
    assert together.keys() == apart.keys()
    largest = max(gradient.abs().max().item() for gradient in apart.values())
    for name, gradient in apart.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-6, atol=1e-10 * largest)
    gates = "transformer_blocks.1." + ("norm1.linear.weight" if family == "DiT" else "scale_shift_table")
    assert together[gates].abs().max() > 0


@pytest.mark.parametrize("name", ["goc computed", "eoc per channel", "eoc relative"])
def test_after_inference_mode_gradients_flow(name):
    """What a session has made for one generation serves the next one."""
    model = small_dit(3)
    plan = METHODS[name](model).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan):
        with torch.inference_mode():
            run_dit(model)
        run_dit(model, trained=True).square().sum().backward()
    assert model.transformer_blocks[0].ff.net[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["reuse", "goc", "taylor"])
def test_bfloat16_stays_as_close_as_block_by_block(block_by_block, name):
    exact = small_dit(5)
    model = copy.deepcopy(exact).to(torch.bfloat16)
    plan = METHODS[name](model).plan(fc.grid(exact, STEPS))
    truth, _ = sampled(exact, plan)
    together, _ = sampled(model, plan)
    block_by_block()
    apart, _ = sampled(model, plan)
    errors = [(images.float() - truth).square().mean().sqrt().item() for images in (together, apart)]
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("name", ["reuse", "goc", "taylor"])
def test_under_autocast_it_differs_by_rounding_alone(block_by_block, name):
    model = small_dit(4)
    plan = METHODS[name](model).plan(fc.grid(model, STEPS))
    with torch.autocast("cpu", torch.bfloat16):
        together, _ = sampled(model, plan)
        bare = generate(model, STEPS)
        block_by_block()
        apart, _ = sampled(model, plan)
    assert together.dtype == apart.dtype
    assert (together - apart).abs().max() < 0.05
    assert (apart - bare).square().mean() > 4 * (together - apart).square().mean()


def test_nothing_that_was_handed_out_is_written_into(dit):
    """What goes into a run of skipped blocks, and the kept features, are as they were."""
    plan = fc.fora(4).plan(fc.grid(dit, 4))
    seen = []
    block = dit.transformer_blocks[0]
    before = block.register_forward_pre_hook(lambda module, args: seen.append([args[0], args[0].clone()]))
    after = block.register_forward_hook(lambda module, args, out: seen[-1].append(out))
    with fc.apply(dit, plan):
        generate(dit, 4)
    before.remove()
    after.remove()
    assert len(seen) == 4
    for x, before, out in seen:
        assert torch.equal(x, before)
        assert out is not x


def test_a_run_that_is_asked_for_twice_in_one_call_is_refused(dit):
    plan = fc.fora(2).plan(fc.grid(dit, 2))

    def twice(x, t, step):
        if step == 1:
            for module in (dit.transformer_blocks[0],):
                module.register_forward_hook(
                    lambda module, args, kwargs, output: module.forward(output, *args[1:], **kwargs), with_kwargs=True
                )
        return dit(x, timestep=t, class_labels=labels()).sample

    with fc.apply(dit, plan), pytest.raises(fc.errors.RunError, match=r"^blocks\.0 ran twice in one model call"):
        reference.ddim(twice, noise(), 2)


@torch.no_grad()
def test_the_label_of_no_class_counts_too(dit):
    gates = layout(dit).gates(range(3))
    x, t = torch.randn(2, 16, 16), torch.tensor([5, 5])
    made = gates(x, timestep=t, class_labels=torch.tensor([0, CLASSES]))
    assert not torch.equal(made[:, 0], made[:, 1])


def test_a_block_of_which_nothing_is_skipped_or_kept_runs_its_own_forward(dit):
    """Step 0 is kept for step 1, which is skipped; later only the last block's attention is kept or skipped."""
    plain, ran = fc.explicit(skip=[1]), []
    for number, block in enumerate(dit.transformer_blocks):
        seen = LayerExecutionTrackerHook(functools.partial(ran.append, number))  # it changes nothing
        HookRegistry.check_if_exists_or_initialize(block).register_hook(seen, "seen")

    def schedule(step, site, grid):
        last = (site.depth, site.kind) == (len(dit.transformer_blocks) - 1, "attn")
        return fc.parts.Action.SKIP if last and step == 3 else plain.schedule(step, site, grid)

    bare = generate(dit, 5)
    ran.clear()
    sampled(dit, fc.Method("last attention", schedule).plan(fc.grid(dit, 5)))
    blocks = list(range(len(dit.transformer_blocks)))
    assert ran == [*blocks[:-1], *blocks[:-1], *blocks], "steps 2 and 3 without the last block, step 4"
    ran.clear()
    images, stats = sampled(dit, fc.explicit(compute=range(5)).plan(fc.grid(dit, 5)))
    assert torch.equal(images, bare)
    assert ran == blocks * 5
    assert stats.computed == 5 * 2 * len(blocks)
    dit.transformer_blocks.append(dit.transformer_blocks[0])
    with (
        fc.apply(dit, fc.explicit(compute=range(5)).plan(fc.grid(dit, 5))),
        pytest.raises(fc.errors.RunError, match="twice"),
    ):
        generate(dit, 5)


@pytest.mark.parametrize("name", ["FLUX.1", "Qwen-Image"])
def test_half_floats_are_clipped_where_the_blocks_do_it(name):
    """Each of two blocks adds 40000 to a text stream; without a plan, float16 stays finite."""
    tiny = TINY[name]
    model = tiny.model()
    with torch.no_grad():
        for block in model.transformer_blocks:
            flux = name == "FLUX.1"
            last = block.ff_context.net[2] if flux else block.txt_mlp.net[2]
            modulation = block.norm1_context.linear if flux else block.txt_mod[1]
            last.weight.zero_(), last.bias.fill_(40000.0)
            modulation.weight.zero_(), modulation.bias.view(6, -1)[5].fill_(1.0)
    model = model.half()

    def outputs():
        halves = {}
        for time in TIMES:
            inputs = tiny.inputs(normal(*tiny.shape), time)
            halves = {
                key: each.half() if torch.is_tensor(each) and each.is_floating_point() else each
                for key, each in inputs.items()
            }
            yield model(**halves, return_dict=False)[0]

    skip = fc.Method("joint", lambda step, site, _: Action.SKIP if step % 2 and site.depth < 2 else Action.COMPUTE)
    with torch.no_grad():
        assert all(each.isfinite().all() for each in outputs())
        with fc.apply(model, skip.plan(fc.grid(model, len(TIMES)))) as session:
            assert all(each.isfinite().all() for each in outputs())
    assert session.stats.skipped > 0


def test_the_copies_of_weights_go_with_the_block():
    model = TINY["DiT"].model()
    with fc.apply(model, fc.fora(2).plan(fc.grid(model, len(TIMES)))) as session:
        expected = TINY["DiT"].generate(model)
        assert live(adaln_zero.StackedGates)
    assert not live(adaln_zero.StackedGates)
    with session:  # and are made again
        assert torch.equal(TINY["DiT"].generate(model), expected)


def test_weights_are_copied_once_for_all_runs(block_by_block):
    """As a router skips: another run of blocks in every step."""
    model = TINY["DiT"].model()
    depths = len(model.transformer_blocks)
    method = fc.Method(
        "stairs",
        lambda step, site, _: Action.SKIP if step and site.depth >= (step % depths) else Action.COMPUTE,
    )
    plan = method.plan(fc.grid(model, len(TIMES)))
    found = layout(model)
    executable = Executable(found, plan)
    with torch.no_grad():
        executable.refresh()
    assert len(executable.gates) > 2
    assert all(isinstance(gates, adaln_zero.StackedGates) for gates in executable.gates.values())
    parts = [vars(gates).values() for gates in executable.gates.values()]
    storages = {each.untyped_storage().data_ptr(): each for part in parts for each in part if torch.is_tensor(each)}
    whole = vars(adaln_zero.stack([block.module for _, block in found.blocks])).values()
    assert sum(each.untyped_storage().nbytes() for each in storages.values()) <= sum(
        each.untyped_storage().nbytes() for each in whole if torch.is_tensor(each)
    )
    with fc.apply(model, plan):
        collapsed = TINY["DiT"].generate(model)
    block_by_block()
    with fc.apply(model, plan):
        torch.testing.assert_close(TINY["DiT"].generate(model), collapsed, rtol=1e-5, atol=1e-5)


def live(kind):
    gc.collect()
    return [value for value in gc.get_objects() if type(value) is kind]
