"""The methods of ProCache's ablation on digits, DDIM-50, at the MACs of 17 computed steps; measured by quality.py.

    python benchmarks/procache.py            search the patterns (about ten minutes on one core)
    python benchmarks/quality.py procache    then every row, three seeds, and the table of docs/procache.md

The searches sample 48 digits with a seed of their own (1000), rank by PSNR, and are kept in out/procache/.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import matplotlib.pyplot as plt
from digits import ROOT

import forecache as fc
from forecache import tokens, zoo
from forecache.patterns import Constraints
from forecache.sources import DigitsSource

STEPS, BUDGET = 50, 17
KEPT = ROOT / "out/procache"
Making = Callable[[fc.Method], fc.Method]


def plain(base: fc.Method) -> fc.Method:
    return base


def taylor(base: fc.Method) -> fc.Method:
    return fc.taylorseer(base, 1)


SEARCHES: dict[str, tuple[Constraints, Making]] = {
    "monotone": (Constraints(STEPS, BUDGET, 1, 3), plain),
    "monotone-16": (Constraints(STEPS, BUDGET - 1, 1, 3), plain),
    "any-order": (Constraints(STEPS, BUDGET, 0, 4, monotone=False), plain),
    "monotone-taylor": (Constraints(STEPS, BUDGET, 1, 3), taylor),
}


def found(name: str) -> fc.SearchResult:
    """The result of a search; searched now if it was not."""
    space, making = SEARCHES[name]
    return fc.search(
        DigitsSource(zoo.load_digits()),
        space,
        [index % 10 for index in range(48)],
        score=fc.scores.psnr_to_uncached(),
        method=making,
        seed=1000,
        batch=48,
        candidates=40,
        path=KEPT / f"{name}.json",
        on_candidate=lambda each: print(f"{name}: {each.pattern} {each.score:.2f} dB", flush=True),
    )


def best(name: str) -> fc.Method:
    pattern = found(name).ranked[0].pattern
    return fc.explicit(compute=fc.patterns.computed(pattern))


def uniform(count: int) -> fc.Method:
    """So many steps, evenly spread; the last of them where FORA N = 3 has its last one."""
    return fc.explicit(compute=[round(index * 48 / (count - 1)) for index in range(count)])


def at_equal_macs(base: fc.Method, importance: tokens.Importance) -> fc.Method:
    """Selective computation on a base that computes one step less, with the share that brings its MACs back."""
    model = zoo.load_digits()
    grid = fc.grid(model, STEPS)

    def made(count: int) -> fc.Method:
        return fc.selective(base, share=count / 36, importance=importance)

    def macs(count: int) -> int:
        return made(count).plan(grid).cost(model).macs

    wanted = fc.fora(3).plan(grid).cost(model).macs
    count = bisect.bisect_left(range(37), wanted, key=macs)
    return made(min((count - 1, count), key=lambda each: abs(macs(each) - wanted)))


def methods() -> dict[str, fc.Method]:
    """Rows by their names, with the MACs of FORA N = 3 but for the one that says how many steps it computes."""
    return {
        "uniform (FORA N = 3)": fc.fora(3),
        "pattern, searched": best("monotone"),
        "uniform, 16 computed": uniform(BUDGET - 1),
        "the same, selective": at_equal_macs(uniform(BUDGET - 1), "attn_norm"),
        "both (ProCache)": at_equal_macs(best("monotone-16"), "attn_norm"),
        "Taylor 1, uniform": fc.taylorseer(fc.fora(3), 1),
        "pattern, searched in any order": best("any-order"),
        "pattern, as published for DiT-XL/2": fc.procache_paper(partial=False),
        "both, random tokens": at_equal_macs(best("monotone-16"), "random"),
        "Taylor 1, pattern searched with it": fc.taylorseer(best("monotone-taylor"), 1),
    }


def draw() -> None:
    """How features change from step to step, and under it every pattern of the search with its score."""
    plt.switch_backend("Agg")
    stats = fc.Statistics.load(zoo.statistics_path(STEPS))
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True, layout="constrained")
    for gap in (1, 2, 3):
        upper.plot(
            range(gap, STEPS), stats.changes[gap:, :, gap - 1].mean(1), label=f"over {gap} step{'s' * (gap > 1)}"
        )
    upper.set_ylabel("relative L1 change,\nmean over sites")
    upper.set_yscale("log")
    upper.legend(frameon=False, fontsize=8)
    upper.set_title("digits, DDIM-50: features change most at the end; the best pattern is nearly uniform", fontsize=10)
    rows = [("reuse", found("monotone")), ("Taylor 1", found("monotone-taylor"))]
    labels = []
    for name, result in rows:
        for each in result.ranked:
            place = len(labels)
            labels.append(f"{name}: {each.score:.1f} dB")
            steps = fc.patterns.computed(each.pattern)
            lower.scatter(steps, [place] * len(steps), marker="s", s=14, color="C0" if name == "reuse" else "C1")
    lower.set_yticks(range(len(labels)), labels, fontsize=7)
    lower.invert_yaxis()
    lower.set_xlabel("step (0 is the noisiest); squares are computed, 17 in each of the 9 patterns")
    figure.savefig(ROOT / "docs/images/procache.png", dpi=110)


if __name__ == "__main__":
    for each in SEARCHES:
        print(found(each).show(9))
    draw()
