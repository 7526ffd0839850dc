"""Fingerprints of samples under every method and every shipped plan, to show that a change leaves them bit for bit.

    python benchmarks/fingerprints.py                   measures, and writes benchmarks/results/fingerprints.json
    python benchmarks/fingerprints.py --check           measures again and compares; exits 1 if a row differs
    python benchmarks/fingerprints.py --check --only "FORA 50"    the rows whose name contains this text

A row has the SHA-256 of 16 digits samples or 8 digits-text samples and of the plan's signs, and the plan's cost and
the session's stats in numbers. Rounding differs between machines and between versions of torch, so fingerprints are
compared on the machine that made them. One thread, one batch, fixed seeds; about six minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.parts import gates, schedules
from forecache.sampling.sources import Sampling

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/fingerprints.json"
STEPS = 20
SEED = 0
LABELS = tuple(index % 10 for index in range(16))
CAPTIONS = (
    "a zero left of a one",
    "a two right of a three",
    "a four and a five",
    "a six to the left of a seven",
    "an eight to the right of a nine",
    "a three on the left and an eight on the right",
    "two fives",
    "a nine left of a four",
)
STATISTICS = {
    "digits": zoo.record("digits").statistics_path(STEPS),
    "digits-text": zoo.record("digits-text").statistics_path(STEPS),
}
ROUTERS = {level: zoo.record("digits").router_path(level) for level in (22, 40)}
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A bundled model.

    target: what plans are put on. sample: number of steps -> images (B, C, H, W), float32. inputs: the arguments of a
    model call on the whole batch, where `Plan.cost` needs them. statistics: what ships with the model. routers: by
    caching level in percent; none for digits-text. plans: the files of the tuned plans that ship with it.
    """

    name: str
    target: Any
    sample: Callable[[int], Tensor]
    batch: int
    inputs: Mapping[str, Any] | None
    statistics: fc.Statistics
    routers: Mapping[int, Path]
    plans: Sequence[Path]

    def plan(self, method: fc.Method, steps: int = STEPS) -> fc.Plan:
        """The plan of a method on this model."""
        return method.plan(fc.grid(self.target, steps))


def open_model(name: str, *, compiled: bool = False) -> Model:
    """A bundled model by its name; with ``compiled``, its transformer by torch.compile's backend "eager"."""
    parts: Any = zoo.load_digits() if name == "digits" else zoo.load_digits_text()
    if compiled:
        torch.compiler.reset()
        parts = replace(parts, transformer=torch.compile(parts.transformer, backend="eager"))
    conditions: Any = CAPTIONS
    source, guidance, inputs = parts, 2.0, None
    if name == "digits":
        source, conditions, guidance = parts, LABELS, 1.5
    else:
        inputs = parts.call_inputs(2 * len(CAPTIONS))
    return Model(
        name,
        source.target,
        lambda steps: source.generate(conditions, Sampling(steps, guidance, SEED)),
        len(conditions),
        inputs,
        fc.Statistics.load(STATISTICS[name]),
        ROUTERS if name == "digits" else {},
        sorted(zoo.record(name).tuned_folder.glob("plan-*.json")),
    )


@dataclass(frozen=True)
class Case:
    """One row to measure. plan: None samples without a cache. settings: those of `forecache.apply`."""

    name: str
    plan: fc.Plan | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False


def bases(model: Model) -> dict[str, fc.Method]:
    """The schedules of the matrix in tests/methods/test_matrix.py, with what was measured and trained on the model."""
    return {
        "FORA 25": fc.methods.fora_paper(25),
        "FORA 50": fc.methods.fora_paper(50),
        "FORA 75": fc.methods.fora_paper(75),
        "FORA N=3": fc.fora(3),
        "FORA N=3 end": fc.fora(3, anchor="end"),
        **{f"L2C {level}": fc.l2c(path) for level, path in model.routers.items()},
        "list": fc.explicit(skip=[2, 3, 7, 8, 9, 10, 15, 19]),
        "SmoothCache": fc.smoothcache(model.statistics, 0.3),
    }


