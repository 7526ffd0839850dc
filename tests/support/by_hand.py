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
from support.blocks_by_hand import BLOCKS

TEXT_LAST = ("hidden_states", "encoder_hidden_states")
TEXT_FIRST = TEXT_LAST[::-1]
STREAMS = {
    "FLUX.2": {"Flux2TransformerBlock": TEXT_FIRST},
    "Chroma": {"ChromaTransformerBlock": TEXT_FIRST},
    "Qwen-Image": {"QwenImageTransformerBlock": TEXT_FIRST},
    "Z-Image": {"ZImageTransformerBlock": ("x",)},
    "AuraFlow": {"AuraFlowJointTransformerBlock": TEXT_FIRST},
    "CogVideoX": {"CogVideoXBlock": TEXT_LAST},
    "HunyuanVideo": {
        f"HunyuanVideo{kind}TransformerBlock": TEXT_LAST
        for kind in ("", "Single", "TokenReplace", "TokenReplaceSingle", "15")
    },
    "Mochi 1": {"MochiTransformerBlock": TEXT_LAST},
    "LTX-2": {"LTX2VideoTransformerBlock": ("hidden_states", "audio_hidden_states")},
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


def joint_block(block, emit, streams, first, second, attend, image, text):
    """A block of joint attention and two MLPs.

    first, second: of each stream, (normed, gate) of the attention, and a function of the stream for those of the MLP
    image, text: the MLPs
    """
    x, context = streams
    (normed, gate), (normed_text, gate_text) = first
    tokens = x.shape[1]
    both = emit("attn", lambda: torch.cat(attend(normed, normed_text), 1))
    x, context = x + gate * both[:, :tokens], context + gate_text * both[:, tokens:]
    (normed, gate), (normed_text, gate_text) = second[0](x), second[1](context)
    x = x + gate * emit("mlp", lambda: image(normed))
    return x, context + gate_text * emit("mlp_text", lambda: text(normed_text))


def qwen_block(
    block, emit, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, temb, image_rotary_emb,
    joint_attention_kwargs=None, modulate_index=None,
):  # fmt: skip
    first, second = block.img_mod(temb).chunk(2, -1)
    text_first, text_second = block.txt_mod(temb[: len(hidden_states)]).chunk(2, -1)
    x, text = joint_block(
        block,
        emit,
        (hidden_states, encoder_hidden_states),
        (
            block._modulate(block.img_norm1(hidden_states), first, modulate_index),
            block._modulate(block.txt_norm1(encoder_hidden_states), text_first),
        ),
        (
            lambda x: block._modulate(block.img_norm2(x), second, modulate_index),
            lambda text: block._modulate(block.txt_norm2(text), text_second),
        ),
        lambda x, text: block.attn(
            x,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
        ),
        block.img_mlp,
        block.txt_mlp,
    )
    return text, x


def adaln_zero_block(block, emit, hidden_states, encoder_hidden_states, temb, temb_text, attend, replaced=()):
    """A joint block of adaLN-Zero norms, as of FLUX, Chroma and HunyuanVideo; returns image and text.

    replaced: for tokens of a first frame, their embedding and number
    """
    x, text = hidden_states, encoder_hidden_states
    if replaced:
        first, number = replaced
        normed, *late, gate_0, shift_0, scale_0, gate_mlp_0 = block.norm1(x, temb, first, number)
        early = (gate_0, shift_0, scale_0, gate_mlp_0)
        stretched = [
            torch.cat([a[:, None].expand(-1, number, -1), b[:, None].expand(-1, x.shape[1] - number, -1)], 1)
            for a, b in zip(early, late, strict=True)
        ]
        gate, shift, scale, gate_mlp = stretched
    else:
        normed, *vectors = block.norm1(x, emb=temb)
        gate, shift, scale, gate_mlp = (vector[:, None] for vector in vectors)
    normed_text, *vectors = block.norm1_context(text, emb=temb_text)
    gate_text, shift_text, scale_text, gate_mlp_text = (vector[:, None] for vector in vectors)
    return joint_block(
        block,
        emit,
        (x, text),
        ((normed, gate), (normed_text, gate_text)),
        (
            lambda x: (block.norm2(x) * (1 + scale) + shift, gate_mlp),
            lambda text: (block.norm2_context(text) * (1 + scale_text) + shift_text, gate_mlp_text),
        ),
        attend,
        block.ff,
        block.ff_context,
    )


def hunyuan_video_block(
    block, emit, hidden_states, encoder_hidden_states, temb, attention_mask, rotary, first=None, number=None
):
    x, text, tokens = hidden_states, encoder_hidden_states, hidden_states.shape[1]
    replaces = "TokenReplace" in type(block).__name__

    def attend(x, text):
        return block.attn(x, encoder_hidden_states=text, attention_mask=attention_mask, image_rotary_emb=rotary)

    if hasattr(block, "norm1"):
        replaced = (first, number) if replaces else ()
        return adaln_zero_block(block, emit, x, text, temb, temb, attend, replaced)
    whole = torch.cat([x, text], 1)
    normed, *gates = block.norm(whole, temb, first, number) if replaces else block.norm(whole, temb)

    def compute():
        attention = torch.cat(attend(normed[:, :tokens], normed[:, tokens:]), 1)
        return block.proj_out(torch.cat([attention, block.act_mlp(block.proj_mlp(normed))], 2))

    change = emit("parallel", compute)
    late = change[:, number:] * gates[0][:, None] if replaces else change * gates[0][:, None]
    whole = whole + (torch.cat([change[:, :number] * gates[1][:, None], late], 1) if replaces else late)
    return whole[:, :tokens], whole[:, tokens:]


def chroma_block(block, emit, hidden_states, temb, image_rotary_emb, attention_mask, encoder_hidden_states=None, **_):
    attention = {"image_rotary_emb": image_rotary_emb, "attention_mask": None}
    if attention_mask is not None:
        attention["attention_mask"] = attention_mask[:, None, None, :] & attention_mask[:, None, :, None]
    if encoder_hidden_states is None:
        normed, gate = block.norm(hidden_states, temb)

        def compute():
            mlp = block.act_mlp(block.proj_mlp(normed))
            return block.proj_out(torch.cat([block.attn(normed, **attention), mlp], 2))

        return hidden_states + gate[:, None] * emit("parallel", compute)
    x, text = adaln_zero_block(
        block,
        emit,
        hidden_states,
        encoder_hidden_states,
        temb[:, :6],
        temb[:, 6:],
        lambda x, text: block.attn(x, text, **attention),
    )
    return text, x


def hunyuan_dit_block(block, emit, x, temb, encoder_hidden_states, image_rotary_emb, skip=None):
    if skip is not None:
        mixed = block.skip_linear(block.skip_norm(torch.cat([x, skip], -1)))
        x = x + emit("skip", lambda: mixed - x)
    normed = block.norm1(x, temb)
    y = x + emit("attn", lambda: block.attn1(normed, image_rotary_emb=image_rotary_emb))
    arguments = {"encoder_hidden_states": encoder_hidden_states, "image_rotary_emb": image_rotary_emb}
    z = y + emit("cross", lambda: block.attn2(block.norm2(y), **arguments))
    return z + emit("mlp", lambda: block.ff(block.norm3(z)))


def hidream_block(holder, emit, hidden_states, hidden_states_masks, encoder_hidden_states, temb, image_rotary_emb):
    block, x, text = holder.block, hidden_states, encoder_hidden_states
    vectors = block.adaLN_modulation(temb)[:, None]

    def normed(norm, x, first):
        shift, scale, gate = vectors.chunk(12 if text is not None else 6, -1)[first : first + 3]
        return norm(x) * (1 + scale) + shift, gate

    def attend(x, text=None):
        return block.attn1(x, hidden_states_masks, text, image_rotary_emb=image_rotary_emb)

    if text is not None:
        return joint_block(
            block,
            emit,
            (x, text),
            (normed(block.norm1_i, x, 0), normed(block.norm1_t, text, 6)),
            (lambda x: normed(block.norm3_i, x, 3), lambda text: normed(block.norm3_t, text, 9)),
            attend,
            block.ff_i,
            block.ff_t,
        )
    y, gate = normed(block.norm1_i, x, 0)
    x = x + gate * emit("attn", lambda: attend(y))
    z, gate = normed(block.norm3_i, x, 3)
    return x + gate * emit("mlp", lambda: block.ff_i(z))


def flux2_block(block, emit, hidden_states, encoder_hidden_states, *modulations, image_rotary_emb, **others):
    attention = {"image_rotary_emb": image_rotary_emb, **(others.pop("joint_attention_kwargs", None) or {})}
    modulations = [each if each.ndim == 3 else each[:, None] for each in (*modulations, *others.values())]
    if encoder_hidden_states is None:
        shift, scale, gate = modulations[0].chunk(3, -1)
        normed = block.norm(hidden_states) * (1 + scale) + shift
        return hidden_states + gate * emit("parallel", lambda: block.attn(normed, **attention))
    parts, parts_text = (each.chunk(6, -1) for each in modulations)

    def normed(norm, x, parts):
        return norm(x) * (1 + parts[1]) + parts[0], parts[2]

    x, text = joint_block(
        block,
        emit,
        (hidden_states, encoder_hidden_states),
        (
            normed(block.norm1, hidden_states, parts),
            normed(block.norm1_context, encoder_hidden_states, parts_text),
        ),
        (
            lambda x: normed(block.norm2, x, parts[3:]),
            lambda text: normed(block.norm2_context, text, parts_text[3:]),
        ),
        lambda x, text: block.attn(x, text, **attention),
        block.ff,
        block.ff_context,
    )
    return text, x


def z_image_block(block, emit, x, mask, rotary, adaln, noise_mask=None, noisy=None, clean=None):
    if noise_mask is None:
        parts = block.adaLN_modulation(adaln)[:, None].chunk(4, -1)
    else:
        noisy, clean = (block.adaLN_modulation(each)[:, None] for each in (noisy, clean))
        parts = (noise_mask[..., None] * noisy + (1 - noise_mask[..., None]) * clean).chunk(4, -1)
    scale, gate, scale_mlp, gate_mlp = parts
    normed = block.attention_norm1(x) * (1 + scale)
    change = emit("attn", lambda: block.attention_norm2(block.attention(normed, attention_mask=mask, freqs_cis=rotary)))
    x = x + gate.tanh() * change
    normed_mlp = block.ffn_norm1(x) * (1 + scale_mlp)
    return x + gate_mlp.tanh() * emit("mlp", lambda: block.ffn_norm2(block.feed_forward(normed_mlp)))


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
    "ChromaTransformerBlock": chroma_block,
    "ChromaSingleTransformerBlock": chroma_block,
    "HiDreamBlock": hidream_block,
    "HunyuanDiTBlock": hunyuan_dit_block,
    "Flux2TransformerBlock": flux2_block,
    "Flux2SingleTransformerBlock": flux2_block,
    "HunyuanVideoTransformerBlock": hunyuan_video_block,
    "HunyuanVideoSingleTransformerBlock": hunyuan_video_block,
    "HunyuanVideoTokenReplaceTransformerBlock": hunyuan_video_block,
    "HunyuanVideoTokenReplaceSingleTransformerBlock": hunyuan_video_block,
    "HunyuanVideo15TransformerBlock": hunyuan_video_block,
    "QwenImageTransformerBlock": qwen_block,
    "ZImageTransformerBlock": z_image_block,
    "WanTransformerBlock": wan_block,
    **BLOCKS,
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
