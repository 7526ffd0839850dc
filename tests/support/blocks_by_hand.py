"""Blocks of video models and of models of one modulation a block, written out by hand for `support.by_hand`.

``emit(kind, compute)`` says what a branch gives out.
"""

import torch

from support import reference


def ltx_block(block, emit, hidden_states, encoder_hidden_states, temb, image_rotary_emb, encoder_attention_mask):
    x, time = hidden_states, temb.unflatten(-1, (6, -1))
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (block.scale_shift_table + time).unbind(2)
    normed = block.norm1(x) * (1 + scale) + shift
    x = x + gate * emit("attn", lambda: block.attn1(normed, image_rotary_emb=image_rotary_emb))
    y = x + emit("cross", lambda: block.attn2(x, encoder_hidden_states, encoder_attention_mask))
    return y + gate_mlp * emit("mlp", lambda: block.ff(block.norm2(y) * (1 + scale_mlp) + shift_mlp))


def cogvideox_block(
    block, emit, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None, attention_kwargs=None
):
    x, text, length = hidden_states, encoder_hidden_states, encoder_hidden_states.shape[1]
    normed, normed_text, gate, gate_text = block.norm1(x, text, temb)
    both = emit("attn", lambda: torch.cat(block.attn1(normed, normed_text, image_rotary_emb=image_rotary_emb)[::-1], 1))
    x, text = x + gate * both[:, length:], text + gate_text * both[:, :length]
    normed, normed_text, gate, gate_text = block.norm2(x, text, temb)
    both = emit("mlp", lambda: block.ff(torch.cat([normed_text, normed], 1)))
    return x + gate * both[:, length:], text + gate_text * both[:, :length]


def sana_block(block, emit, hidden_states, mask, encoder_hidden_states, encoder_mask, timestep, *grid):
    x, is_video = hidden_states, len(grid) == 4
    grid, rotary = (grid[:3], {"rotary_emb": grid[3]}) if is_video else (grid, {})
    time = timestep.reshape(len(x), -1, 6, x.shape[-1])
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (block.scale_shift_table + time).unbind(2)
    x = x + gate * emit("attn", lambda: block.attn1(block.norm1(x) * (1 + scale) + shift, **rotary))
    y = x + emit("cross", lambda: block.attn2(x, encoder_hidden_states, encoder_mask))
    normed = (block.norm2(y) * (1 + scale_mlp) + shift_mlp).unflatten(1, grid)

    def mix():
        if is_video:
            return block.ff(normed).flatten(1, 3)
        return block.ff(normed.movedim(-1, 1)).movedim(1, -1).flatten(1, 2)

    return y + gate_mlp * emit("mlp", mix)


def aura_flow_block(block, emit, hidden_states, encoder_hidden_states=None, temb=None, attention_kwargs=None):
    def finish(x, attended, norm, ff, gate, shift, scale):
        return ff(reference.modulate(norm(x + gate[:, None] * attended), shift, scale))

    x, text = hidden_states, encoder_hidden_states
    normed, gate, shift, scale, gate_mlp = block.norm1(x, emb=temb)
    if text is None:

        def compute():
            return finish(x, block.attn(normed), block.norm2, block.ff, gate, shift, scale)

        return x + gate_mlp[:, None] * emit("nested", compute)
    normed_text, gate_text, shift_text, scale_text, gate_mlp_text = block.norm1_context(text, emb=temb)

    def joint():
        attended, attended_text = block.attn(normed, normed_text)
        image = finish(x, attended, block.norm2, block.ff, gate, shift, scale)
        return torch.cat(
            [
                image,
                finish(text, attended_text, block.norm2_context, block.ff_context, gate_text, shift_text, scale_text),
            ],
            1,
        )

    both, tokens = emit("nested", joint), x.shape[1]
    return text + gate_mlp_text[:, None] * both[:, tokens:], x + gate_mlp[:, None] * both[:, :tokens]


def lumina2_block(block, emit, hidden_states, attention_mask, image_rotary_emb, temb):
    x = hidden_states
    normed, gate, scale, gate_mlp = (part if part.ndim == 3 else part[:, None] for part in block.norm1(x, temb))
    attention = emit(
        "attn", lambda: block.norm2(block.attn(normed, normed, attention_mask, image_rotary_emb=image_rotary_emb))
    )
    x = x + gate.tanh() * attention
    mlp = emit("mlp", lambda: block.ffn_norm2(block.feed_forward(block.ffn_norm1(x) * (1 + scale))))
    return x + gate_mlp.tanh() * mlp


def mochi_block(block, emit, hidden_states, encoder_hidden_states, temb, encoder_attention_mask, image_rotary_emb):
    """Each norm of an output without its scale, which is the gate."""
    x, text, last = hidden_states, encoder_hidden_states, block.context_pre_only
    normed, gate, scale, gate_mlp = block.norm1(x, temb)
    if last:
        normed_text = block.norm1_context(text, temb)
    else:
        normed_text, gate_text, scale_text, gate_mlp_text = block.norm1_context(text, temb)
    outputs = []

    def attend(index):
        if not outputs:
            outputs.extend(block.attn1(normed, normed_text, encoder_attention_mask, image_rotary_emb=image_rotary_emb))
        return (block.norm2, block.norm2_context)[index](outputs[index])

    x = x + gate.tanh()[:, None] * emit("attn", lambda: attend(0))
    x = x + gate_mlp.tanh()[:, None] * emit("mlp", lambda: block.norm4(block.ff(block.norm3(x, 1 + scale[:, None]))))
    if last:
        return x, text
    text = text + gate_text.tanh()[:, None] * emit("attn_text", lambda: attend(1))
    normed_text = block.norm3_context(text, 1 + scale_text[:, None])
    mlp_text = emit("mlp_text", lambda: block.norm4_context(block.ff_context(normed_text)))
    return x, text + gate_mlp_text.tanh()[:, None] * mlp_text