def corrections(model: Model) -> dict[str, Callable[[fc.Method], fc.Method]]:
    """What the matrix adds to a schedule."""
    stats = model.statistics
    gate = gates.god(stats, gamma=0.3, threshold=0.25)  # shut at late steps, on digits-text at an early one too
    return {
        "none": lambda base: base,
        "GOC gated": lambda base: fc.goc(base, 0.9, gate=gate),
        "GOC listed": lambda base: fc.goc(base, 0.9, steps=whole_blocks(model.plan(base))[1::2]),
        "EOC relative": lambda base: fc.eoc(base, stats, 0.05),
        "EOC additive": lambda base: fc.eoc(base, stats, 0.5, form="additive"),
        "Taylor 1": lambda base: fc.taylorseer(base, 1),
        "Taylor 2": lambda base: fc.taylorseer(base, 2),
    }


def whole_blocks(plan: fc.Plan) -> list[int]:
    """The steps at which every site of some block is skipped."""
    rows = [(site.depth, row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)]
    computed = [{depth for depth, row in rows if row[step].computed} for step in range(plan.num_steps)]
    depths = {depth for depth, _ in rows}
    return [step for step in range(plan.num_steps) if computed[step] != depths]


def matrix(model: Model) -> Iterator[tuple[str, fc.Method]]:
    """Every base with every correction, and every base with one of them and selective computation."""
    amended = "Taylor 2" if model.name == "digits" else "GOC gated"
    for base, method in bases(model).items():
        for correction, corrected in corrections(model).items():
            yield f"{base}, {correction}", corrected(method)
            if correction == amended:
                yield f"{base}, {correction}, selective", fc.selective(corrected(method), 0, 0.5, every=1)


def forecasts(model: Model) -> dict[str, fc.Method]:
    """Forecasts, gates and corrections beside those of the matrix."""
    stats = model.statistics
    return {
        "everything computed": fc.explicit(compute=range(STEPS)),
        "pattern": fc.explicit(pattern="##..#...#.#..#....##"),
        "by kind": fc.Method("by kind", by_kind()),
        "by depth": fc.Method("by depth", by_depth()),
        "published SmoothCache": published_smoothcache(),
        "GOC of the paper, 25": fc.goc(fc.methods.fora_paper(25), 1.9, steps=fc.methods.goc_paper_steps(25)),
        "GOC of the paper, 50": fc.goc(fc.methods.fora_paper(50), 1.2, steps=fc.methods.goc_paper_steps(50)),
        "GOC computed": fc.goc(fc.fora(3), 0.9, history="computed"),
        "GOC computed, gated": fc.goc(
            fc.fora(2), 0.9, gate=gates.god(stats, gamma=0.3, threshold=0.25), history="computed"
        ),
        "GOC of single branches": fc.goc(fc.smoothcache(stats, 0.3), 0.9, whole_blocks=False),
        "GOC of some blocks": fc.goc(fc.fora(2), 0.9, gate=gates.at_depth(3, 7)),
        "feedback 2": fc.feedback(fc.fora(2)),
        "feedback 1": fc.feedback(fc.fora(3), 1, 0.7),
        "feedback, SmoothCache": fc.feedback(fc.smoothcache(stats, 0.3), 1),
        "warmup": fc.warmup(fc.fora(4), 3),
        "warmup, Taylor 2": fc.warmup(fc.taylorseer(fc.fora(4), 2), 3),
        "warmup, feedback": fc.warmup(fc.feedback(fc.fora(3)), 4),
        "Taylor 0": fc.taylorseer(fc.fora(3), 0),
        "Taylor 3": fc.taylorseer(fc.fora(3), 3),
        "EOC of all": fc.eoc(fc.fora(3), stats, judge="all"),
        "EOC listed": fc.eoc(fc.fora(3), stats, 0.1, judge=[4, 5, 10]),
        "EOC of Taylor": fc.eoc(fc.taylorseer(fc.fora(3), 1), stats, 0.5, form="additive", judge="all"),
        "EOC of feedback": fc.eoc(fc.feedback(fc.fora(3), 1), stats, 0.5, form="additive", judge="all"),
        "EOC of GOC": fc.eoc(fc.goc(fc.fora(2), 0.5), stats, 0.5, form="additive"),
    }


def by_kind() -> fc.parts.Schedule:
    """Every second step of the MLPs, every third one of the others."""
    return schedules.at(schedules.kind("mlp"), schedules.every(2), schedules.every(3))


def by_depth() -> fc.parts.Schedule:
    """Every fourth step of some blocks, every second one of the others."""
    return schedules.at(schedules.depth(2, 6), schedules.every(4), schedules.every(2))


