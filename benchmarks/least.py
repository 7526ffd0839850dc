"""The least that a skipped step can cost: ours beside code that does nothing else, alternating with full steps.

    python benchmarks/least.py                          tiny, dit-cpu and digits, one thread (two minutes)
    python benchmarks/least.py tiny --rounds 3          one model, fewer rounds, printed alone

The code that does nothing else: the model's own patches and last layer, the gates of all blocks from one batched
product, and one addcmul for each branch; no module is called for a block, and nothing is checked. The rest of a skipped
step of ours is the price of running inside diffusers' model. The bare minimum: a step of the model without blocks.
Writes benchmarks/results/least.json with command, hardware and versions, and its table in docs/measured/speed.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import common
import torch
from speed import MODELS
from torch import Tensor
from torch.nn.functional import silu

import forecache as fc
from forecache.bench.subjects import Subject, open_subject
from forecache.environment import environment
from forecache.models.families import adaln_zero
from forecache.sampling.timing import Spread, alternate, seconds_of

STEPS = 20
KINDS = {"bare": "no blocks", "least": "gates and sums alone", "skipped": "ours"}
"""Kinds of steps, with their names in the table."""


class Least:
    """A step of a DiT with every branch skipped, (B, C, H, W) -> (B, C, H, W); B batch, N tokens, D width.

    features: (B, N, D) of every branch; random ones by default, which take as long.
    """

    def __init__(self, subject: Subject, features: Sequence[Tensor] | None = None) -> None:
        self._model = subject.model
        self._gates = adaln_zero.stack(list(self._model.transformer_blocks))
        tokens = (self._model.config.sample_size // self._model.config.patch_size) ** 2
        shape = subject.rows, tokens, self._model.inner_dim
        count = 2 * len(self._model.transformer_blocks)
        self._features = features or [torch.randn(shape) for _ in range(count)]

    def bare(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, summed: bool = False) -> Tensor:
        """Patches and the last layer; summed: with the gated features between them."""
        model = self._model
        x_BND = model.pos_embed(hidden_states)
        if summed:
            x_BND = x_BND.clone(memory_format=torch.contiguous_format)
            assert self._gates is not None
            gates = self._gates(x_BND, timestep=timestep, class_labels=class_labels)
            for feature_BND, gate in zip(self._features, gates, strict=True):
                x_BND.addcmul_(feature_BND, gate)
        condition = model.transformer_blocks[0].norm1.emb(timestep, class_labels, hidden_dtype=x_BND.dtype)
        shift_BD, scale_BD = model.proj_out_1(silu(condition)).chunk(2, 1)
        patches = model.proj_out_2(model.norm_out(x_BND) * (1 + scale_BD[:, None]) + shift_BD[:, None])
        side, patch = hidden_states.shape[-1] // model.config.patch_size, model.config.patch_size
        parts = patches.reshape(-1, side, side, patch, patch, model.out_channels)
        return torch.einsum("nhwpqc->nchpwq", parts).reshape(-1, model.out_channels, side * patch, side * patch)

    def least(self, **inputs: Tensor) -> Tensor:
        """Patches, gated features and the last layer."""
        return self.bare(**inputs, summed=True)


@torch.no_grad()
def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Shares of a full step of the same round: median and quartiles over rounds, of the median of a run."""
    least, plan = Least(subject), fc.fora(2).plan(subject.grid(STEPS))
    steps = [{**subject.inputs, "timestep": timestep} for timestep in subject.timesteps(STEPS)]

    def latency(call: Callable[..., Any], inputs: Mapping[str, Any]) -> float:
        return seconds_of(lambda: call(**inputs))

    def ours() -> tuple[float, float]:
        """Medians of computed and of skipped steps, in the second generation."""
        with fc.apply(subject.model, plan):
            seconds = [[latency(subject.model, inputs) for inputs in steps] for _ in range(2)][1]
        return statistics.median(seconds[::2]), statistics.median(seconds[1::2])

    def after_full_steps(call: Callable[..., Any]) -> tuple[float, float]:
        """Medians of full steps, and of the call that follows each, as a skipped step does."""
        seconds = [(latency(subject.model, inputs), latency(call, inputs)) for inputs in steps]
        return statistics.median(full for full, _ in seconds), statistics.median(after for _, after in seconds)

    calls = {"skipped": ours, **{kind: partial(after_full_steps, getattr(least, kind)) for kind in ("bare", "least")}}
    medians = alternate(calls, rounds)
    full = [
        statistics.median((bare[0], least[0])) for bare, least in zip(medians["bare"], medians["least"], strict=True)
    ]
    shares = {kind: Spread.of_ratios((after for _, after in medians[kind]), full) for kind in KINDS}
    return {"full_step_seconds": statistics.median(full), **{kind: vars(spread) for kind, spread in shares.items()}}


def lines(document: Mapping[str, Any]) -> list[str]:
    """The table with its note."""
    table = [f"| model | {' | '.join(KINDS.values())} | full step |", f"|{'---|' * (len(KINDS) + 2)}"]
    for name, row in document["models"].items():
        cells = [
            f"{spread['median']:.1%} ({100 * spread['low']:.1f} to {100 * spread['high']:.1f})"
            for spread in (row[kind] for kind in KINDS)
        ]
        table.append(f"| {name} | {' | '.join(cells)} | {1e3 * row['full_step_seconds']:.1f} ms |")
    about = f"{document['rounds']} rounds, median (quartiles)"
    machine = common.machine(document["environment"], "threads")
    return [*table, "", f"FORA, N = 2: shares of a full step of the bare model; {about}. {machine}."]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"there is no model {unknown.pop()!r}; there are {', '.join(MODELS)}")
    torch.set_num_threads(args.threads)
    document: dict[str, Any] = {
        "command": common.command("least.py", words),
        "environment": environment(),
        "rounds": args.rounds,
        "models": {},
    }
    for name in args.models:
        document["models"][name] = measure(open_subject(name, 2 * MODELS[name], "cpu"), args.rounds)
        print(name, json.dumps(document["models"][name]), flush=True)
    text = lines(document)
    print("\n".join(text))
    if set(args.models) == set(MODELS):
        common.save("least", document)
        common.fill_page("table least", text)


if __name__ == "__main__":
    main(sys.argv[1:])
