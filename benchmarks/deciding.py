"""Cost of deciding: runs under EasyCache and under adaptive against the static plans of what they decided, in turn.

    python benchmarks/deciding.py [--rounds 9] [--threads 1]        three minutes on one core of an idle machine

On dit-cpu, 20 steps of which 10 are computed, one sample a call. A static plan is what the rule decided, so that both
runs compute the same steps; rounds alternate. Writes benchmarks/results/deciding.json and the table of
docs/methods/online.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import torch

import forecache as fc
from forecache.bench.subjects import open_subject
from forecache.environment import environment
from forecache.sampling.timing import Spread, alternate, seconds_of

STEPS, BUDGET = 20, 10


class Loop:
    """A loop of model calls of dit-cpu, whose sample moves a little at every step."""

    def __init__(self) -> None:
        self.subject = open_subject("dit-cpu", 1, "cpu", "float32")
        self.times = self.subject.timesteps(STEPS)

    @torch.no_grad()
    def __call__(self) -> list[torch.Tensor]:
        """One run; the outputs of its steps."""
        inputs = dict(self.subject.inputs)
        outputs: list[torch.Tensor] = []
        for timestep in self.times:
            outputs.append(self.subject.model(**inputs, timestep=timestep).sample)
            sample = inputs["hidden_states"]
            inputs["hidden_states"] = sample - 0.05 * outputs[-1][:, : sample.shape[1]]
        return outputs


def squares_of(outputs: Sequence[torch.Tensor]) -> list[float]:
    """Mean squares of differences of all pairs of steps, as statistics have them."""
    pairs = [(s, t) for s in range(len(outputs)) for t in range(s, len(outputs))]
    return [(outputs[t] - outputs[s] if s < t else outputs[t]).square().mean().item() for s, t in pairs]


def under(loop: Loop, plan: Any) -> Callable[[], float]:
    """The seconds of one run under a plan or a method, without applying it."""

    def seconds() -> float:
        with fc.apply(loop.subject.model, plan, num_steps=None if isinstance(plan, fc.Plan) else STEPS):
            loop()  # compiles the operations of the steps
            start = time.perf_counter()
            loop()
            return time.perf_counter() - start

    return seconds


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    loop = Loop()
    seconds_of(loop)
    rules = {
        "easycache": fc.taylorseer(fc.easycache(0.1, first=2, budget=BUDGET), 1),
        "adaptive": fc.taylorseer(fc.adaptive("#." * BUDGET, squares=squares_of(loop()), budget=BUDGET), 1),
    }
    runs: dict[str, Callable[[], float]] = {}
    for name, method in rules.items():
        with fc.apply(loop.subject.model, method, num_steps=STEPS) as session:
            loop()
            decided = session.decided()
        runs |= {name: under(loop, method), f"{name}, static": under(loop, decided)}
    seconds = alternate(runs, args.rounds)
    place = environment()
    ratios = {name: Spread.of_ratios(seconds[name], seconds[f"{name}, static"]) for name in rules}
    about = {"command": common.command("deciding.py", words), "environment": place, "steps": STEPS, "computed": BUDGET}
    figures = {name: {"median": own.median, "low": own.low, "high": own.high} for name, own in ratios.items()}
    common.save("deciding", about | {"seconds": seconds, "ratios": figures})
    lines = ["| rule | run over that of the static plan of the same steps (quartiles) |", "|---|---|"]
    lines += [f"| `{name}` | {own.median:.4f} ({own.low:.4f} to {own.high:.4f}) |" for name, own in ratios.items()]
    note = (
        f"dit-cpu, {STEPS} steps, {BUDGET} computed, {args.rounds} rounds in turn; {common.machine(place, 'threads')}."
    )
    common.fill_page("deciding", [*lines, "", note])
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
