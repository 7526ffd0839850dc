"""What the tests share: small random models, and the loop that samples from them."""

import copy
import sys

import pytest
import reference
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from diffusers.utils import logging
from facebook_dit import DiT
from hypothesis import settings
from transformers import T5Config, T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

from forecache import cli
from forecache.fit.tuning import polish, proposals, tuner

logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)
settings.register_profile("forecache", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("forecache")

CLASSES = 10
"""Classes of the small models; the label CLASSES is "no label"."""


def small_dit(num_layers=3, classes=CLASSES, seed=0):
    """A random diffusers DiT, (B, 4, 8, 8) to (B, 8, 8, 8); its adaLN gates are not zero."""
    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=classes,
    ).eval()


def small_pixart(num_layers=3, seed=0, head=8, captions=12, **config):
    """A random diffusers PixArt, (B, 4, 8, 8) to (B, 8, 8, 8), for captions (B, M, 12)."""
    torch.manual_seed(seed)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=head,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=8,
        cross_attention_dim=2 * head,
        caption_channels=captions,
        **config,
    ).eval()


def small_t5(width=12, seed=0):
    """A random T5 encoder and a tokenizer of a few words."""
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁green", "▁cat", "▁cactus", "▁apple", "▁small", "▁happy"]
    tokenizer = T5Tokenizer(vocab=[(word, -float(index)) for index, word in enumerate(words)], extra_ids=0)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def small_vae():
    """Pixels of 8 x 8 from latents of the same size."""
    torch.manual_seed(0)
    return AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=8)


def small_facebook_dit(depth=3):
    torch.manual_seed(1)
    return DiT(depth=depth, num_classes=CLASSES).eval()


def labels(count=2):
    """``count`` classes and as many "no label": one guidance batch."""
    return torch.cat([torch.arange(count), torch.full((count,), CLASSES)])


def noise(count=2, seed=0):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def generate(model, num_steps, seed=0, count=2):
    """Samples of a diffusers DiT by the plain loop, through the model's own forward."""
    y = labels(count)
    dtype = model.dtype

    def predict(x, t, step):
        return model(x.to(dtype), timestep=t, class_labels=y).sample

    return reference.ddim(predict, noise(count, seed).to(dtype), num_steps)


def generate_images(pipe, num_steps, seed=0):
    """Images of a pipeline, (2, 8, 8, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return pipe([1, 2], num_inference_steps=num_steps, generator=generator, output_type="np").images


@pytest.fixture(scope="session")
def _dit():
    return small_dit()


@pytest.fixture
def dit(_dit):
    return copy.deepcopy(_dit)


@pytest.fixture
def facebook():
    return small_facebook_dit()


@pytest.fixture(scope="session")
def pipe_folder(tmp_path_factory):
    """A small random DiTPipeline as a folder. DiTPipeline's "no label" is 1000, whatever its model."""
    folder = tmp_path_factory.mktemp("pipeline")
    transformer = small_dit(classes=1000, seed=2)
    DiTPipeline(transformer, small_vae(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pixart_folder(tmp_path_factory):
    """A small random PixArtAlphaPipeline as a folder, text encoder and tokenizer included."""
    folder = tmp_path_factory.mktemp("pixart")
    encoder, tokenizer = small_t5()
    parts = tokenizer, encoder, small_vae(), small_pixart(seed=3), DPMSolverMultistepScheduler()
    PixArtAlphaPipeline(*parts).save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(pipe_folder):
    pipe = DiTPipeline.from_pretrained(pipe_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def forecache(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["forecache", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def short_tuning(monkeypatch):
    """Tunings that sample with little, where they are not what is tested."""
    monkeypatch.setattr(polish, "ROUNDS", 1)
    monkeypatch.setattr(polish, "SCHEDULES", 1)
    monkeypatch.setattr(proposals, "LAST", 2)
    monkeypatch.setattr(tuner, "FINALISTS", 2)
    monkeypatch.setattr(tuner, "NOISES", 1)
