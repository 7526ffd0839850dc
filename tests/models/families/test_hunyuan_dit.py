"""HunyuanDiT: long skips, which replace the stream, and spans that end where the model keeps outputs for them."""

import pytest
import torch
from support.families import SHORT, check
from support.tiny import TINY

import forecache as fc
from forecache.models.find import layout

HUNYUAN = TINY["HunyuanDiT"]


def test_blocks_of_the_second_half_have_a_long_skip():
    found = layout(HUNYUAN.model())
    assert [site.name for site in found.sites if site.kind == "skip"] == ["blocks.3.skip"]
    assert [site.kind for site in found.sites] == ["attn", "cross", "mlp"] * 3 + ["skip", "attn", "cross", "mlp"]
    assert found.starts == {1}  # the output of the first block is kept for the last


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_skip_changes_is_its_feature(mode):
    """Where it alone is skipped, the stream moves on by what it changed when it was computed last."""
    model, seen = HUNYUAN.model(), []
    block = model.blocks[3]
    block.skip_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][..., :32]))
    block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def schedule(step, site, grid):
        return fc.parts.Action.SKIP if step % 2 and site.kind == "skip" else fc.parts.Action.COMPUTE

    plan = fc.Method("skips alone", schedule).plan(fc.grid(model, len(SHORT)))
    stream = []
    model.blocks[2].register_forward_hook(lambda module, args, output: stream.append(output))
    with mode(), fc.apply(model, plan):
        HUNYUAN.generate(model, SHORT)
    before, after = seen[0], seen[1]
    torch.testing.assert_close(seen[2], stream[1] + (after - before), rtol=1e-5, atol=1e-6)


def test_controls_are_added_to_the_long_skips():
    def inputs(x, time):
        control = [0.5 * torch.ones(2, 16, 32)]
        return {**HUNYUAN.inputs(x, time), "controlnet_block_samples": control}

    controlled = type(HUNYUAN)(HUNYUAN.kind, HUNYUAN.config, HUNYUAN.shape, inputs)
    model = HUNYUAN.model()
    assert (check(controlled, model) - check(HUNYUAN, model)).abs().max() > 1e-3
