"""The error of keeping features in fewer bits: the table of docs/performance.md.

    python benchmarks/cache_dtype.py [--samples 8]

Every plan samples the same noise with its features in float32, bfloat16 and the two float8 formats. PSNR is to samples
without a cache, and to the same plan's samples with float32 features, mean over samples. Writes
benchmarks/results/cache-dtype.json.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import common
import torch
from torch import Tensor

import forecache as fc
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.io.text import dtype_name
from forecache.models.levels import FINEST, AskedSites
from forecache.sampling.sources import Sampling, in_batches
from forecache.zoo import record

SEED, MODEL = 77, "digits"
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
LEVELS: Mapping[str, AskedSites] = {"branches": FINEST, "stack": AskedSites(level="stack")}
METHODS: Mapping[str, fc.Method] = {
    "reuse": fc.fora(2),
    "GOC 0.8": fc.goc(fc.fora(2), 0.8),
    "Taylor 1": fc.taylorseer(fc.fora(3), 1),
    "Taylor 2": fc.taylorseer(fc.fora(3), 2),
}


def rows(samples: int) -> list[dict[str, Any]]:
    """A row for each method, level and dtype."""
    entry = record(MODEL)
    source = entry.open(torch.float32, "cpu")
    asked = [entry.conditions[index % len(entry.conditions)] for index in range(samples)]

    def sampled() -> Tensor:
        return in_batches(source, asked, Sampling(entry.steps, entry.guidance, SEED), samples)

    def distance(images: Tensor, reference: Tensor) -> float:
        return statistics.fmean(psnr(images, reference).clamp_max(100).tolist())

    own, found = sampled(), []
    for level, sites in LEVELS.items():
        for name, method in METHODS.items():
            plan = method.plan(fc.grid(source.target, entry.steps, **sites.options))
            whole: Tensor | None = None
            for dtype in DTYPES:
                with fc.apply(source.target, plan, cache_dtype=dtype) as session:
                    images = sampled()
                whole = images if whole is None else whole
                row = {"level": level, "method": name, "dtype": dtype_name(dtype)}
                row |= {"cache_bytes": session.stats.peak_cache_bytes // samples}
                found.append(row | {"own": distance(images, own), "float32": distance(images, whole)})
                print(found[-1], flush=True)
    return found


def table(document: Mapping[str, Any]) -> list[str]:
    """The table of docs/performance.md."""
    names = [dtype_name(dtype) for dtype in DTYPES]
    lines = [
        f"| level | method | {' | '.join(names)} | bytes of float8 |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    for level in LEVELS:
        for method in METHODS:
            own = [row for row in document["rows"] if (row["level"], row["method"]) == (level, method)]
            share = own[2]["cache_bytes"] / own[0]["cache_bytes"]
            values = [f"{own[0]['own']:.2f}", *(f"{row['own']:.2f} ({row['float32']:.1f})" for row in own[1:])]
            lines.append(f"| {level} | {method} | {' | '.join(values)} | {share:.1%} |")
    note = (
        "PSNR in dB to samples of the digits model without a cache, in brackets to the same plan with features in "
        f"float32; {document['samples']} samples. {common.machine(document['environment'])}."
    )
    return [*lines, "", note]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=8, help="samples, in one batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    document = {"command": common.command("cache_dtype.py", words), "environment": environment()}
    document |= {"samples": args.samples, "rows": rows(args.samples)}
    common.save("cache-dtype", document)
    common.fill_page("table cache-dtype", table(document))


if __name__ == "__main__":
    main(sys.argv[1:])
