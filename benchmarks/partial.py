"""What a quarter of the tokens costs: an MLP branch of DiT-XL/2's width with all its tokens and with some of them.

    python benchmarks/partial.py

Norm, modulation and MLP of width 1152 on 256 tokens, batch 4, one thread: in full, and as a partial cell, with scores,
choice, gather and scatter. The two alternate; ratios of medians. Writes benchmarks/results/partial.json and the table
of docs/methods/procache.md.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from diffusers import DiTTransformer2DModel
from digits import ROOT, fill

from forecache.environment import environment
from forecache.models.arguments import Arguments
from forecache.models.find import layout
from forecache.parts import tokens
from forecache.runtime import tokens as runtime_tokens

ROWS, ROUNDS, SHARES = 4, 9, (0.07, 0.25, 0.5)


def measure() -> list[dict]:
    found = layout(DiTTransformer2DModel(num_layers=1).eval())
    block = found.blocks[0][1]
    x_BND, attention_BND, estimate_BND = torch.randn(3, ROWS, 256, 1152).unbind(0)
    t, labels = torch.full((ROWS,), 500), torch.arange(ROWS)
    condition = block.condition(x_BND, timestep=t, class_labels=labels)
    compute = block.branches[1].compute

    def partial(share: float) -> None:
        chosen = tokens.Tokens(share, site="blocks.0.attn")
        index_BK = runtime_tokens.choose(chosen, runtime_tokens.score("attn_norm", attention_BND), None, None)
        runtime_tokens.with_computed(estimate_BND, index_BK, compute, Arguments((x_BND, condition), {}))

    seconds: dict[float, list[float]] = {share: [] for share in (1.0, *SHARES)}
    for _ in range(ROUNDS):
        for share, times in seconds.items():
            started = time.perf_counter()
            if share == 1.0:
                compute(x_BND, condition)
            else:
                partial(share)
            times.append(time.perf_counter() - started)
    full = statistics.median(seconds[1.0])
    return [
        {"share": share, "seconds": statistics.median(times), "time_ratio": statistics.median(times) / full}
        for share, times in seconds.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = measure()
    place = environment()
    document = {"command": "python benchmarks/partial.py", "batch": ROWS, "rounds": ROUNDS, "environment": place}
    (ROOT / "benchmarks/results/partial.json").write_text(json.dumps(document | {"rows": rows}, indent=1) + "\n")
    lines = ["| tokens | time of the MLP branch |", "|---|---|"]
    lines += [f"| {row['share']:.0%} | {row['time_ratio']:.1%} |" for row in rows]
    note = (
        f"Width 1152, 256 tokens, batch {ROWS}, one thread: norm, modulation and MLP; with less than all, the choice, "
        f"gather and scatter too. Median of {ROUNDS} alternating rounds. {place['cpu']}, "
        f"torch {place['torch']}."
    )
    fill(ROOT / "docs/methods/procache.md", "table partial", [*lines, "", note])
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