def cosmos_block(
    block, emit, hidden_states, encoder_hidden_states, embedded_timestep, temb, rotary, positions, mask, residual
):
    x = hidden_states
    normed, gate = block.norm1(x, embedded_timestep, temb)
    x = x + gate * emit("attn", lambda: block.attn1(normed, image_rotary_emb=rotary))
    normed_cross, gate = block.norm2(x, embedded_timestep, temb)
    x = x + gate * emit("cross", lambda: block.attn2(normed_cross, encoder_hidden_states, mask))
    normed_mlp, gate = block.norm3(x, embedded_timestep, temb)
    return x + gate * emit("mlp", lambda: block.ff(normed_mlp))


def ltx2_block(block, emit, **given):
    def rows(table, temb):
        return (table + temb.unflatten(-1, (len(table), -1))).unbind(2)

    def prompt(table, temb):
        return table[None, None].unbind(2) if temb is None else rows(table, temb)

    x, audio = given["hidden_states"], given["audio_hidden_states"]
    text, text_audio = given["encoder_hidden_states"], given["audio_encoder_hidden_states"]
    of_video = rows(block.scale_shift_table, given["temb"])
    of_audio = rows(block.audio_scale_shift_table, given["temb_audio"])
    stg = {name: given[name] for name in ("perturbation_mask", "all_perturbed")} if block.perturbed_attn else {}

    def own(attn, normed, rotary):
        return attn(normed, query_rotary_emb=rotary, **stg)

    normed = block.norm1(x) * (1 + of_video[1]) + of_video[0]
    x = x + of_video[2] * emit("attn", lambda: own(block.attn1, normed, given["video_rotary_emb"]))
    heard = block.audio_norm1(audio) * (1 + of_audio[1]) + of_audio[0]
    audio = audio + of_audio[2] * emit("attn_audio", lambda: own(block.audio_attn1, heard, given["audio_rotary_emb"]))
    if block.cross_attn_adaln:
        shift, scale = prompt(block.prompt_scale_shift_table, given["temb_prompt"])
        text = text * (1 + scale) + shift
        shift, scale = prompt(block.audio_prompt_scale_shift_table, given["temb_prompt_audio"])
        text_audio = text_audio * (1 + scale) + shift
    asked, asked_audio, gate, gate_audio = block.norm2(x), block.audio_norm2(audio), 1, 1
    if block.video_cross_attn_adaln:
        asked, gate = asked * (1 + of_video[7]) + of_video[6], of_video[8]
    if block.audio_cross_attn_adaln:
        asked_audio, gate_audio = asked_audio * (1 + of_audio[7]) + of_audio[6], of_audio[8]
    x = x + gate * emit("cross", lambda: block.attn2(asked, text, attention_mask=given["encoder_attention_mask"]))
    mask = given["audio_encoder_attention_mask"]
    audio = audio + gate_audio * emit("cross_audio", lambda: block.audio_attn2(asked_audio, text_audio, mask))
    if given["use_a2v_cross_attention"]:
        a, b = block.audio_to_video_norm(x), block.video_to_audio_norm(audio)
        table, table_audio = block.video_a2v_cross_attn_scale_shift_table, block.audio_a2v_cross_attn_scale_shift_table
        v = rows(table[:4], given["temb_ca_scale_shift"])
        u = rows(table_audio[:4], given["temb_ca_audio_scale_shift"])
        (gate,) = rows(table[4:], given["temb_ca_gate"])
        (gate_audio,) = rows(table_audio[4:], given["temb_ca_audio_gate"])
        rotary = given["ca_video_rotary_emb"], given["ca_audio_rotary_emb"]

        def to_video():
            return block.audio_to_video_attn(a * (1 + v[0]) + v[1], b * (1 + u[0]) + u[1], None, *rotary)

        def to_audio():
            return block.video_to_audio_attn(b * (1 + u[2]) + u[3], a * (1 + v[2]) + v[3], None, *rotary[::-1])

        x, audio = x + gate * emit("a2v", to_video), audio + gate_audio * emit("v2a", to_audio)
    mlp = emit("mlp", lambda: block.ff(block.norm3(x) * (1 + of_video[4]) + of_video[3]))
    louder = block.audio_norm3(audio) * (1 + of_audio[4]) + of_audio[3]
    return x + of_video[5] * mlp, audio + of_audio[5] * emit("mlp_audio", lambda: block.audio_ff(louder))


BLOCKS = {
    "LTXVideoTransformerBlock": ltx_block,
    "LTX2VideoTransformerBlock": ltx2_block,
    "CogVideoXBlock": cogvideox_block,
    "SanaTransformerBlock": sana_block,
    "SanaVideoTransformerBlock": sana_block,
    "AuraFlowJointTransformerBlock": aura_flow_block,
    "AuraFlowSingleTransformerBlock": aura_flow_block,
    "Lumina2TransformerBlock": lumina2_block,
    "MochiTransformerBlock": mochi_block,
    "CosmosTransformerBlock": cosmos_block,
}
