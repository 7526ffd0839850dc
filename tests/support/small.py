"""Small random models, and the loop that samples from them."""

import json

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from support import reference
from support.facebook_dit import DiT

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


def small_flux(folder):
    """A random FluxPipeline with encoders and tokenizers, written to a folder: images of 64 x 64 pixels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16)
    torch.manual_seed(0)
    sizes = {"hidden_size": 10, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    clip = CLIPTextModel(CLIPTextConfig(**sizes, **ends)).eval()
    t5, t5_tokenizer = small_t5()
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=1,
        sample_size=64,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = FluxTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=3,
        in_channels=4,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = FluxPipeline(scheduler, vae, clip, tokenizer, t5, t5_tokenizer, transformer)
    pipe.save_pretrained(folder)
    return folder


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
