"""Modular pipelines of diffusers, run whole on small random parts, from a text to a video."""

import types

import diffusers
import pytest
import torch
from diffusers.modular_pipelines import LTXAutoBlocks, WanBlocks
from diffusers.modular_pipelines.wan import encoders
from support.pipelines import small_wan
from support.small import small_t5
from support.tiny import TINY
from support.traces import everything
from transformers import T5Config, T5EncoderModel

import forecache as fc

STEPS = 4


def wan():
    whole = small_wan()
    return WanBlocks(), {name: getattr(whole, name) for name in ("text_encoder", "tokenizer", "vae", "transformer",
                                                                 "scheduler")}  # fmt: skip


def ltx():
    _, tokenizer = small_t5()
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=11, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return LTXAutoBlocks(), {
        "text_encoder": encoder.eval(),
        "tokenizer": tokenizer,
        "vae": vae.eval(),
        "transformer": TINY["LTX-Video"].model(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


@pytest.mark.parametrize(
    ("parts", "lanes", "size"),
    [(wan, ("cond", "uncond"), (16, 16, 5)), (ltx, (), (64, 64, 9))],
    ids=["Wan, whose calls nothing names", "LTX, whose cache_context does"],
)
def test_a_modular_pipeline_as_a_whole(monkeypatch, parts, lanes, size):
    monkeypatch.setattr(encoders, "ftfy", types.SimpleNamespace(fix_text=str), raising=False)  # it mends odd letters
    blocks, components = parts()
    pipe = blocks.init_pipeline()
    pipe.update_components(**components)
    pipe.set_progress_bar_config(disable=True)
    height, width, frames = size

    def sample():
        how = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": STEPS}
        generator = torch.Generator().manual_seed(0)
        return torch.stack(list(
            pipe(prompt="a b", negative_prompt="c", output="videos", output_type="pt", generator=generator, **how)
        ))  # fmt: skip

    bare = sample()  # the first cache_context leaves diffusers' own registry of hooks on the model
    before = everything(pipe.transformer)
    for interval, computed in ((1, 2 * STEPS), (2, STEPS)):
        with fc.apply(pipe, fc.fora(interval), lanes=lanes) as session:
            video = sample()
        assert torch.equal(video, bare) == (interval == 1)
        assert (session.stats.calls, session.stats.last.computed_calls) == (2 * STEPS, computed)
        assert session.stats.generations == 1
    assert everything(pipe.transformer) == before
    assert torch.equal(sample(), bare)
