"""Joint blocks: half floats bit for bit, also where blocks clip; adapters on modulations; what has no branches."""

import pytest
import torch
from peft import LoraConfig
from support.families import SHORT, InDtype, check
from support.slow import slow_but
from support.tiny import TINY, normal

import forecache as fc
from forecache.models.find import layout

NEW = ["Chroma", "FLUX.2", "HiDream", "HunyuanDiT", "HunyuanVideo", "HunyuanVideo I2V", "HunyuanVideo 1.5",
       "Qwen-Image", "Qwen-Image-Edit", "Z-Image"]  # fmt: skip
CLIPPING = ["Chroma", "FLUX.2", "Qwen-Image"]
LAST = ("net.2.weight", "linear_out.weight", "proj_out.weight", "attn.to_out.weight")
"""The last linear maps of blocks and MLPs."""


def first_step(family, model):
    """The output of the bare model, and that of a step whose features are all kept: every branch runs by itself."""
    x = normal(*family.tiny.shape).to(family.dtype)
    call = family.cast(model)
    with torch.no_grad():
        bare = family.tiny.predict(call, x, SHORT[0])
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, 2))) as session:
            found = family.tiny.predict(call, x, SHORT[0])
            assert session.stats.peak_cache_bytes > 0
            family.tiny.predict(call, x, SHORT[1])  # a run of one call could reuse nothing
    return bare, found


@pytest.mark.parametrize("dtype", slow_but([torch.float32, torch.bfloat16, torch.float16], torch.float16))
@pytest.mark.parametrize("name", NEW)
def test_branches_are_the_block_bit_for_bit(name, dtype):
    family = InDtype(TINY[name], dtype, like_time=name in ("HunyuanVideo 1.5", "HunyuanDiT"))
    bare, found = first_step(family, family.model())
    assert torch.equal(found, bare)
    assert torch.isfinite(bare).all()


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("name", CLIPPING)
def test_half_floats_are_clipped_where_the_blocks_clip_them(name, number):
    """On streams at the end of the range, to which an MLP adds more."""
    family, given = InDtype(TINY[name], torch.float16), []
    model = family.model()
    found = layout(model)
    _, block = found.blocks[number]
    with torch.no_grad():
        for weight in (weight for path, weight in block.module.named_parameters() if path.endswith(LAST)):
            weight.mul_(10000)
        with block.module.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs), with_kwargs=True):
            family.tiny.predict(family.cast(model), normal(*family.tiny.shape).half(), 500)
        streams = {name: given[0][name].mul(0) + 65504 for name in block.inputs}
        own = block.module(**given[0] | streams)
        forward = list(found.forwards(lambda site, compute, *args: compute(*args)))[number][1]
        outputs = forward(**given[0] | streams)
    for ours, theirs in zip(
        *(given if isinstance(given, tuple) else (given,) for given in (outputs, own)), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert any((part == 65504).any() for part in (own if isinstance(own, tuple) else (own,)))


MODULATIONS = {
    "HiDream": r".*stream_blocks.*adaLN_modulation\.1",
    "HunyuanVideo": r".*transformer_blocks.*norm.*linear",
    "Qwen-Image": r".*transformer_blocks.*_mod\.1",
    "Z-Image": r"layers.*adaLN_modulation\.0",
}


@pytest.mark.parametrize("name", MODULATIONS)
def test_an_adapter_on_the_modulation_is_in_the_gates_of_skipped_blocks(name):
    tiny, model = TINY[name], TINY[name].model()
    without = check(tiny, model)
    model.add_adapter(LoraConfig(r=2, target_modules=MODULATIONS[name], init_lora_weights=False))
    assert (check(tiny, model) - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["Chroma", "FLUX.1"])
def test_an_ip_adapter_is_refused(name):
    model = TINY[name].model()
    for block in model.transformer_blocks:
        attention, own = block.attn, block.attn.forward
        attention.forward = lambda *args, own=own, **kwargs: (*(outputs := own(*args, **kwargs)), outputs[0])
    plan = fc.fora(2).plan(fc.grid(model, 8))
    with fc.apply(model, plan), pytest.raises(fc.errors.ModelError, match=r"with an IP-Adapter has no"):
        TINY[name].generate(model)
