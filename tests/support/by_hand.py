"""Every family's sampling written out by hand, block by block, with patches of others in it.

It knows nothing of the library but where the blocks are.

A *rule* decides what a branch gives out, as in `support.reference`.
"""

import functools
import inspect
from contextlib import ExitStack

import torch

from forecache.models.find import layout
from support import reference

TEXT_LAST = ("hidden_states", "encoder_hidden_states")
TEXT_FIRST = TEXT_LAST[::-1]
STREAMS = {
    "FLUX.2": {"Flux2TransformerBlock": TEXT_FIRST},
    "Qwen-Image": {"QwenImageTransformerBlock": TEXT_FIRST},
    "Z-Image": {"ZImageTransformerBlock": ("x",)},
    "AuraFlow": {"AuraFlowJointTransformerBlock": TEXT_FIRST},
    "CogVideoX": {"CogVideoXBlock": TEXT_LAST},
    "HunyuanVideo": {"HunyuanVideoTransformerBlock": TEXT_LAST, "HunyuanVideoSingleTransformerBlock": TEXT_LAST},
    "Mochi 1": {"MochiTransformerBlock": TEXT_LAST},
}
"""What blocks give out, in their order, where it is not the hidden states alone."""


class Given(dict):
    def __missing__(self, kind):
        return ("hidden_states",)


STREAMS_OF = Given({kind: names for kinds in STREAMS.values() for kind, names in kinds.items()})
PATCHED = STREAMS_OF | {
    "JointTransformerBlock": TEXT_FIRST,
    "FluxTransformerBlock": TEXT_FIRST,
    "FluxSingleTransformerBlock": TEXT_FIRST,
    "DiTBlock": ("x_BND",),
}


def dit_block(block, emit, hidden_states, timestep, class_labels, **_):
    def one(key, compute):
        return emit(key[1], compute)

    return reference._diffusers_block(block, 0, hidden_states, (timestep, class_labels), one)


def pixart_block(block, emit, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, **_):
    def one(key, compute):
        return emit(key[1], compute)

    condition = timestep, encoder_hidden_states, encoder_attention_mask
    return reference._pixart_block(block, 0, hidden_states, condition, one)


def facebook_block(block, emit, x_BND, c_BD):
    def one(key, compute):
        return emit(key[1], compute)

    return reference._facebook_block(block, 0, x_BND, c_BD, one)


def sd3_block(block, emit, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs=None):
    x, text = hidden_states, encoder_hidden_states
    normed, gate, shift, scale, gate_mlp, *second = block.norm1(x, emb=temb)
    if block.context_pre_only:
        normed_text = block.norm1_context(text, temb)
    else:
        normed_text, gate_text, shift_text, scale_text, gate_mlp_text = block.norm1_context(text, emb=temb)
    both = emit("attn", lambda: torch.cat(block.attn(normed, normed_text)[: 1 + (not block.context_pre_only)], 1))
    tokens = x.shape[1]
    x = x + gate[:, None] * both[:, :tokens]
    if second:
        x = x + second[1][:, None] * emit("attn2", lambda: block.attn2(second[0]))
    mlp = emit("mlp", lambda: block.ff(reference.modulate(block.norm2(x), shift, scale)))
    x = x + gate_mlp[:, None] * mlp
    if block.context_pre_only:
        return None, x
    text = text + gate_text[:, None] * both[:, tokens:]
    normed_text = reference.modulate(block.norm2_context(text), shift_text, scale_text)
    return text + gate_mlp_text[:, None] * emit("mlp_text", lambda: block.ff_context(normed_text)), x


