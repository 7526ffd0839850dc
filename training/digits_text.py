"""Training of the bundled model "digits-text": a text-to-image PixArt for pairs of MNIST digits, v-prediction.

    python -m training.digits_text --data mnist.npz --out runs/digits-text   # starts, or resumes
    python -m training.digits_text --data mnist.npz --out runs/more --init runs/digits-text/checkpoint.pt
    python -m training.digits_text --data mnist.npz --out runs/more --export DIR   # what ships

A small T5 encoder is trained with the transformer, after it was taught to read: which digit is on the left and which on
the right can be told from the features of every token. Without that the digits come early and their places late.
Checkpoints, log and record are those of `train_digits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import diffusers
import torch
import transformers
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5EncoderModel

from forecache.evaluate import Moments
from forecache.zoo import captions
from forecache.zoo.digits import load_classifier
from forecache.zoo.digits_text import WIDTH, halves
from training import mnist, tokenizer
from training.digits import Trainer, parser, train, write_record

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

TEXT_WIDTH = 64
READING = 0.02
"""Weight of the reading loss beside the error of v."""


def build(layers: int = 8, heads: int = 4, head_dim: int = 32, patch: int = 6) -> Any:
    """An untrained transformer: canvases (B, 1, 24, 48) and caption features (B, L, 64) to v-predictions."""
    model = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        cross_attention_dim=heads * head_dim,
        sample_size=WIDTH,
        patch_size=patch,
        use_additional_conditions=False,
        caption_channels=TEXT_WIDTH,
    )
    zero_gates(model)
    return model


def zero_gates(model: Any) -> None:
    """Every block starts as the identity: gates of self-attention and MLP, and the output of cross-attention, at 0."""
    for block in model.transformer_blocks:
        torch.nn.init.zeros_(block.scale_shift_table[2])
        torch.nn.init.zeros_(block.scale_shift_table[5])
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
    for layer in (model.adaln_single.linear, model.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def build_text_encoder(vocabulary: int) -> Any:
    """An untrained T5 encoder: token ids (B, L) to features (B, L, 64)."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of the second order on linear betas, v-prediction; pixels are not clipped during sampling."""
    return DPMSolverMultistepScheduler(beta_schedule="linear", prediction_type="v_prediction", solver_order=2)