def published_smoothcache() -> fc.Method:
    """The method of a schedule file as SmoothCache's own code writes them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.json"
        path.write_text(json.dumps({"attn1": [1, 0, 0, 0] * 5, "ff": [1, 0] * 10}), encoding="utf-8")
        return fc.methods.smoothcache_file(path)


def partial(model: Model) -> dict[str, fc.Method]:
    """Methods that compute some tokens."""
    stats, tokens = model.statistics, fc.parts.tokens
    shared = tokens.top(0.3, "attention", age=0.1, halves="shared")
    return {
        "ToCa": fc.toca(fc.fora(3)),
        "ToCa by norm": fc.toca(fc.fora(2), 0.4, "attn_norm"),
        "ToCa at random": fc.toca(fc.fora(3), 0.3, "random"),
        "ToCa of ProCache's code": fc.toca(fc.methods.fora_paper(75), tokens=tokens.released()),
        "ToCa of Taylor": fc.toca(fc.taylorseer(fc.fora(3), 1), 0.3),
        "ProCache": fc.procache("#...#..#...#..#.#.#."),
        "ProCache by attention": fc.procache("#...#...#...#..#..#.", 0.5, 0.3, "attention"),
        "ProCache, rising share": fc.procache("#...#...#...#..#..#.", 0, tokens.rising(0.1)),
        "selective at random": fc.selective(fc.fora(3), 0, 0.5, "random", every=1),
        "selective by a function": fc.selective(fc.fora(3), 2, 0.4, lambda output: output.abs().mean(-1)),
        "selective, shared halves": fc.selective(fc.fora(4), 0, tokens=shared),
        "selective MLPs by attention": fc.selective(fc.fora(4), 0.5, 0.25, "attention", every=1, kinds=("mlp",)),
        "selective of feedback": fc.selective(fc.feedback(fc.fora(3), 1), 0, 0.5, every=1),
        "selective of feedback by attention": fc.selective(fc.feedback(fc.fora(4)), 0, 0.3, "attention"),
        "selective of GOC computed": fc.selective(fc.goc(fc.fora(3), 0.9, history="computed"), 0, 0.5, every=1),
        "selective of EOC": fc.selective(fc.eoc(fc.methods.fora_paper(75), stats, 0.05, judge="all"), 0, 0.5, every=1),
        "selective, warmup": fc.selective(fc.warmup(fc.fora(4), 3), 0.25, 0.5, every=1),
    }


def settings(model: Model) -> Iterator[Case]:
    """Cases with settings of `forecache.apply`, and one compiled."""
    goc, taylor = fc.goc(fc.fora(2), 0.9), fc.taylorseer(fc.methods.fora_paper(75), 2)
    half = {"cache_dtype": torch.bfloat16}
    yield Case("GOC, kept in bfloat16", model.plan(goc), half)
    yield Case("Taylor 2, kept in bfloat16", model.plan(taylor), half)
    yield Case("Taylor 2, max_error", model.plan(taylor), {"guards": fc.runtime.Guards(max_error=0.3)})
    compiled = goc if model.name == "digits" else fc.toca(fc.fora(3))
    yield Case("compiled", model.plan(compiled), compiled=True)


def cases(model: Model) -> Iterator[Case]:
    """Every row of a model."""
    yield Case("no cache", None)
    for name, method in (*matrix(model), *forecasts(model).items(), *partial(model).items()):
        yield Case(name, model.plan(method))
    yield from settings(model)
    if model.name == "digits":
        yield Case(
            "GOC of single branches, L2C", model.plan(fc.goc(fc.l2c(model.routers[22]), 1.0, whole_blocks=False))
        )
        yield Case("L2C 40, threshold", model.plan(fc.l2c(model.routers[40], 0.5)))
        yield Case("ProCache of the paper", model.plan(fc.methods.procache_paper(), 50))
        yield Case("ProCache of the paper, its pattern", model.plan(fc.methods.procache_paper(partial=False), 50))
    for path in model.plans:
        yield Case(f"shipped {path.stem}", fc.Plan.load(path))


def hashed(images: Tensor) -> str:
    """The SHA-256 of images as float32."""
    return sha256(images.float().contiguous().numpy().tobytes()).hexdigest()


def measured(model: Model, case: Case) -> Row:
    """The row of one case."""
    torch.manual_seed(SEED)
    row: Row = {"model": model.name, "name": case.name}
    plan = case.plan
    if plan is None:
        return {**row, "samples": hashed(model.sample(STEPS))}
    with fc.apply(model.target, plan, **case.settings) as session:
        row["samples"] = hashed(model.sample(plan.num_steps))
    text = plan.show()
    width = len(plan.grid.sites)
    stats = session.stats
    cost = plan.cost(model.target, model.batch, inputs=model.inputs, cache_dtype=case.settings.get("cache_dtype"))
    return {
        **row,
        "signs": sha256("\n".join(text.splitlines()[1 : 1 + width]).encode()).hexdigest(),
        "cost": {
            "macs": cost.macs,
            "macs_uncached": cost.macs_uncached,
            "cache_bytes": cost.cache_bytes,
            "constant_bytes": cost.constant_bytes,
            "step_macs": list(cost.step_macs),
            "step_cache_bytes": list(cost.step_cache_bytes),
        },
        "stats": {
            "generations": stats.generations,
            "calls": stats.calls,
            "computed": stats.computed,
            "partial": stats.partial,
            "skipped": stats.skipped,
            "peak_cache_bytes": stats.peak_cache_bytes,
            "fallbacks": stats.fallbacks,
        },
    }


def rows(only: str) -> Iterator[Row]:
    """All rows of both models whose name holds ``only``, one after the other, told on stderr."""
    for name in ("digits", "digits-text"):
        model = open_model(name)
        for number, case in enumerate(cases(model), 1):
            if only in case.name:
                start = time.perf_counter()
                yield measured(open_model(name, compiled=True) if case.compiled else model, case)
                taken = time.perf_counter() - start
                print(f"{name} {number:3}  {taken:5.1f} s  {case.name}", file=sys.stderr, flush=True)


def keyed(measured_rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Rows by model and name; ValueError if two have the same."""
    table: dict[tuple[str, str], Row] = {}
    for row in measured_rows:
        key = row["model"], row["name"]
        if key in table:
            raise ValueError(f"Two rows are called {key}: give one of them another name.")
        table[key] = row
    return table


