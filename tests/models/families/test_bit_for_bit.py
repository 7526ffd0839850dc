"""Families of one modulation a block: branches bit for bit in every dtype; what has no branches is refused."""

import pytest
import torch
from support.families import SHORT, InDtype, check
from support.tiny import COSMOS, TINY, normal

import forecache as fc
from forecache.models.blocks import Residual
from forecache.models.find import layout

NEW = [
    "AuraFlow", "CogVideoX", "Cosmos", "Cosmos 2.5 I2V", "LTX-2", "LTX-2.3 I2V", "LTX-Video", "LTX-Video I2V",
    "Lumina 2", "Mochi 1", "Sana", "Sana Video",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NEW)
def test_branches_are_the_block_bit_for_bit(name, dtype):
    """At a step whose features are all kept, every branch runs by itself."""
    family = InDtype(TINY[name], dtype, like_time="Cosmos" in name)
    model = family.model()
    x, call = normal(*family.tiny.shape).to(dtype), family.cast(model)
    with torch.no_grad():
        bare = [family.tiny.predict(call, x, time) for time in SHORT[:2]]
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, 2))) as session:
            kept, skipped = (family.tiny.predict(call, x, time) for time in SHORT[:2])
    assert session.stats.peak_cache_bytes > 0
    assert torch.equal(kept, bare[0])
    assert torch.isfinite(bare[0]).all()
    assert 0 < (skipped - bare[1]).abs().max() < 1


def test_modalities_that_are_kept_apart_get_nothing_from_one_another():
    tiny, model = TINY["LTX-2"], TINY["LTX-2"].model()
    apart = type(tiny)(
        tiny.kind, tiny.config, tiny.shape, lambda x, time: tiny.inputs(x, time) | {"isolate_modalities": True}
    )
    assert (check(apart, model) - check(tiny, model)).abs().max() > 1e-3


def test_cosmos_that_adds_positions_in_every_block_is_known_by_blocks():
    tiny = TINY["Cosmos"]
    first = type(tiny)(tiny.kind, COSMOS | {"extra_pos_embed_type": "learnable"}, tiny.shape, tiny.inputs)
    model = first.model()
    assert all(isinstance(block, Residual) for _, block in layout(model).blocks)
    check(first, model)


def test_what_a_control_net_adds_to_blocks_of_cosmos_is_not_left_out():
    tiny = TINY["Cosmos"]
    model = type(tiny)(tiny.kind, COSMOS | {"controlnet_block_every_n": 2}, tiny.shape, tiny.inputs).model()
    inputs = tiny.inputs(normal(*tiny.shape), 700) | {"block_controlnet_hidden_states": [normal(2, 32, 32)] * 2}
    with torch.no_grad():
        bare = model(**inputs, return_dict=False)[0]
        with (
            fc.apply(model, fc.fora(2).plan(fc.grid(model, 2))),
            pytest.raises(fc.errors.ModelError, match=r"A ControlNet adds.*level='blocks'"),
        ):
            model(**inputs)
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, 2, level="blocks"))):
            assert torch.equal(model(**inputs, return_dict=False)[0], bare)
            model(**inputs | tiny.inputs(normal(*tiny.shape, seed=2), 400))


@pytest.mark.parametrize("name", ["LTX-Video I2V", "Cosmos 2.5 I2V"])
def test_some_tokens_of_videos_with_a_given_frame_cannot_be_chosen(name):
    model = TINY[name].model()
    plan = fc.selective(fc.fora(2), 0, 0.5, every=1, kinds=("mlp",)).plan(fc.grid(model, 8))
    with fc.apply(model, plan), pytest.raises(fc.errors.RunError, match=r"every token has a timestep of its own"):
        TINY[name].generate(model)


def test_the_convolution_of_sana_is_computed_for_all_tokens():
    model = TINY["Sana"].model()
    plan = fc.selective(fc.fora(2), 0, 0.5, every=1, kinds=("mlp",)).plan(fc.grid(model, 8))
    with pytest.raises(
        fc.errors.PlanMismatchError, match=r"blocks\.0\.mlp, which does not treat every token by itself"
    ):
        fc.apply(model, plan).__enter__()
