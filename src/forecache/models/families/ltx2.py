"""LTX2VideoTransformer3DModel of diffusers (LTX-2, arXiv 2601.03233), by branches: video and audio, adaLN-single.

Each stream has its self-attention, cross-attention to its text and MLP; between them lie two cross-attentions, of the
video to the audio and of the audio to the video, which read the streams at the same time: one site. Every token may
have a timestep of its own. B batch, N tokens of a stream, D its width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecache.models.blocks import Block, Branch, Gate, Gates, described, joined
from forecache.models.families.adaln_single import modulated
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks, is_named

VIDEO, AUDIO = 0, 1
"""The streams, in the order in which their parts stand in a feature of both."""


class Stream(NamedTuple):
    """Vectors of one stream, (B, 1, D) or (B, N, D); without those of the text's queries in models that have none.

    parts: shift, scale, gate of the self-attention, of the MLP, and of the cross-attention to the text
    text, mask: the text and its mask
    prompt: shift and scale of the text; () for none
    rotary: of the self-attention
    masked: other keyword arguments of the self-attention
    between: scale and shift towards the video, scale and shift towards the audio
    gate: of what comes from the other stream
    """

    parts: Sequence[Tensor]
    text: Tensor
    mask: Tensor | None
    prompt: Sequence[Tensor]
    rotary: Any
    masked: dict[str, Any]
    between: Sequence[Tensor]
    gate: Tensor


class Condition(NamedTuple):
    """What the branches of a block share.

    streams: of video and of audio
    rotary: of the attentions between the streams, of video and of audio
    masks: of the attentions to the video and to the audio
    uses: whether the attention to the video runs, and that to the audio
    """

    streams: tuple[Stream, Stream]
    rotary: tuple[Any, Any]
    masks: tuple[Tensor | None, Tensor | None]
    uses: tuple[bool, bool]


NATIVE = "LTX2VideoTransformerBlock"
"""The class of the blocks that are written out here."""


def fits(model: nn.Module) -> bool:
    return is_named(model, "LTX2VideoTransformer3DModel")


def layout(model: Any) -> Layout:
    return from_blocks(model, described(model.transformer_blocks, NATIVE, _block), stacked=_stacked)


def _vectors(table: Tensor, temb: Tensor) -> Sequence[Tensor]:
    time_BNPD = temb.reshape(len(temb), temb.shape[1], len(table), -1)
    return (table[None, None].to(temb.device) + time_BNPD).unbind(dim=2)


def _prompt(table: Tensor, temb: Tensor | None, text: Tensor) -> Sequence[Tensor]:
    if temb is not None:
        return _vectors(table, temb)
    return table[None, None].to(device=text.device, dtype=text.dtype).unbind(dim=2)


def _block(block: Any) -> Block:
    def condition(
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        audio_encoder_hidden_states: Tensor,
        temb: Tensor,
        temb_audio: Tensor,
        temb_ca_scale_shift: Tensor,
        temb_ca_audio_scale_shift: Tensor,
        temb_ca_gate: Tensor,
        temb_ca_audio_gate: Tensor,
        temb_prompt: Tensor | None = None,
        temb_prompt_audio: Tensor | None = None,
        video_rotary_emb: Any = None,
        audio_rotary_emb: Any = None,
        ca_video_rotary_emb: Any = None,
        ca_audio_rotary_emb: Any = None,
        encoder_attention_mask: Tensor | None = None,
        audio_encoder_attention_mask: Tensor | None = None,
        self_attention_mask: Tensor | None = None,
        audio_self_attention_mask: Tensor | None = None,
        a2v_cross_attention_mask: Tensor | None = None,
        v2a_cross_attention_mask: Tensor | None = None,
        use_a2v_cross_attention: bool = True,
        use_v2a_cross_attention: bool = True,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> Condition:
        text, text_audio = encoder_hidden_states, audio_encoder_hidden_states
        prompts: tuple[Sequence[Tensor], Sequence[Tensor]] = (), ()
        if block.cross_attn_adaln:
            prompts = (
                _prompt(block.prompt_scale_shift_table, temb_prompt, hidden_states),
                _prompt(block.audio_prompt_scale_shift_table, temb_prompt_audio, audio_hidden_states),
            )
        more = {}
        if block.perturbed_attn:
            more = {"perturbation_mask": perturbation_mask, "all_perturbed": all_perturbed}
        between = [getattr(block, name) for name in TABLES[2:]]
        video = Stream(
            _vectors(block.scale_shift_table, temb),
            text,
            encoder_attention_mask,
            prompts[VIDEO],
            video_rotary_emb,
            {"attention_mask": self_attention_mask, **more},
            _vectors(between[VIDEO][:4], temb_ca_scale_shift),
            _vectors(between[VIDEO][4:], temb_ca_gate)[0],
        )
        audio = Stream(
            _vectors(block.audio_scale_shift_table, temb_audio),
            text_audio,
            audio_encoder_attention_mask,
            prompts[AUDIO],
            audio_rotary_emb,
            {"attention_mask": audio_self_attention_mask, **more},
            _vectors(between[AUDIO][:4], temb_ca_audio_scale_shift),
            _vectors(between[AUDIO][4:], temb_ca_audio_gate)[0],
        )
        return Condition(
            (video, audio),
            (ca_video_rotary_emb, ca_audio_rotary_emb),
            (a2v_cross_attention_mask, v2a_cross_attention_mask),
            (use_a2v_cross_attention, use_v2a_cross_attention),
        )

    def between(video: Tensor, audio: Tensor, c: Condition) -> Tensor:
        normed, normed_audio = block.audio_to_video_norm(video), block.video_to_audio_norm(audio)

        def scaled(parts: slice) -> tuple[Tensor, Tensor]:
            (scale, shift), (scale_audio, shift_audio) = (own.between[parts] for own in c.streams)
            return normed * (1 + scale) + shift, normed_audio * (1 + scale_audio) + shift_audio

        outputs = [torch.zeros_like(video), torch.zeros_like(audio)]
        if c.uses[VIDEO]:
            query, key = scaled(slice(0, 2))
            outputs[VIDEO] = block.audio_to_video_attn(
                query,
                encoder_hidden_states=key,
                query_rotary_emb=c.rotary[VIDEO],
                key_rotary_emb=c.rotary[AUDIO],
                attention_mask=c.masks[VIDEO],
            )
        if c.uses[AUDIO]:
            key, query = scaled(slice(2, 4))
            outputs[AUDIO] = block.video_to_audio_attn(
                query,
                encoder_hidden_states=key,
                query_rotary_emb=c.rotary[AUDIO],
                key_rotary_emb=c.rotary[VIDEO],
                attention_mask=c.masks[AUDIO],
            )
        return joined(outputs)

    (attn, cross, mlp), (attn_audio, cross_audio, mlp_audio) = _of_stream(block, VIDEO), _of_stream(block, AUDIO)
    both = Branch("av", between, lambda c: tuple(own.gate for own in c.streams), streams=(VIDEO, AUDIO))
    return Block(
        block,
        condition,
        (attn, attn_audio, cross, cross_audio, both, mlp, mlp_audio),
        lambda: [getattr(block, name) for name in TABLES],
        ("hidden_states", "audio_hidden_states"),
        (VIDEO, AUDIO),
        native=NATIVE,
    )


def _of_stream(block: Any, stream: int) -> tuple[Branch, Branch, Branch]:
    """Self-attention, cross-attention and MLP of a stream."""
    before, after = ("", "") if stream == VIDEO else ("audio_", "_audio")
    norms = [getattr(block, f"{before}norm{number}") for number in (1, 2, 3)]
    attn, cross_attn, ff = (getattr(block, f"{before}{name}") for name in ("attn1", "attn2", "ff"))
    is_gated = getattr(block, f"{'video' if stream == VIDEO else 'audio'}_cross_attn_adaln")

    def attention(x_BND: Tensor, c: Condition) -> Tensor:
        own = c.streams[stream]
        normed_BND = modulated(norms[0](x_BND), *own.parts[:2])
        return attn(hidden_states=normed_BND, encoder_hidden_states=None, query_rotary_emb=own.rotary, **own.masked)

    def cross(x_BND: Tensor, c: Condition) -> Tensor:
        own = c.streams[stream]
        normed_BND = norms[1](x_BND)
        if is_gated:
            normed_BND = modulated(normed_BND, *own.parts[6:8])
        text = own.text
        if own.prompt:
            shift, scale = own.prompt
            text = text * (1 + scale) + shift
        return cross_attn(normed_BND, encoder_hidden_states=text, query_rotary_emb=None, attention_mask=own.mask)

    def mlp(x_BND: Tensor, c: Condition) -> Tensor:
        return ff(modulated(norms[2](x_BND), *c.streams[stream].parts[3:5]))

    def gate(part: int) -> Any:
        return lambda c: c.streams[stream].parts[part]

    streams = (stream,)
    return (
        Branch(f"attn{after}", attention, gate(2), streams=streams),
        Branch(f"cross{after}", cross, gate(8) if is_gated else None, tokenwise=True, streams=streams),
        Branch(f"mlp{after}", mlp, gate(5), tokenwise=True, streams=streams),
    )


def _stacked(blocks: Sequence[Any]) -> Gates | None:
    """The gates' rows of the tables, in place; no other row of the modulation is made."""

    def gates(*args: Any, **kwargs: Any) -> list[Gate]:
        given = [kwargs[name] if name in kwargs else args[place] for name, place in GIVEN.items()]
        return [gate for block in blocks for gate in _gates(block, *given)]

    return gates