def flux_block(block, emit, hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs=None):
    x, text, tokens = hidden_states, encoder_hidden_states, hidden_states.shape[1]
    if not hasattr(block, "norm1"):
        whole = torch.cat([text, x], 1)
        normed, gate = block.norm(whole, emb=temb)

        def compute():
            attention = block.attn(normed, image_rotary_emb=image_rotary_emb)
            return block.proj_out(torch.cat([attention, block.act_mlp(block.proj_mlp(normed))], 2))

        whole = whole + gate[:, None] * emit("parallel", compute)
        return whole[:, :-tokens], whole[:, -tokens:]
    normed, gate, shift, scale, gate_mlp = block.norm1(x, emb=temb)
    normed_text, gate_text, shift_text, scale_text, gate_mlp_text = block.norm1_context(text, emb=temb)
    both = emit("attn", lambda: torch.cat(block.attn(normed, normed_text, image_rotary_emb=image_rotary_emb), 1))
    x, text = x + gate[:, None] * both[:, :tokens], text + gate_text[:, None] * both[:, tokens:]
    mlp = emit("mlp", lambda: block.ff(reference.modulate(block.norm2(x), shift, scale)))
    normed_text = reference.modulate(block.norm2_context(text), shift_text, scale_text)
    mlp_text = emit("mlp_text", lambda: block.ff_context(normed_text))
    return text + gate_mlp_text[:, None] * mlp_text, x + gate_mlp[:, None] * mlp


def wan_block(block, emit, hidden_states, encoder_hidden_states, temb, rotary_emb):
    x = hidden_states
    table = (block.scale_shift_table + temb).unbind(-2)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = [each if each.ndim == 3 else each[:, None] for each in table]
    normed = block.norm1(x) * (1 + scale) + shift
    y = x + gate * emit("attn", lambda: block.attn1(normed, None, None, rotary_emb))
    z = y + emit("cross", lambda: block.attn2(block.norm2(y), encoder_hidden_states, None, None))
    return z + gate_mlp * emit("mlp", lambda: block.ffn(block.norm3(z) * (1 + scale_mlp) + shift_mlp))


def whole_block(block, emit, *args, forward=None, **kwargs):
    """Output minus input of every stream is what is kept; PATCHED are the outputs by the inputs' names.

    forward: the block's forward with a patch of others; its own by default
    """
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    inputs = [given[name] for name in PATCHED.get(type(block).__name__, ("hidden_states",))]
    outputs = []

    def compute(index):
        if not outputs:
            output = (forward or functools.partial(type(block).forward, block))(*args, **kwargs)
            outputs.extend(output if isinstance(output, tuple) else (output,))
        return None if outputs[index] is None else outputs[index] - inputs[index]

    features = [emit(index, functools.partial(compute, index)) for index in range(len(inputs))]
    found = tuple(None if y is None else x + y for x, y in zip(inputs, features, strict=True))
    return found if len(found) > 1 else found[0]


BY_HAND = {
    "BasicTransformerBlock": {1: dit_block, 2: pixart_block},
    "DiTBlock": facebook_block,
    "JointTransformerBlock": sd3_block,
    "FluxTransformerBlock": flux_block,
    "FluxSingleTransformerBlock": flux_block,
    "WanTransformerBlock": wan_block,
}


def writer(block):
    write = BY_HAND.get(type(block).__name__, whole_block)
    return write[2 if block.attn2 is not None else 1] if isinstance(write, dict) else write


def generate_by_hand(family, model, rule, patches=None):
    """Samples of the model with every block in our hands: what a branch gives out is said by ``rule``.

    patches: {depth: forward -> the forward with a patch}; such a block is one feature, its output minus its input
    """
    step, memories = [-1], {}

    def forward(block, depth):
        def emit(kind, compute):
            return rule(memories.setdefault((depth, kind), {"kind": kind}), step[0], compute)

        if patches and depth in patches:
            patched = patches[depth](functools.partial(type(block).forward, block))
            return lambda *args, **kwargs: whole_block(block, emit, *args, forward=patched, **kwargs)
        write = writer(block) if layout(model).level == "branches" else whole_block
        return lambda *args, **kwargs: write(block, emit, *args, **kwargs)

    def count(*_):
        step[0] += 1

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(count).remove)
        for depth, (_, block) in enumerate(layout(model).blocks):
            block.module.forward = forward(block.module, depth)
            stack.callback(vars(block.module).pop, "forward")
        return family.generate(model)
