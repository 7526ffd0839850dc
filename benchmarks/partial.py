"""Cost of a partial cell: an MLP branch of DiT-XL/2's width with all its tokens and with some of them.

    python benchmarks/partial.py                half a minute on one core

Norm, modulation and MLP of width 1152 on 256 tokens, batch 4, one thread: in full, and as a partial cell, with scores,
choice, gather and scatter. All alternate. Writes benchmarks/results/partial.json and the table of
docs/methods/procache.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial

import common
import torch
from diffusers import DiTTransformer2DModel

from forecache.environment import environment
from forecache.models.arguments import Arguments
from forecache.models.find import layout
from forecache.parts import tokens
from forecache.runtime import tokens as runtime_tokens
from forecache.sampling.timing import Spread, alternate, seconds_of

ROWS, ROUNDS, SHARES = 4, 9, (0.07, 0.25, 0.5)


def measure() -> list[dict]:
    """A row for each share of tokens: median seconds, and their ratio to the full branch within a round."""
    block = layout(DiTTransformer2DModel(num_layers=1).eval()).blocks[0][1]
    x_BND, attention_BND, estimate_BND = torch.randn(3, ROWS, 256, 1152).unbind(0)
    t, labels = torch.full((ROWS,), 500), torch.arange(ROWS)
    condition = block.condition(x_BND, timestep=t, class_labels=labels)
    compute = block.branches[1].compute

    def full() -> float:
        return seconds_of(lambda: compute(x_BND, condition))

    def some(share: float) -> float:
        return seconds_of(lambda: compute_some(share))

    def compute_some(share: float) -> None:
        importance = tokens.Tokens(share, site="blocks.0.attn")
        index_BK = runtime_tokens.choose(importance, runtime_tokens.score("attn_norm", attention_BND), None, None)
        runtime_tokens.with_computed(estimate_BND, index_BK, compute, Arguments((x_BND, condition), {}))

    seconds = alternate({"1.0": full, **{str(share): partial(some, share) for share in SHARES}}, ROUNDS)
    return [
        {
            "share": float(share),
            "seconds": statistics.median(times),
            "time_ratio": Spread.of_ratios(times, seconds["1.0"]).median,
        }
        for share, times in seconds.items()
    ]


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = measure()
    place = environment()
    about = {"command": common.command("partial.py", words), "batch": ROWS, "rounds": ROUNDS, "environment": place}
    common.save("partial", about | {"rows": rows})
    lines = ["| tokens | time of the MLP branch |", "|---|---|"]
    lines += [f"| {row['share']:.0%} | {row['time_ratio']:.1%} |" for row in rows]
    note = (
        f"Width 1152, 256 tokens, batch {ROWS}, one thread: norm, modulation and MLP; with less than all, the choice, "
        f"gather and scatter too. Median of {ROUNDS} alternating rounds. {common.machine(place)}."
    )
    common.fill_page("table partial", [*lines, "", note])
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
