"""The cost of a run in multiply-accumulates and bytes, known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forecache.io.text import mib
from forecache.models.counting import CallCost, CountRequest
from forecache.plan.ops import Op
from forecache.plan.slots import skipped_blocks


@dataclass(frozen=True)
class Cost:
    """The cost of a run of a plan. MACs are the multiply-accumulates of matrix products, convolutions and attention.

    macs: MACs of the whole run, guidance pair included.
    macs_uncached: MACs of the same run with everything computed.
    cache_bytes: peak memory of the features kept for later steps, in bytes.
    step_macs: MACs of every step.
    step_cache_bytes: peak memory of the kept features in every step, in bytes.
    constant_bytes: bytes of the corrections' tensors, as the plan has them; 0 without corrections.
    least: of a plan that decides while it runs, the cost of the run that computes least, while this is that of the run
        that computes most; None for any other plan.
    """

    macs: int
    macs_uncached: int
    cache_bytes: int
    step_macs: tuple[int, ...] = field(repr=False)
    step_cache_bytes: tuple[int, ...] = field(repr=False)
    constant_bytes: int = 0
    least: Cost | None = None

    @property
    def speedup(self) -> float:
        """macs_uncached / macs: the speedup to expect where time follows MACs."""
        return self.macs_uncached / self.macs

    def __str__(self) -> str:
        unit, name = (1e12, "T") if self.macs >= 1e12 else (1e9, "G")
        constants = f", {mib(self.constant_bytes)} of corrections" if self.constant_bytes else ""
        if self.least is not None:
            least = self.least
            return (
                f"{least.macs / unit:.4g} to {self.macs / unit:.4g} {name} MACs of {self.macs_uncached / unit:.4g} "
                f"{name} uncached ({least.speedup:.2f}x to {self.speedup:.2f}x fewer), at most {mib(self.cache_bytes)} "
                "of cache at the peak"
            )
        return (
            f"{self.macs / unit:.4g} {name} MACs of {self.macs_uncached / unit:.4g} {name} uncached "
            f"({self.speedup:.2f}x fewer), {mib(self.cache_bytes)} of cache at the peak{constants}"
        )


def macs(call: CallCost, ops: Sequence[Op], spans: Sequence[range]) -> int:
    """MACs of one model call; blocks that are skipped as a whole compute their gates alone."""
    total = call.fixed_macs
    for site, op in enumerate(ops):
        total += call.received_macs[site] if "attention" in op.scored else 0
        if op.choice is not None:
            total += call.partial_macs(site, op.choice.tokens)
        elif not op.reads:
            total += call.site_macs[site]
    blocks = skipped_blocks(ops, spans)
    return total - sum(call.condition_macs[block] - call.gate_macs[block] for block in blocks)


def count_request(rows: Sequence[Sequence[Op]], spans: Sequence[range]) -> CountRequest:
    """The extra measurements that the operations of a plan, [site][step], need."""
    return CountRequest(
        frozenset(site for site, ops in enumerate(rows) if any(op.choice is not None for op in ops)),
        frozenset(site for site, ops in enumerate(rows) if any("attention" in op.scored for op in ops)),
        frozenset(block for ops in zip(*rows, strict=True) for block in skipped_blocks(ops, spans)),
    )