class Painter(torch.nn.Module):
    """The transformer and its text encoder, trained as one."""

    def __init__(self, transformer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.reader = torch.nn.Linear(TEXT_WIDTH, 20)  # of the training alone

    def reading_loss(self, ids: Tensor, mask: Tensor, pairs: Tensor) -> Tensor:
        """Cross-entropy of predicting both digits (B, 2), left and right, from the features of every token (B, L)."""
        features = self.text_encoder(ids, attention_mask=mask)[0]
        logits = self.reader(features[mask.bool()]).unflatten(-1, (2, 10))
        answers = pairs[:, None].expand(*mask.shape, 2)[mask.bool()]
        return cross_entropy(logits.flatten(0, 1), answers.flatten())

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Predictions of v (B, 1, 24, 48) for token ids and mask (B, L)."""
        text = self.text_encoder(ids, attention_mask=mask)[0]
        unused = {"resolution": None, "aspect_ratio": None}
        return self.transformer(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=times,
            added_cond_kwargs=unused,
            return_dict=False,
        )[0]


class TextTrainer(Trainer):
    """A run on pairs of digits: any two training images, one of their captions, none with some probability."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tokenizer = tokenizer.build_tokenizer()
        asked = [captions.captions(pair // 10, pair % 10) for pair in range(100)]
        self.first = torch.tensor([sum(map(len, asked[:pair])) for pair in range(100)])
        self.counts = torch.tensor([len(texts) for texts in asked])
        # the row after all captions is the empty one
        self.ids, self.mask = captions.tokens(self.tokenizer, [*(text for texts in asked for text in texts), ""])
        super().__init__(args)

    def untrained(self) -> torch.nn.Module:
        return Painter(build(), build_text_encoder(len(self.tokenizer)))

    def start(self) -> None:
        """Start a run, from the averaged weights of another one if ``--init`` names it; then train the text encoder."""
        if self.args.init is not None:
            state = torch.load(self.args.init, weights_only=True)
            self.model.load_state_dict(state["average"], strict=False)
            self.args.before = state["args"] | {"steps": state["step"], "seconds": round(state["seconds"])}
        model: Any = self.model
        optimizer = torch.optim.AdamW([*model.text_encoder.parameters(), *model.reader.parameters()], lr=1e-3)
        pairs = torch.arange(100).repeat_interleave(self.counts)
        for step in range(self.args.reading):
            loss = model.reading_loss(self.ids[:-1], self.mask[:-1], torch.stack([pairs // 10, pairs % 10], 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 49:
                print(f"reading, step {step + 1}: loss {loss.item():.4f}", flush=True)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def loss(self, train: mnist.Split) -> Tensor:
        batch, draw = self.args.batch, self.generator
        index = torch.randint(len(train), (2, batch), generator=draw)
        pair = train.labels[index[0]] * 10 + train.labels[index[1]]
        choice = (torch.rand(batch, generator=draw) * self.counts[pair]).long()
        dropped = torch.rand(batch, generator=draw) < self.args.label_dropout
        row = torch.where(dropped, len(self.ids) - 1, self.first[pair] + choice)
        noisy, times, target = self.corrupted(torch.cat([train.images[index[0]], train.images[index[1]]], -1))
        painting = (self.forward(noisy, times, self.ids[row], self.mask[row]) - target).square().mean()
        if not self.args.reading:
            return painting
        captioned, painter = row[~dropped], cast("Painter", self.model)
        reading = painter.reading_loss(self.ids[captioned], self.mask[captioned], train.labels[index].T[~dropped])
        return painting + READING * reading


@torch.no_grad()
def reference(split: mnist.Split, seed: int = 0) -> Moments:
    """Moments of the judge's features of both halves (256 numbers) on canvases that use every image once a side."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    judge = load_classifier()
    canvases = torch.cat([split.images, split.images[order]], -1)
    features = [torch.cat([judge.features(half) for half in halves(part)], 1) for part in canvases.split(500)]
    return Moments.of(torch.cat(features))


def export(args: argparse.Namespace) -> None:
    """Write what ships: averaged fp16 weights, tokenizer, scheduler, the reference moments, the record."""
    state = torch.load(args.out / "checkpoint.pt", weights_only=True)
    trainer = TextTrainer(args)
    trainer.model.load_state_dict(state["average"])
    model: Any = trainer.model.half()
    model.transformer.save_pretrained(args.export / "transformer", safe_serialization=True)
    model.text_encoder.save_pretrained(args.export / "text_encoder", safe_serialization=True)
    trainer.tokenizer.save_pretrained(args.export / "tokenizer")
    build_scheduler().save_pretrained(args.export / "scheduler")
    moments = reference(mnist.load(args.data)[1])
    tensors = {"mean": moments.mean.float(), "covariance": moments.covariance.float().contiguous()}
    save_file({**tensors, "count": torch.tensor(moments.count)}, args.export / "reference.safetensors")
    versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    write_record(args, state, "python -m training.digits_text", versions)


def main() -> None:
    words = parser(__doc__, "runs/digits-text", images=140_000, batch=32)
    words.add_argument("--init", type=str, default=None, help="begin with the weights of this checkpoint")
    words.add_argument("--reading", type=int, default=300, help="steps that teach the encoder to read; 0 for none")
    args = words.parse_args()
    if args.export is not None:
        export(args)
        return
    trainer = TextTrainer(args)
    if not (args.out / "checkpoint.pt").exists():
        trainer.start()
    train(trainer)


if __name__ == "__main__":
    main()
