"""FLUX.2: one modulation of all blocks, and one a token where reference images have theirs."""

import torch
from support.by_hand import flux2_block
from support.tiny import TINY, normal

from forecache.models.find import layout


def blocks(model):
    found = layout(model)
    return [(block, forward) for (_, block), (_, forward) in zip(found.blocks, found.forwards(compute), strict=True)]


def compute(site, compute, *args):
    return compute(*args)


def test_tokens_may_have_modulations_of_their_own():
    """As the blocks of Klein's editing with a key-value cache get them at the first step."""
    model = TINY["FLUX.2"].model()
    rotary = torch.ones(21, 16), torch.zeros(21, 16)
    image, text = normal(2, 16, 32), normal(2, 5, 32, seed=2)
    (joint, forward), *_, (single, forward_single) = blocks(model)
    with torch.no_grad():
        modulations = normal(2, 16, 6 * 32, seed=3), normal(2, 6 * 32, seed=4)
        own = joint.module(image, text, *modulations, rotary)
        found = forward(image, text, *modulations, rotary)
        assert all(map(torch.equal, found, own))
        right = flux2_block(
            joint.module, lambda kind, compute: compute(), image, text, *modulations, image_rotary_emb=rotary
        )
        torch.testing.assert_close(found, right)
        whole, modulation = normal(2, 21, 32), normal(2, 21, 3 * 32, seed=5)
        assert torch.equal(
            forward_single(whole, None, modulation, rotary), single.module(whole, None, modulation, rotary)
        )


def test_the_gates_of_all_blocks_are_the_same_ones():
    model = TINY["FLUX.2"].model()
    gates = layout(model).gates(range(2))(
        hidden_states=normal(2, 16, 32),
        encoder_hidden_states=normal(2, 5, 32),
        temb_mod_img=(image := normal(2, 192, seed=3)),
        temb_mod_txt=(text := normal(2, 192, seed=4)),
    )
    (attention, attention_text), mlp, mlp_text = gates[:3]
    assert torch.equal(attention[:, 0], image[:, 64:96])
    assert torch.equal(attention_text[:, 0], text[:, 64:96])
    assert torch.equal(mlp[:, 0], image[:, 160:])
    assert torch.equal(mlp_text[:, 0], text[:, 160:])
    assert all(other is gate for other, gate in zip(gates[3:], gates[:3], strict=True))