def differences(recorded: Row | None, now: Row | None) -> list[str]:
    """What differs between two rows, in words; empty if nothing does."""
    if recorded is None or now is None:
        return ["not recorded" if recorded is None else "not measured any more"]
    texts = []
    for key in dict.fromkeys((*recorded, *now)):
        before, after = recorded.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
            texts += [f"{key}.{name} {before.get(name)} -> {after.get(name)}" for name in names]
        elif before != after:
            texts.append(f"{key} {str(before)[:12]} -> {str(after)[:12]}")
    return texts


def write(path: Path, table: Mapping[tuple[str, str], Row], cpu_seconds: float) -> None:
    """Write the rows, one a line."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    head = {
        "command": "python benchmarks/fingerprints.py",
        "environment": environment(),
        "commit": commit.strip() or None,
        "cpu_seconds": round(cpu_seconds),
    }
    lines = ",\n".join("  " + json.dumps(row) for row in table.values())
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def check(document: Mapping[str, Any], table: Mapping[tuple[str, str], Row], only: str) -> int:
    """Compare rows with those of a file, print what differs; gives how many rows do."""
    place = environment()
    if place != document["environment"]:
        print(f"recorded with {document['environment']},\nmeasured with {place}", file=sys.stderr)
    recorded = keyed(row for row in document["rows"] if only in row["name"])
    count = 0
    for key in dict.fromkeys((*recorded, *table)):
        if texts := differences(recorded.get(key), table.get(key)):
            count += 1
            print(f"{key[0]}: {key[1]}: " + "; ".join(texts))
    print(f"{count} of {len(recorded)} rows differ" if count else f"all {len(recorded)} rows agree")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--only", default="", help="only rows whose name holds this text; with --check")
    args = parser.parse_args()
    if args.only and not args.check:
        parser.error("--only is for --check: the file holds all rows")
    torch.set_num_threads(1)
    start = time.process_time()
    table = keyed(rows(args.only))
    if args.check:
        sys.exit(1 if check(json.loads(RESULT.read_text(encoding="utf-8")), table, args.only) else 0)
    write(RESULT, table, time.process_time() - start)
    print(f"{len(table)} rows in {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
