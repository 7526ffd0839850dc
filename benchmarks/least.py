"""The least that a skipped step can cost here: ours beside code that does nothing else, in turn with full steps.

    python benchmarks/least.py                          tiny, dit-cpu and digits, one thread (two minutes)
    python benchmarks/least.py tiny --rounds 3          one model, fewer rounds, printed alone

The code that does nothing else: the model's own patches and last layer, the gates of all blocks from one batched
product, and one addcmul a branch; no module is called for a block, and nothing is checked. What is left of a skipped
step of ours is what it costs to live in diffusers' own model. The bare minimum: a step of the model without blocks.
Writes benchmarks/results/least.json with command, hardware and versions, and its table in docs/measured/speed.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from digits import ROOT, fill
from speed import MODELS, PAGE
from torch import Tensor
from torch.nn.functional import silu

import forecache as fc
from forecache.bench.speed import Spread
from forecache.bench.subjects import Subject, open_subject
from forecache.environment import environment
from forecache.models.families import adaln_zero

STEPS = 20
KINDS = {"bare": "no blocks", "least": "gates and sums alone", "skipped": "ours"}


class Least:
    """A DiT's step with every branch skipped, (B, C, H, W) -> (B, C, H, W); B batch, N tokens, D width.

    features: of every branch, (B, N, D); by default random ones, which take as long.
    """

    def __init__(self, subject: Subject, features: Sequence[Tensor] | None = None) -> None:
        self._model = subject.model
        self._gates = adaln_zero.stack(list(self._model.transformer_blocks))
        tokens = (self._model.config.sample_size // self._model.config.patch_size) ** 2
        shape = subject.rows, tokens, self._model.inner_dim
        count = 2 * len(self._model.transformer_blocks)
        self._features = features or [torch.randn(shape) for _ in range(count)]

    def bare(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, summed: bool = False) -> Tensor:
        """Patches and the last layer."""
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
        return self.bare(**inputs, summed=True)


def seconds(call: Callable[..., Any], inputs: Mapping[str, Any]) -> float:
    started = time.perf_counter()
    call(**inputs)
    return time.perf_counter() - started


@torch.no_grad()
def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Shares of a full step of the same round: median and quartiles over rounds, each the median of a run."""
    least, plan = Least(subject), fc.fora(2).plan(subject.grid(STEPS))
    every = [{**subject.inputs, "timestep": timestep} for timestep in subject.timesteps(STEPS)]
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    full: list[float] = []

    def run(second: Callable[..., Any]) -> tuple[float, float]:
        """Medians of full steps, and of what comes after each, as a skipped step does."""
        found = [(seconds(subject.model, inputs), seconds(second, inputs)) for inputs in every]
        return statistics.median(first for first, _ in found), statistics.median(after for _, after in found)

    for number in range(1 + rounds):
        with fc.apply(subject.model, plan):
            ours = [[seconds(subject.model, inputs) for inputs in every] for _ in range(2)][1]
        others = {"bare": run(least.bare), "least": run(least.least)}
        if number:  # the first round warms up
            step = statistics.median(first for first, _ in others.values())
            full.append(step)
            shares["skipped"].append(statistics.median(ours[1::2]) / step)
            for kind, (_, after) in others.items():
                shares[kind].append(after / step)
    found = {kind: Spread.of(values) for kind, values in shares.items()}
    return {"full_step_seconds": statistics.median(full), **{kind: vars(spread) for kind, spread in found.items()}}


def lines(document: Mapping[str, Any]) -> list[str]:
    place = document["environment"]
    table = [f"| model | {' | '.join(KINDS.values())} | full step |", f"|{'---|' * (len(KINDS) + 2)}"]
    for name, row in document["models"].items():
        spreads = [row[kind] for kind in KINDS]
        cells = [f"{each['median']:.1%} ({100 * each['low']:.1f} to {100 * each['high']:.1f})" for each in spreads]
        table.append(f"| {name} | {' | '.join(cells)} | {1e3 * row['full_step_seconds']:.1f} ms |")
    said = f"{document['rounds']} rounds, median (quartiles)"
    where = f"{place['cpu']}, {place['threads']} threads, torch {place['torch']}"
    return [*table, "", f"FORA, N = 2: shares of a full step of the bare model; {said}. {where}."]


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    if strange := set(args.models) - set(MODELS):
        parser.error(f"there is no model {strange.pop()!r}; there are {', '.join(MODELS)}")
    torch.set_num_threads(args.threads)
    document: dict[str, Any] = {
        "command": " ".join(["python benchmarks/least.py", *words]),
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
        (ROOT / "benchmarks/results/least.json").write_text(json.dumps(document, indent=1) + "\n")
        fill(PAGE, "table least", text)


if __name__ == "__main__":
    main(sys.argv[1:])
