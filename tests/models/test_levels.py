"""Levels of sites on the families of diffusers: whole blocks, groups of blocks, the stack as one site."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from support import reference
from support.slow import slow_but
from support.tiny import TIMES, TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.models.find import layout

T = len(TIMES)
LEVELS = {
    "blocks": {"level": "blocks"},
    "groups": {"level": "groups", "group": 2},
    "stack": {"level": "stack"},
    "output": {"level": "stack", "of": "output"},
}
STACKS = {
    "DiT": [("transformer_blocks", 3)],
    "PixArt": [("transformer_blocks", 3)],
    "SD3": [("transformer_blocks", 3)],
    "SD3.5": [("transformer_blocks", 3)],
    "FLUX.1": [("transformer_blocks+single_transformer_blocks", 5)],
    "Wan 2.1": [("blocks", 3)],
    "Wan 2.2 5B": [("blocks", 3)],
    "FLUX.2": [("transformer_blocks", 2), ("single_transformer_blocks", 3)],
    "Qwen-Image": [("transformer_blocks", 3)],
    "Qwen-Image-Edit": [("transformer_blocks", 3)],
    "Z-Image": [("layers", 3)],
    "Sana": [("transformer_blocks", 3)],
    "Lumina 2": [("layers", 3)],
    "AuraFlow": [("joint_transformer_blocks", 2), ("single_transformer_blocks", 2)],
    "HunyuanDiT": [("blocks", 4)],
    "CogVideoX": [("transformer_blocks", 3)],
    "HunyuanVideo": [("transformer_blocks+single_transformer_blocks", 4)],
    "HunyuanVideo I2V": [("transformer_blocks+single_transformer_blocks", 4)],
    "HunyuanVideo 1.5": [("transformer_blocks", 3)],
    "HiDream": [("double_stream_blocks", 2), ("single_stream_blocks", 2)],
    "Chroma": [("transformer_blocks", 2), ("single_transformer_blocks", 3)],
    "LTX-Video": [("transformer_blocks", 3)],
    "LTX-Video I2V": [("transformer_blocks", 3)],
    "LTX-2": [("transformer_blocks", 3)],
    "LTX-2.3 I2V": [("transformer_blocks", 3)],
    "Cosmos": [("transformer_blocks", 3)],
    "Cosmos 2.5 I2V": [("transformer_blocks", 3)],
    "Sana Video": [("transformer_blocks", 3)],
    "Mochi 1": [("transformer_blocks", 3)],
    "Latte": [("transformer_blocks+temporal_transformer_blocks", 3), ("temporal_transformer_blocks", 1)],
    "Stable Audio": [("transformer_blocks", 3)],
}
"""Written out by hand: the blocks of every site at level stack, by list and number."""

COUNTED = [name for name in TINY if name not in ("DiT", "Lumina 2", "Mochi 1")]
REPRESENTATIVE = ["SD3", "FLUX.2", "Latte"]


def cells(levels, all_levels, without=()):
    """Families at levels: the representative ones at all of them, the others, which are slow, at some."""
    names = [name for name in TINY if name not in without]
    often = [(name, level) for name in names if name in REPRESENTATIVE for level in all_levels]
    rest = [(name, level) for name in names if name not in REPRESENTATIVE for level in levels]
    return [*often, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in rest)]


@pytest.mark.parametrize("name", slow_but(TINY, *REPRESENTATIVE))
def test_the_stack_is_one_site_where_its_streams_are_the_same(name):
    parts = STACKS[name]
    grid = fc.grid(TINY[name].model(), T, level="stack")
    names = ["stack"] if len(parts) == 1 else [f"stack.{number}" for number in range(len(parts))]
    assert [(site.name, site.kind) for site in grid.sites] == [(found, "stack") for found in names]
    assert [site.depth for site in grid.sites] == [
        sum(count for _, count in parts[:number]) for number in range(len(parts))
    ]


@pytest.mark.parametrize(("name", "level"), cells(("groups", "output"), LEVELS))
def test_everything_computed_is_the_bare_model_and_nothing_is_left_behind(name, level):
    if (name, level) == ("HunyuanDiT", "groups"):
        pytest.skip("refused, see below")
    tiny, model = TINY[name], TINY[name].model()
    bare, own = tiny.generate(model), {path: set(vars(module)) for path, module in model.named_modules()}
    grid = fc.grid(model, T, **LEVELS[level])
    with fc.apply(model, fc.fora(1).plan(grid)) as session:
        assert torch.equal(tiny.generate(model), bare)
    assert (session.stats.skipped, session.stats.calls) == (0, T)
    with fc.apply(model, fc.taylorseer(fc.fora(3), 1).plan(grid)):
        sample = tiny.generate(model)
    assert torch.isfinite(sample).all()
    assert not torch.equal(sample, bare)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == own
    assert torch.equal(tiny.generate(model), bare)


READING = ("Lumina 2", "Mochi 1", "HiDream", "HunyuanVideo 1.5")
"""Models that read values, whose cost is known for the calls of `forecache.models.examples` alone."""


@pytest.mark.parametrize(("name", "level"), cells(("stack",), ("groups", "stack", "output"), ("DiT", *READING)))
def test_a_run_counts_the_macs_and_holds_the_bytes_that_were_said(name, level):
    if (name, level) == ("HunyuanDiT", "groups"):
        pytest.skip("refused, see below")
    tiny, model = TINY[name], TINY[name].model()
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(model, T, **LEVELS[level]))
    cost = plan.cost(model, inputs=tiny.inputs(torch.zeros(tiny.shape), TIMES[0]))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, fc.apply(model, plan) as session:
        tiny.generate(model)
    assert counter.get_total_flops() == 2 * cost.macs
    assert session.stats.peak_cache_bytes == cost.cache_bytes
    assert cost.macs < cost.macs_uncached


def test_taylor_keeps_two_tensors_a_stream():
    """FLUX.1: 16 tokens of the image and 5 of the text, 32 wide, of a batch of two, in float32."""
    model, tiny = TINY["FLUX.1"].model(), TINY["FLUX.1"]
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(model, T, level="stack"))
    inputs = tiny.inputs(torch.zeros(tiny.shape), TIMES[0])
    assert plan.cost(model, inputs=inputs).cache_bytes == 2 * 2 * (16 + 5) * 32 * 4


def by_hand(tiny, model, lists, rule, of="residual"):
    """Samples of a model whose list of blocks is run and estimated as one.

    It is written without the library, for models with one stream that is the first argument of a block and its output.
    """
    step, memory, held = [-1], {"kind": "stack"}, {}
    blocks = [block for path in lists for block in getattr(model, path)]

    def forward(index, block):
        def own(x):
            return type(block).forward(block, x, *held["args"], **held["kwargs"])

        def run(hidden_states, *args, **kwargs):
            x = hidden_states
            if index == 0:
                held.update(input=x, ran=[])
            held.update(args=args, kwargs=kwargs)
            held["ran"].append((args, kwargs))
            if index + 1 < len(blocks):
                return x

            def compute():
                y = held["input"]
                for part, (more, named) in zip(blocks, held["ran"], strict=True):
                    y = type(part).forward(part, y, *more, **named)
                return y if of == "output" else y - held["input"]

            feature = rule(memory, step[0], compute)
            return feature if of == "output" else held["input"] + feature

        return run

    def count(*_):
        step[0] += 1

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(count).remove)
        for index, block in enumerate(blocks):
            block.forward = forward(index, block)
            stack.callback(vars(block).pop, "forward")
        return tiny.generate(model)


RULES = {
    "fora": (fc.fora(3), reference.fora(reference.front(T, 3))),
    "goc": (fc.goc(fc.fora(2), 0.8), reference.goc_emitted(reference.front(T, 2), 0.8)),
}


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("of", ["residual", "output"])
@pytest.mark.parametrize("name", ["DiT", "Sana", "LTX-Video"])
def test_sampling_equals_the_one_by_hand(name, of, method):
    ours, rule = RULES[method]
    tiny, model = TINY[name], TINY[name].model()
    expected = by_hand(tiny, model, ["transformer_blocks"], rule, of)
    with fc.apply(model, ours, num_steps=T, level="stack", of=of) as session:
        sample = tiny.generate(model)
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    assert session.stats.skipped == T - session.stats.computed > 0


@pytest.mark.parametrize("name", slow_but(TINY, "SD3", "FLUX.1"))
def test_reuse_of_all_blocks_is_that_of_the_stack(name):
    """A sum of residuals that are all reused is the residual of the sum."""
    tiny, model, samples = TINY[name], TINY[name].model(), []
    for grid in (fc.grid(model, T, level="blocks"), fc.grid(model, T, level="stack")):
        with fc.apply(model, fc.taylorseer(fc.fora(3), 2).plan(grid)):
            samples.append(tiny.generate(model))
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-4, atol=1e-5)


def test_nothing_of_a_block_runs_at_a_skipped_step():
    tiny, model = TINY["Qwen-Image"], TINY["Qwen-Image"].model()
    calls = []
    for block in model.transformer_blocks:
        for module in list(block.modules())[1:]:
            module.register_forward_hook(lambda *_: calls.append(step[0]))
    step = [-1]
    model.register_forward_pre_hook(lambda *_: step.__setitem__(0, step[0] + 1))
    with fc.apply(model, fc.fora(2).plan(fc.grid(model, T, level="stack"))):
        tiny.generate(model)
    assert set(calls) == set(range(0, T, 2))


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_saved_plan_finds_its_level_again(level, tmp_path):
    tiny, model = TINY["FLUX.2"], TINY["FLUX.2"].model()
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, T, **LEVELS[level]))
    plan.save(tmp_path / "plan.json")
    loaded = fc.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    samples = []
    for how in (plan, loaded):
        with fc.apply(model, how):
            samples.append(tiny.generate(model))
    assert torch.equal(*samples)


@pytest.mark.parametrize("level", ["groups", "stack"])
def test_a_plan_of_a_model_of_another_depth_is_refused(level):
    tiny = TINY["DiT"]
    plan = fc.fora(2).plan(fc.grid(tiny.model(), T, **LEVELS[level]))
    deeper = replace(tiny, config=tiny.config | {"num_layers": 4}).model()
    with pytest.raises(fc.errors.PlanMismatchError, match=r"made on DiTTransformer2DModel \(transformer_blocks x 3\)"):
        fc.apply(deeper, plan)


def test_groups_do_not_cross_a_place_where_streams_change():
    depths = [site.depth for site in fc.grid(TINY["FLUX.2"].model(), T, level="groups", group=3).sites]
    assert depths == [0, 2]
    assert [site.depth for site in fc.grid(TINY["Latte"].model(), T, level="groups", group=3).sites] == [0, 3]


def test_the_finest_level_is_the_default():
    for name in ("DiT", "Sana"):
        model = TINY[name].model()
        assert fc.grid(model, T).sites == layout(model).sites


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"level": "stacks"}, r"level= is one of branches, blocks, groups, stack, modules, or None"),
        ({"level": "stack", "of": "input"}, r"of= is one of residual, output, not 'input'"),
        ({"level": "groups"}, r"give level=\"groups\" and group= together"),
        ({"level": "stack", "group": 2}, r"give level=\"groups\" and group= together"),
        ({"level": "groups", "group": 0}, r"1 or more; 0 was given"),
        ({"of": "output"}, r"of='output' is for level=\"groups\" and level=\"stack\""),
        ({"level": "stack", "sites": ["blocks.*"]}, r"sites= names modules, and level='stack' takes other sites"),
        ({"level": "modules"}, r"Modules are named: sites="),
    ],
)
def test_sites_that_do_not_go_together_are_refused(how, words):
    with pytest.raises(fc.errors.SiteError, match=words):
        fc.grid(TINY["DiT"].model(), T, **how)


def test_branches_of_a_model_that_is_known_by_blocks_are_refused():
    with pytest.raises(fc.errors.SiteError, match="knows StableAudioDiTModel by blocks, not by branches"):
        fc.grid(TINY["Stable Audio"].model(), T, level="branches")


def test_groups_of_blocks_that_read_one_another_are_refused():
    with pytest.raises(fc.errors.SiteError, match=r"What a HunyuanDiTBlock inside of groups.0 returned is read"):
        fc.grid(TINY["HunyuanDiT"].model(), T, level="groups", group=2)


def test_some_tokens_of_a_stack_are_refused():
    model = TINY["DiT"].model()
    plan = fc.selective(fc.fora(2), 0, 0.5, every=1, kinds=("stack",), importance="random").plan(
        fc.grid(model, T, level="stack")
    )
    with pytest.raises(fc.errors.PlanMismatchError, match=r"some tokens of stack, which does not treat every token"):
        fc.apply(model, plan)


@pytest.mark.parametrize("how", ["stack", "groups"])
def test_a_level_goes_with_a_method_and_not_with_a_plan(how):
    model = TINY["DiT"].model()
    plan = fc.fora(2).plan(fc.grid(model, T))
    with pytest.raises(fc.errors.PlanError, match=r"A plan has its own sites: leave out level="):
        fc.apply(model, plan, **LEVELS[how])
