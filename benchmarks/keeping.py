"""What keeping features costs a computed step, in counters that a noisy machine does not move.

    python benchmarks/keeping.py            tiny, dit-cpu and digits, one thread (two minutes)
    python benchmarks/keeping.py tiny       one model, printed alone

For a step of the bare model, a step of a plan that computes everything, and the computed and the skipped steps of plans
that keep features: calls of Python functions and of functions in C, operations, allocations and their bytes, and page
faults. A noisy machine blurs seconds, which benchmarks/steps.py and speed.py measure; it does not change these.
Writes benchmarks/results/keeping.json with command, hardware and versions.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import common
import torch
from speed import MODELS
from torch.profiler import ProfilerActivity, profile

import forecache as fc
from forecache.bench.subjects import Subject, open_subject
from forecache.environment import environment

STEPS = 8
COMPUTED, SKIPPED = 4, 5
"""Steps that are counted: in the plans that keep features, one computed and one skipped."""
Run = Callable[[], Any]


@dataclass(frozen=True)
class Counts:
    """The counters of one step.

    python_calls: calls of Python functions.
    c_calls: calls of functions in C from Python.
    operations: of torch, those inside of others included.
    allocations: of tensor memory.
    allocated_bytes: their sum.
    page_faults: median over steps.
    """

    python_calls: int
    c_calls: int
    operations: int
    allocations: int
    allocated_bytes: int
    page_faults: float


def calls(run: Run) -> tuple[int, int]:
    """The calls of Python functions and of functions in C that a step makes."""
    counts = {"call": 0, "c_call": 0}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counts["call"], counts["c_call"]


def operations(run: Run) -> tuple[int, int, int]:
    """The operations, allocations and allocated bytes of a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    results: Any = profiled.profiler
    events = results.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return sum(event.name().startswith("aten::") for event in events), len(sizes), sum(sizes)


def faults(run: Run) -> int:
    """The pages that the system fetched for a step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@torch.no_grad()
def measure(subject: Subject) -> dict[str, dict[str, Any]]:
    """The counters of every kind of step, after a generation that warms up."""
    grid = subject.grid(STEPS)
    plans = {
        "bare": None,
        "all computed": fc.explicit(compute=range(STEPS)).plan(grid),
        "FORA": fc.fora(2).plan(grid),
        "GOC": fc.goc(fc.fora(2), 0.8).plan(grid),
        "Taylor 1": fc.taylorseer(fc.fora(2), 1).plan(grid),
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, plan in plans.items():
        with fc.apply(subject.model, plan) if plan is not None else nullcontext():

            def generation(count: Callable[[Run], Any]) -> list[Any]:
                steps = subject.timesteps(STEPS)
                return [
                    count(
                        lambda timestep=timestep: subject.model(**subject.inputs, timestep=timestep, return_dict=False)
                    )
                    for timestep in steps
                ]

            generation(faults)
            fetched, called, ran = [generation(faults) for _ in range(3)], generation(calls), generation(operations)
        kinds = (
            {"computed": COMPUTED, "skipped": SKIPPED} if plan is not None and any(map(has_skips, plan.rows)) else {}
        )
        for kind, step in (kinds or {"computed": COMPUTED}).items():
            pages = statistics.median(pages[step] for pages in fetched)
            python_calls, c_calls = called[step]
            count, allocations, size = ran[step]
            counts = Counts(python_calls, c_calls, count, allocations, size, pages)
            rows[f"{name}, {kind}" if kinds else name] = asdict(counts)
    return rows


def has_skips(row: Sequence[Any]) -> bool:
    """Whether a site is estimated at some step."""
    return any(not cell.computed for cell in row)


def show(name: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(name)
    for kind, counts in rows.items():
        print(f"  {kind:22}" + "  ".join(f"{counter} {count:,.0f}" for counter, count in counts.items()), flush=True)


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    for name in args.models:
        models[name] = measure(open_subject(name, 2 * MODELS[name], "cpu"))
        show(name, models[name])
    if set(args.models) == set(MODELS):
        common.save(
            "keeping", {"command": common.command("keeping.py", words), "environment": environment(), "models": models}
        )


if __name__ == "__main__":
    main(sys.argv[1:])
