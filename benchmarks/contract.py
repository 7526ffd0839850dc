"""Seconds of the look at what others have put on a model, at the start of a generation and at computed steps.

    python benchmarks/contract.py      some seconds on one core

Transformers with the published numbers of blocks, and narrow ones, since the look reads no weights. Writes
benchmarks/results/contract.json and the table of docs/combining.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from timeit import repeat
from typing import Any

import common
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel

from forecache.environment import environment
from forecache.models.find import layout
from forecache.models.mount.contract import layout_among_others, view

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
CALLS, ROUNDS = 200, 15


def models() -> dict[str, Callable[[], Any]]:
    """Transformers with the published numbers of blocks."""
    return {
        "DiT-XL/2, 28 blocks": lambda: DiTTransformer2DModel(**HEADS, num_layers=28, sample_size=8),
        "FLUX.1, 57 blocks": lambda: FluxTransformer2DModel(
            **HEADS,
            num_layers=19,
            num_single_layers=38,
            in_channels=4,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(4, 4, 8),
        ),
        "Qwen-Image, 60 blocks": lambda: QwenImageTransformer2DModel(
            **HEADS, num_layers=60, in_channels=16, out_channels=4, joint_attention_dim=12, axes_dims_rope=(4, 4, 8)
        ),
    }


def microseconds(look: Callable[[], object]) -> float:
    """The least mean time of one call over all rounds."""
    return min(repeat(look, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    torch.set_num_threads(1)
    rows = {}
    for name, make in models().items():
        known = layout(make())
        seen = view(known)
        rows[name] = {
            "start_us": microseconds(lambda seen=seen: seen.has_changed),
            "computed_step_us": microseconds(lambda seen=seen: seen.blocks_have_changed),
            "changed_us": microseconds(lambda known=known: (layout_among_others(known), view(known))),
        }
        print(name, {key: round(value, 1) for key, value in rows[name].items()})
    common.save(
        "contract", {"command": common.command("contract.py", words), "environment": environment(), "models": rows}
    )
    common.fill_page(
        "table contract",
        [
            "| model | start of a generation | before or after a computed step | after a change, once |",
            "|---|---|---|---|",
            *(
                f"| {name} | {row['start_us']:.0f} µs | {row['computed_step_us']:.0f} µs | {row['changed_us']:.0f} µs |"
                for name, row in rows.items()
            ),
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
