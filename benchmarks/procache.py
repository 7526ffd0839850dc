"""The methods of ProCache's ablation at the MACs of FORA N = 3: on digits with DDIM-50, on digits-text with 20 steps.

    python benchmarks/procache.py            search the patterns for digits (about ten minutes on one core)
    python benchmarks/quality.py procache    then every row, three seeds, and the table of docs/methods/procache.md
    python benchmarks/quality.py text-procache    the same for digits-text: docs/measured/digits-text.md

The searches take 48 samples with a seed of their own (1000) and rank by PSNR; their files are in out/procache/.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import matplotlib.pyplot as plt

import forecache as fc
from forecache import zoo
from forecache.parts import tokens
from forecache.parts.patterns import Constraints
from forecache.sampling import sources
from forecache.zoo.digits_text import GUIDANCE

SEARCHES = common.WORK / "procache"
MakeMethod = Callable[[fc.Method], fc.Method]


class Ablation(NamedTuple):
    """An ablation on one model.

    name: of the model.
    load: opens it.
    steps: sampling steps.
    budget: computed steps.
    tokens: of the model's input.
    guidance: classifier-free guidance scale.
    from_depth: relative depth at which selective computation begins.
    """

    name: str
    load: Callable[[], Any]
    steps: int
    budget: int
    tokens: int
    guidance: float
    from_depth: float


DIGITS = Ablation("digits", zoo.load_digits, 50, 17, 36, 1.5, 0.75)
TEXT = Ablation("digits-text", zoo.load_digits_text, 20, 7, 32, GUIDANCE, 0.5)


def plain(base: fc.Method) -> fc.Method:
    """Reuse."""
    return base


def taylor(base: fc.Method) -> fc.Method:
    """Taylor of order 1."""
    return fc.taylorseer(base, 1)


def spaces(on: Ablation) -> dict[str, tuple[Constraints, MakeMethod]]:
    """The searches by name: the allowed patterns, and the method of a pattern."""
    few = on.budget - 1
    return {
        "monotone": (Constraints(on.steps, on.budget, 1, 3), plain),
        f"monotone-{few}": (Constraints(on.steps, few, 1, 3), plain),
        "any-order": (Constraints(on.steps, on.budget, 0, 4, monotone=False), plain),
        "monotone-taylor": (Constraints(on.steps, on.budget, 1, 3), taylor),
    }


def result_of(name: str, on: Ablation = DIGITS) -> fc.fit.SearchResult:
    """The result of a search, from its file if it is there."""
    space, make_method = spaces(on)[name]
    source = sources.as_source(on.load())
    return fc.search(
        source,
        space,
        sources.all_conditions(source)[:48] if not source.classes else [index % 10 for index in range(48)],
        score=fc.fit.scores.psnr_to_uncached(),
        method=make_method,
        guidance=on.guidance,
        seed=1000,
        batch=48,
        candidates=40,
        path=(SEARCHES if on is DIGITS else SEARCHES / on.name) / f"{name}.json",
        on_candidate=lambda candidate: print(f"{name}: {candidate.pattern} {candidate.score:.2f} dB", flush=True),
    )


def best(name: str, on: Ablation) -> fc.Method:
    """Reuse with the best pattern of a search."""
    pattern = result_of(name, on).ranked[0].pattern
    return fc.explicit(compute=fc.parts.patterns.computed(pattern))


def uniform(on: Ablation, count: int) -> fc.Method:
    """Reuse with evenly spread steps, of which the last is the last one of FORA N = 3."""
    last = (on.steps - 1) // 3 * 3
    return fc.explicit(compute=[round(index * last / (count - 1)) for index in range(count)])


def at_equal_macs(on: Ablation, base: fc.Method, importance: tokens.Importance) -> fc.Method:
    """Selective computation on a base with one computed step less, at the share of tokens that restores the MACs."""
    source = sources.as_source(on.load())
    grid, inputs = fc.grid(source.target, on.steps), sources.call_inputs(source, 2)

    def selective(count: int) -> fc.Method:
        return fc.selective(base, on.from_depth, share=count / on.tokens, importance=importance)

    def macs(method: fc.Method) -> int:
        return method.plan(grid).cost(source.target, inputs=inputs).macs

    wanted = macs(fc.fora(3))
    count = min(bisect.bisect_left(range(on.tokens + 1), wanted, key=lambda count: macs(selective(count))), on.tokens)
    return selective(min((count - 1, count), key=lambda count: abs(macs(selective(count)) - wanted)))


def methods(on: Ablation = DIGITS) -> dict[str, fc.Method]:
    """Rows by name. All have the MACs of FORA N = 3, except the one that names its number of computed steps."""
    few = on.budget - 1
    pattern = f"monotone-{few}"
    rows = {
        "uniform (FORA N = 3)": fc.fora(3),
        "pattern, searched": best("monotone", on),
        f"uniform, {few} computed": uniform(on, few),
        "the same, selective": at_equal_macs(on, uniform(on, few), "attn_norm"),
        "both (ProCache)": at_equal_macs(on, best(pattern, on), "attn_norm"),
        "Taylor 1, uniform": fc.taylorseer(fc.fora(3), 1),
        "pattern, searched in any order": best("any-order", on),
        "pattern, as published for DiT-XL/2": fc.methods.procache_paper(partial=False),
        "both, random tokens": at_equal_macs(on, best(pattern, on), "random"),
        "Taylor 1, pattern searched with it": fc.taylorseer(best("monotone-taylor", on), 1),
    }
    if on.steps != DIGITS.steps:
        del rows["pattern, as published for DiT-XL/2"]  # it has 50 steps
    return rows


def draw() -> None:
    """Draw how features change from step to step, and below every pattern of the search with its score."""
    plt.switch_backend("Agg")
    steps = DIGITS.steps
    stats = fc.Statistics.load(zoo.record("digits").statistics_path(steps))
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True, layout="constrained")
    for gap in (1, 2, 3):
        upper.plot(
            range(gap, steps), stats.changes[gap:, :, gap - 1].mean(1), label=f"over {gap} step{'s' * (gap > 1)}"
        )
    upper.set_ylabel("relative L1 change,\nmean over sites")
    upper.set_yscale("log")
    upper.legend(frameon=False, fontsize=8)
    upper.set_title("digits, DDIM-50: features change most at the end; the best pattern is nearly uniform", fontsize=10)
    rows = [("reuse", result_of("monotone")), ("Taylor 1", result_of("monotone-taylor"))]
    labels = []
    for name, result in rows:
        for candidate in result.ranked:
            place = len(labels)
            labels.append(f"{name}: {candidate.score:.1f} dB")
            computed = fc.parts.patterns.computed(candidate.pattern)
            lower.scatter(computed, [place] * len(computed), marker="s", s=14, color="C0" if name == "reuse" else "C1")
    lower.set_yticks(range(len(labels)), labels, fontsize=7)
    lower.invert_yaxis()
    lower.set_xlabel("step (0 is the noisiest); squares are computed, 17 in each of the 9 patterns")
    figure.savefig(common.IMAGES / "procache.png", dpi=110)


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    for name in spaces(DIGITS):
        print(result_of(name).show(9))
    draw()


if __name__ == "__main__":
    main(sys.argv[1:])