TABLES = (
    "scale_shift_table",
    "audio_scale_shift_table",
    "video_a2v_cross_attn_scale_shift_table",
    "audio_a2v_cross_attn_scale_shift_table",
)
GIVEN = {"temb": 4, "temb_audio": 5, "temb_ca_gate": 8, "temb_ca_audio_gate": 9}
"""The arguments that gates are made of, with their positions."""


def _gates(block: Any, video: Tensor, audio: Tensor, to_video: Tensor, to_audio: Tensor) -> Iterator[Gate]:
    """The gates of a block, one a branch."""
    table, table_audio, between, between_audio = (getattr(block, name) for name in TABLES)
    yield _row(table, video, 2)
    yield _row(table_audio, audio, 2)
    yield _row(table, video, 8) if block.video_cross_attn_adaln else 1.0
    yield _row(table_audio, audio, 8) if block.audio_cross_attn_adaln else 1.0
    yield _row(between[4:], to_video, 0), _row(between_audio[4:], to_audio, 0)
    yield _row(table, video, 5)
    yield _row(table_audio, audio, 5)


def _row(table: Tensor, temb: Tensor, row: int) -> Tensor:
    return table[row].to(temb.device) + temb.reshape(len(temb), temb.shape[1], len(table), -1)[:, :, row]


KINDS = ("attn", "attn_audio", "cross", "cross_audio", "av", "mlp", "mlp_audio")
FAMILIES = (Family("LTX-2", "LTX2VideoTransformer3DModel", "branches", KINDS, fits, layout),)
