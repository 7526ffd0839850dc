"""How the model "emoji" is made: a small Flux that paints 32x32 colour emoji of their names, by rectified flow.

    python training/emoji.py train --data ../shared/data/emoji32.npz --out runs/emoji    # begins, or goes on
    python training/emoji.py train --out runs/emoji --init training/checkpoints/emoji/checkpoint.safetensors
    python training/emoji.py sample --out runs/emoji --picture runs/emoji/grid.png
    python training/emoji.py shrink --out runs/emoji --to training/checkpoints/emoji/checkpoint.safetensors

Prompts are read by a CLIP text encoder of two layers on words. It first learns to tell the colours of a picture
from its caption, and is then trained with the transformer. It stands for both encoders of FluxPipeline: the features of
all tokens go to the joint blocks, those of the last one to the modulation. What the pipeline takes for latents are
pixels, with 2x2 of them in 12 channels; its own packing makes 8x8 tokens of 48 channels of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
import emoji_data
import flow
import flow_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from emoji_data import Emoji
    from torch import Generator, Tensor

TEXT_WIDTH = 128
LENGTH = 16
"""Tokens of every prompt, `</s>` and padding included."""
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
DEFAULTS = {
    "data": "../shared/data/emoji32.npz",
    "out": "runs/emoji",
    "images": 480_000,
    "batch": 32,
    "lr": 1e-3,
    "checkpoint": 100,
    "count": 64,
    "guidance": 3.0,
    "shift": 1.5,
}
SHOWN = (
    "grinning face,pizza,red apple,sun,cat face,dog face,soccer ball,car,rocket,house,tulip,cactus,banana,hamburger,"
    "penguin,octopus,guitar,book,hammer,umbrella,heart,star,fire,snowman,flag jp,flag fr,thumbs up,ok hand,eye,"
    "police car,bicycle,airplane,sailboat,bus,tractor,key,lock,bell,clock3,hourglass,crown,tophat,jeans,dress,boot,"
    "gift,balloon,jack o lantern,christmas tree,palm tree,mushroom,sunflower,strawberry,watermelon,carrot,corn,bread,"
    "cookie,cake,coffee,wine glass,beer,astronaut,mage"
)


def build(heads: int = 5, joint: int = 2, single: int = 8) -> FluxTransformer2DModel:
    """An untrained transformer: 64 tokens of 48 pixel values to velocities; every block starts as the identity."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=48,
        num_layers=joint,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    parts: Any = model
    layers = [parts.proj_out, parts.norm_out.linear]
    layers += [norm.linear for block in parts.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    layers += [block.norm.linear for block in parts.single_transformer_blocks]
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def build_text_encoder(pieces: int) -> CLIPTextModel:
    """An untrained CLIP text encoder: token ids (B, 16) to features (B, 16, 128), and those of `</s>` (B, 128)."""
    config = CLIPTextConfig(
        vocab_size=pieces,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
    )
    return CLIPTextModel._from_config(config, attn_implementation="eager")


def build_scheduler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """Euler's steps along the flow, more of them at its noisy end."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the words of ``texts`` and, for others, of single letters; no signs; `</s>` at the end.

    Its pieces are not learned: the trainers of tokenizers choose others each time, and a checkpoint could not go on.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    splitting: Any = pre_tokenizers.Split(Regex("[0-9]+|[a-z]+|[+]"), "removed", invert=True)
    normalizer: Any = normalizers.BertNormalizer()
    words = {piece for text in texts for piece, _ in splitting.pre_tokenize_str(normalizer.normalize_str(text))}
    signs = {sign for word in words for sign in word}
    pieces = [*SPECIAL, *sorted(words | signs), *sorted(f"##{sign}" for sign in signs)]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer: Any = Tokenizer(models.WordPiece(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting
    end = SPECIAL.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=LENGTH,
    )


def vocabulary(emoji: Emoji) -> list[str]:
    """The texts whose words the tokenizer knows: names, styles and skin tones."""
    names = [text for name in sorted(set(emoji.names)) for text in emoji_data.names_of(name)]
    return [*names, *emoji_data.STYLES, *(emoji_data.toned(tone) for tone in sorted(set(emoji.tones)))]


def pack(pictures: Tensor) -> Tensor:
    """Tokens (B, 64, 48) of pictures (B, 3, 32, 32), in FluxPipeline's order of 12 channels by 2x2."""
    latents = torch.nn.functional.pixel_unshuffle(pictures, 2)
    return latents.unflatten(2, (8, 2)).unflatten(4, (8, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor) -> Tensor:
    """The pictures (B, 3, 32, 32) of tokens (B, 64, 48)."""
    latents = tokens.unflatten(2, (12, 2, 2)).unflatten(1, (8, 8)).permute(0, 3, 1, 4, 2, 5)
    return torch.nn.functional.pixel_shuffle(latents.flatten(4, 5).flatten(2, 3), 2)


class Painter(torch.nn.Module):
    """The transformer and its text encoder, trained as one."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.transformer = build()
        self.text_encoder = build_text_encoder(pieces)
        self.run_transformer: Any = self.transformer.forward
        grid = torch.arange(64)
        self.places = torch.stack([torch.zeros(64), grid // 8, grid % 8], 1)
        self.text_places = torch.zeros(LENGTH, 3)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features of all tokens (B, 16, 128), and those of the last (B, 128)."""
        out = self.text_encoder(ids)
        return out.last_hidden_state, out.pooler_output

    def forward(self, noisy: Tensor, time_B: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """Velocities (B, 64, 48)."""
        return self.run_transformer(
            hidden_states=noisy.to(text[0].dtype),
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            timestep=time_B,
            img_ids=self.places,
            txt_ids=self.text_places,
            return_dict=False,
        )[0]


class Painting:
    """The task: pictures drawn by their weights, asked for in one of two styles, in none, or not at all."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        everything = emoji_data.load(args.data)
        self.emoji, _ = everything.split()
        self.tokenizer = build_tokenizer(vocabulary(everything))
        self.painter = Painter(len(self.tokenizer))
        if args.compile:
            self.painter.run_transformer = torch.compile(self.painter.transformer)
        self.tokens = pack(self.emoji.pictures)
        self.weights = emoji_data.weights(self.emoji)
        self.empty = tokens(self.tokenizer, [""])

    @property
    def module(self) -> torch.nn.Module:
        """The painter."""
        return self.painter

    def batch(self, count: int, dropout: float, draw: Generator) -> tuple[Tensor, Tensor]:
        """Indices of pictures (B) and token ids (B, 16); the style is left out three times in ten."""
        index = torch.multinomial(self.weights, count, replacement=True, generator=draw)
        dice = torch.rand(3, count, generator=draw)
        texts = []
        for row, i in enumerate(map(int, index)):
            names = emoji_data.names_of(self.emoji.names[i])
            style = self.emoji.styles[i] if dice[1, row] >= 0.3 else ""
            text = emoji_data.caption(names[int(dice[2, row] * len(names))], style, self.emoji.tones[i])
            texts.append("" if dice[0, row] < dropout else text)
        return index, tokens(self.tokenizer, texts)

    def prepare(self) -> None:
        """Lessons in reading: the last token's features tell a thumbnail of the picture and its subgroup."""
        groups = sorted(set(self.emoji.subgroups))
        kinds = torch.tensor([groups.index(subgroup) for subgroup in self.emoji.subgroups])
        thumbnails = torch.nn.functional.avg_pool2d(self.emoji.pictures, 4).flatten(1)
        reader = torch.nn.Linear(TEXT_WIDTH, thumbnails.shape[1] + len(groups))
        weights = [*self.painter.text_encoder.parameters(), *reader.parameters()]
        lessons = self.args.reading
        optimizer = torch.optim.AdamW(weights, lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 50) * (1 - step / lessons))
        for lesson in range(lessons):
            index, ids = self.batch(128, 0.0, flow.generator(self.args.seed + 1, lesson))
            told = reader(self.painter.read(ids)[1]).split([thumbnails.shape[1], len(groups)], 1)
            painting = (told[0] - thumbnails[index]).square().mean()
            loss = painting + 0.1 * torch.nn.functional.cross_entropy(told[1], kinds[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if lesson % 100 == 99:
                right = (told[1].argmax(1) == kinds[index]).float().mean().item()
                print(f"lesson {lesson + 1}: thumbnails {painting.item():.4f}, subgroups {right:.2f}", flush=True)

    def loss(self, draw: Generator) -> Tensor:
        """The error of velocities on a batch."""
        index, ids = self.batch(self.args.batch, self.args.prompt_dropout, draw)
        text = self.painter.read(ids)
        return flow.flow_loss(self.tokens[index], draw, lambda noisy, time_B: self.painter(noisy, time_B, text))

    @torch.no_grad()
    def paint(self, prompts: Sequence[str], args: argparse.Namespace, first: int = 0) -> Tensor:
        """Pictures (B, 3, 32, 32) of prompts; picture i depends on its prompt, the seed and first + i alone."""
        rows = range(first, first + len(prompts))
        noise = torch.stack([torch.randn(64, 48, generator=flow.generator(args.seed + 2, row)) for row in rows])
        asked = self.painter.read(tokens(self.tokenizer, prompts))
        free = self.painter.read(self.empty.expand(len(prompts), -1))
        out = flow.draw_samples(
            noise,
            lambda noisy, time_B: self.painter(noisy, time_B, asked),
            lambda noisy, time_B: self.painter(noisy, time_B, free),
            build_scheduler(args.shift),
            args.steps,
            args.guidance,
        )
        return unpack(out)


def tokens(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 16) of the texts."""
    out = tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return out.input_ids


def sample(args: argparse.Namespace) -> None:
    """A grid of the prompts asked for, or of well-known names in both styles."""
    args.compile = False
    torch.manual_seed(args.seed)
    task = Painting(args)
    header = flow.load_average(task.module, args.start or args.out / flow.CHECKPOINT)
    shown = [f"{emoji_data.STYLES[i % 2]} {name}" for i, name in enumerate(SHOWN.split(","))]
    prompts = (args.prompts.split(",") if args.prompts else shown)[: args.count]
    flow.write_grid(task.paint(prompts, args), args.picture, columns=min(8, len(prompts)))
    print(f"step {header['step']}: {len(prompts)} pictures in {args.picture}")


def main() -> None:
    words, commands = flow_options.parser(__doc__, DEFAULTS)
    commands.choices["train"].add_argument("--reading", type=int, default=800, help="lessons of the text encoder first")
    command = flow_options.add_sample(commands, DEFAULTS)
    command.add_argument("--prompts", default=None, help="prompts with commas between; default: 64 well-known names")
    flow_options.add_shrink(commands, DEFAULTS)
    args = words.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        flow.train(Painting(args), args)
    elif args.command == "sample":
        sample(args)
    else:
        flow.shrink(args.out / flow.CHECKPOINT, args.to)


if __name__ == "__main__":
    main()
