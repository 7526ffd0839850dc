"""HiDream: images that are not square, whose tokens are padded and masked, and its mixture of experts."""

import dataclasses

import torch
from support.families import check
from support.tiny import TINY, normal

import forecache as fc
from forecache.models.find import layout

HIDREAM = TINY["HiDream"]


def test_padded_tokens_are_masked():
    check(dataclasses.replace(HIDREAM, shape=(2, 4, 4, 8)))


def test_every_token_is_routed_by_itself():
    """So that some tokens of the image's MLP can be computed."""
    model = HIDREAM.model()
    found, (_, block) = layout(model), layout(model).blocks[0]
    mlp = block.branches[1]
    vectors = [normal(2, 1, 32, seed=seed) for seed in range(6)]
    condition = type("Condition", (), {"image": vectors})()
    x = normal(2, 8, 32, seed=9)
    with torch.no_grad():
        torch.testing.assert_close(mlp.compute(x[:, 2:5], condition), mlp.compute(x, condition)[:, 2:5])
    assert mlp.tokenwise
    assert found.starts == frozenset(range(4))


TOKENS = 64 * 64
"""Of an image, which is sampled at one area whatever its size."""


def test_as_many_experts_as_a_token_takes_are_counted():
    """An expert is three linear maps of 32 x 256, and a token takes two, and a shared one."""
    model = HIDREAM.model()
    cost = fc.fora(1).plan(fc.grid(model, 1)).cost(model, 1, guidance=False, height=1024, width=1024)
    linear = model.double_stream_blocks[0].block.ff_i
    per_token = 2 * sum(weight.numel() for weight in linear.experts[0].parameters())
    per_token += sum(weight.numel() for weight in linear.shared_experts.parameters()) + linear.gate.weight.numel()
    grid = fc.grid(model, 2)
    skipped = fc.Method(
        "no mlp of the first block",
        lambda step, site, grid: (
            fc.parts.Action.SKIP if step and site.name == "blocks.0.mlp" else fc.parts.Action.COMPUTE
        ),
    ).plan(grid)
    without = skipped.cost(model, 1, guidance=False, height=1024, width=1024)
    gate = linear.gate.weight.numel() * TOKENS
    assert 2 * cost.macs - without.macs in (per_token * TOKENS, per_token * TOKENS - gate)
