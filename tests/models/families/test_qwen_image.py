"""Qwen-Image: the modulation of reference images, which is that of time 0."""

import pytest
import torch
from support.tiny import TIMES, TINY

import forecache as fc
from forecache.models.families.qwen_image import ByIndex
from forecache.models.find import layout


def test_a_token_takes_the_vectors_of_its_half():
    vectors = torch.arange(4.0).view(4, 1, 1), -torch.arange(4.0).view(4, 1, 1)
    chosen = ByIndex(vectors, torch.tensor([[0, 0, 1], [1, 0, 0]]))
    assert chosen[0].tolist() == [[[0], [0], [2]], [[3], [1], [1]]]
    assert chosen[1].tolist() == [[[0], [0], [-2]], [[-3], [-1], [-1]]]
    assert len(chosen) == 2


def test_gates_of_tokens_are_made_where_they_are_read_and_conditions_once():
    """A gate for every token of every branch is as much as a cache by itself."""
    tiny = TINY["Qwen-Image-Edit"]
    model, calls = tiny.model(), []
    found = layout(model)
    for block in model.transformer_blocks:
        block.img_mod.register_forward_hook(lambda *_: calls.append(1))
    inputs = []
    hook = model.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    tiny.generate(model, TIMES[:1])
    hook.remove()
    calls.clear()
    args, kwargs = inputs[0]
    gates = found.gates(range(3))(*args, **kwargs)
    assert len(gates) == 9
    assert not calls
    pair, mlp, mlp_text = gates[3], gates[4], gates[5]
    assert [part.shape for part in (*pair, mlp, mlp_text)] == [(2, 32, 32), (2, 1, 32), (2, 32, 32), (2, 1, 32)]
    assert gates[4] is not mlp
    assert torch.equal(gates[4], mlp)
    assert calls == [1]


@pytest.mark.parametrize("name", ["Qwen-Image-Edit", "HunyuanVideo I2V"])
def test_tokens_with_modulations_of_their_own_cannot_be_chosen(name):
    model = TINY[name].model()
    plan = fc.selective(fc.fora(2), 0, 0.5, every=1, kinds=("mlp",)).plan(fc.grid(model, 8))
    with (
        pytest.raises(fc.errors.RunError, match="modulations of their own.*without partial cells"),
        fc.apply(model, plan),
    ):
        TINY[name].generate(model)
