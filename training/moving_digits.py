"""How the model "moving-digits" is made: a small Wan that films handwritten digits as captions say, by flow matching.

    python training/moving_digits.py train --data ../shared/data/mnist.npz --out runs/moving-digits   # or goes on
    python training/moving_digits.py train --out runs/moving-digits \\
        --init training/checkpoints/moving-digits/checkpoint.safetensors
    python training/moving_digits.py sample --out runs/moving-digits --picture runs/moving-digits/grid.png
    python training/moving_digits.py shrink --out runs/moving-digits \\
        --to training/checkpoints/moving-digits/checkpoint.safetensors

Clips follow the recipe of Moving MNIST: one digit or two, each on a straight way of its own, thrown back by the
borders; 12 frames of 32x32. A caption says for each digit where it moves first, as in "a three moves left, a seven
moves up". A UMT5 encoder of two layers reads it, and is trained with the transformer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).parent))
import flow
import flow_options
from moving_clips import DIRECTIONS, FRAMES, NAMES, SIZE, load, made, phrase

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from torch import Generator, Tensor

TEXT_WIDTH = 64
LENGTH = 12
"""Tokens of every caption, `</s>` and padding included."""
SPECIAL = ("<pad>", "</s>", "<unk>")
DEFAULTS = {
    "data": "../shared/data/mnist.npz",
    "out": "runs/moving-digits",
    "images": 160_000,
    "batch": 32,
    "lr": 1e-3,
    "checkpoint": 100,
    "count": 8,
    "guidance": 2.0,
    "shift": 2.0,
}


def build(heads: int = 6, layers: int = 8, patch: tuple[int, int, int] = (2, 8, 8)) -> WanTransformer3DModel:
    """An untrained transformer: clips (B, 1, 12, 32, 32) to velocities; every block starts as the identity."""
    model = WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=4 * 32 * heads,
        num_layers=layers,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    parts: Any = model
    for layer in [parts.proj_out, parts.condition_embedder.time_proj]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in parts.blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
        with torch.no_grad():
            block.scale_shift_table[:, [2, 5]] = 0
    return model


def build_text_encoder(words: int) -> UMT5EncoderModel:
    """An untrained UMT5 encoder: token ids (B, 12) to features (B, 12, 64)."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=words,
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=16,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the captions' words: lower case, the comma is a word, `</s>` at the end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [*SPECIAL, *sorted({"a", "an", "moves", ",", "up", "down", "left", "right", *NAMES})]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer: Any = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=LENGTH
    )


class Cameraman(torch.nn.Module):
    """The transformer and its text encoder, trained as one."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.transformer = build()
        self.text_encoder = build_text_encoder(words)
        self.run_transformer: Any = self.transformer.forward

    def read(self, ids: Tensor) -> Tensor:
        """Features of all tokens (B, 12, 64), zero for padding, as WanPipeline has it."""
        mask = (ids != 0).long()
        return self.text_encoder(ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(2)

    def forward(self, noisy: Tensor, time_B: Tensor, text: Tensor) -> Tensor:
        """Velocities (B, 1, 12, 32, 32)."""
        return self.run_transformer(
            hidden_states=noisy.to(text.dtype), timestep=time_B * 1000, encoder_hidden_states=text, return_dict=False
        )[0]


class Filming:
    """The task: clips made as they are needed, asked for by their captions or not at all."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.digits, self.labels = load(args.data)
        self.tokenizer = build_tokenizer()
        self.cameraman = Cameraman(len(self.tokenizer))
        if args.compile:
            self.cameraman.run_transformer = torch.compile(self.cameraman.transformer)
        self.empty = tokens(self.tokenizer, [""])

    @property
    def module(self) -> torch.nn.Module:
        """The cameraman."""
        return self.cameraman

    def prepare(self) -> None:
        """Nothing."""

    def batch(self, count: int, dropout: float, draw: Generator) -> tuple[Tensor, Tensor]:
        """Clips (B, 1, 12, 32, 32) and token ids (B, 12)."""
        clips = made(self.digits, self.labels, count, draw)
        dice = torch.rand(count, generator=draw).tolist()
        texts = ["" if chance < dropout else text for chance, text in zip(dice, clips.captions, strict=True)]
        return clips.pixels.unsqueeze(1), tokens(self.tokenizer, texts)

    def loss(self, draw: Generator) -> Tensor:
        """The error of velocities on a batch."""
        clips, ids = self.batch(self.args.batch, self.args.prompt_dropout, draw)
        text = self.cameraman.read(ids)
        return flow.flow_loss(clips, draw, lambda noisy, time_B: self.cameraman(noisy, time_B, text))

    @torch.no_grad()
    def film(self, prompts: Sequence[str], args: argparse.Namespace) -> Tensor:
        """Clips (B, 1, 12, 32, 32) of prompts; each depends on its prompt, the seed and its place alone."""
        shape = (1, FRAMES, SIZE, SIZE)
        noise = torch.stack(
            [torch.randn(shape, generator=flow.generator(args.seed + 2, row)) for row in range(len(prompts))]
        )
        asked = self.cameraman.read(tokens(self.tokenizer, prompts))
        free = self.cameraman.read(self.empty.expand(len(prompts), -1))
        return flow.draw_samples(
            noise,
            lambda noisy, time_B: self.cameraman(noisy, time_B, asked),
            lambda noisy, time_B: self.cameraman(noisy, time_B, free),
            FlowMatchEulerDiscreteScheduler(shift=args.shift),
            args.steps,
            args.guidance,
        )


def tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 12) of the texts."""
    out = tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return out.input_ids


def sample(args: argparse.Namespace) -> None:
    """A picture with a clip in each row, frame beside frame."""
    args.compile = False
    task = Filming(args)
    header = flow.load_average(task.module, args.start or args.out / flow.CHECKPOINT)
    if args.prompts:
        prompts = args.prompts.split(";")
    else:
        turns = list(DIRECTIONS)
        first = [phrase(row % 10, turns[row % 8]) for row in range(args.count)]
        second = [phrase((3 * row + 7) % 10, turns[(3 * row + 2) % 8]) for row in range(args.count)]
        prompts = [f"{a}, {b}" if row % 3 else a for row, (a, b) in enumerate(zip(first, second, strict=True))]
    clips = task.film(prompts, args)
    flow.write_grid(clips.squeeze(1).flatten(0, 1).unsqueeze(1), args.picture, columns=FRAMES, scale=2)
    print(f"step {header['step']}: {args.picture} shows\n" + "\n".join(prompts))


def main() -> None:
    words, commands = flow_options.parser(__doc__, DEFAULTS)
    command = flow_options.add_sample(commands, DEFAULTS)
    command.add_argument("--prompts", default=None, help="captions with semicolons between; default: a choice")
    flow_options.add_shrink(commands, DEFAULTS)
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        flow.train(Filming(args), args)
    elif args.command == "sample":
        sample(args)
    else:
        flow.shrink(args.out / flow.CHECKPOINT, args.to)


if __name__ == "__main__":
    main()
