"""Rules that decide while a plan runs, beside static plans of the same number of computed steps, on a bundled model.

    python benchmarks/online.py                       digits, 16 held-out samples, 10, 7 and 5 computed of 20 steps
    python benchmarks/online.py --model digits-text   13, 9 and 6 of 20
    python benchmarks/online.py --pages               the tables again from the records

Ten minutes on one core each, twenty with --samples 32. Statistics, thresholds, the best forecast and the factor of
`adaptive` are of other samples than those of the table. Every threshold is one of `forecache.threshold_for`, from
statistics, for the mean number of computed steps. Rules decide sample by sample, each alone; then the same methods
sample what they were not made for: another guidance, 30 steps, another sampler. PSNR is to the samples without a cache
at the same setting, and to samples of 100 steps of the model's own sampler at the same guidance. Every row is kept in
benchmarks/results/online-<model>.json as soon as it is measured, so that an interrupted run goes on. Writes
docs/measured/online.md.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import common
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

import forecache as fc
from forecache import zoo
from forecache.environment import environment
from forecache.evaluate import psnr
from forecache.sampling import sources
from forecache.sampling.sources import Sampling
from forecache.zoo.open import open_source

STEPS, LONG, CONVERGED, OTHER = 20, 30, 100, 4.0
SEED, HELD_OUT, BATCH = 0, 5000, 16
MOST = 80.0
BUDGETS = {"digits": (10, 7, 5), "digits-text": (13, 9, 6)}
SHIFTED = {"digits": 7, "digits-text": 9}
"""The budget of the settings that nothing was made for."""
FACTORS = (1.0, 1.5, 2.0, 3.0)
FORECASTS = {
    "Taylor 1": lambda base: fc.taylorseer(base, 1),
    "GOC": lambda base: fc.goc(base, 0.8),
    "feedback": lambda base: fc.feedback(base, 1),
}
RULES = ("fbcache", "teacache", "easycache", "seacache", "dicache", "magcache")


@dataclass(frozen=True)
class Setting:
    """How samples are made.

    name: for people
    steps: of a run
    guidance: scale
    unipc: whether by UniPC, in the place of the model's own sampler
    """

    name: str
    steps: int = STEPS
    guidance: float = 1.5
    unipc: bool = False


def settings(guidance: float) -> list[Setting]:
    home = Setting("as calibrated", guidance=guidance)
    other = OTHER if guidance < OTHER else 2 * guidance
    return [
        home,
        replace(home, name=f"guidance {other:g}", guidance=other),
        replace(home, name=f"{LONG} steps", steps=LONG),
        replace(home, name="UniPC", unipc=True),
    ]


class Bench:
    """A model, its statistics, and the record of what was measured.

    name: of the bundled model
    samples, calibration: numbers of held-out samples, and of those that the factor and the forecast are chosen on
    """

    def __init__(self, name: str, samples: int, calibration: int, words: Sequence[str]) -> None:
        self.name, self.samples, self.calibration = name, samples, calibration
        self.record = zoo.record(name)
        self.source = open_source(name, "cpu", "float32")
        self.home = settings(self.record.guidance)[0]
        self.file = f"online-{name}"
        about = {"command": common.command("online.py", words), "environment": environment(), "samples": samples}
        done = common.load(self.file)
        is_same = done.get("samples") == samples and done.get("calibration") == calibration
        self.rows: dict[str, Any] = done["rows"] if is_same else {}
        self.about = about | {"model": name, "calibration": calibration}
        self._stats = {STEPS: fc.Statistics.load(self.record.statistics_path(STEPS))}
        self._bare: dict[Any, list[Tensor]] = {}
        self.conditions = sources.all_conditions(self.source)

    def condition(self, number: int) -> Any:
        return self.conditions[number % len(self.conditions)]

    def kept(self, key: str, make: Any) -> Any:
        """What the record has under a key, or what is made for it and kept."""
        if key not in self.rows:
            self.rows[key] = make()
            common.save(self.file, self.about | {"rows": self.rows})
            print(key, summary(self.rows[key]), flush=True)
        return self.rows[key]

    def stats(self, steps: int) -> fc.Statistics:
        """Statistics for a number of steps: the bundled ones, or of 16 samples with the same seed."""
        if steps not in self._stats:
            own = [self.condition(number) for number in range(16)]
            self._stats[steps] = fc.calibrate(
                self.source, own, num_steps=steps, guidance=self.home.guidance, seed=1000, batch=16, signals=16
            )
        return self._stats[steps]

    def source_of(self, setting: Setting) -> Any:
        """The model with the sampler of a setting."""
        if not setting.unipc:
            return self.source
        own: Any = self.source
        return replace(own, scheduler=UniPCMultistepScheduler.from_config(own.scheduler.config))

    def generate(self, source: Any, setting: Setting, numbers: range, steps: int | None = None) -> Tensor:
        own = [self.condition(number) for number in numbers]
        return source.generate(own, Sampling(steps or setting.steps, setting.guidance, SEED), numbers.start)

    def bare(self, setting: Setting, first: int, count: int, steps: int | None = None) -> list[Tensor]:
        """The samples without a cache; with ``steps``, of so many steps of the model's own sampler."""
        wanted = replace(setting, unipc=False) if steps else setting
        key = (wanted.guidance, wanted.unipc, steps or wanted.steps, first, count)
        if key not in self._bare:
            images: list[Tensor] = []
            source = self.source_of(wanted)
            for start in range(first, first + count, BATCH):
                images += self.generate(source, wanted, range(start, min(start + BATCH, first + count)), steps)
            self._bare[key] = images
        return self._bare[key]

    def measured(self, setting: Setting, method: Any, first: int, count: int, converged: bool) -> dict[str, Any]:
        """PSNR and computed steps of every sample; a plan that decides samples each alone."""
        alone = isinstance(method, fc.Method) and method.decider is not None
        size = 1 if alone else BATCH
        images: list[Tensor] = []
        computed: list[int] = []
        num_steps = None if isinstance(method, fc.Plan) else setting.steps
        source = self.source_of(setting)
        with fc.apply(source.target, method, num_steps=num_steps) as session:
            for start in range(first, first + count, size):
                numbers = range(start, min(start + size, first + count))
                images += self.generate(source, setting, numbers)
                plan = session.decided() if alone else session.plan
                rows = plan.rows if plan is not None else ()
                steps = sum(all(cell.computed for cell in cells) for cells in zip(*rows, strict=True))
                computed += [steps] * len(numbers)
        result = {"psnr": near(images, self.bare(setting, first, count)), "computed": computed}
        if converged:
            result["converged"] = near(images, self.bare(setting, first, count, CONVERGED))
        return result


def near(images: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    pairs = zip(images, others, strict=True)
    return [round(psnr(a[None], b[None]).clamp_max(MOST).item(), 3) for a, b in pairs]


def summary(value: Any) -> str:
    if isinstance(value, Mapping) and "psnr" in value:
        return f"{statistics.mean(value['psnr']):.2f} dB, {statistics.mean(value['computed']):.2f} computed"
    return str(value)


def pattern_of(plan: fc.Plan) -> str:
    return "".join("#" if cell.computed else "." for cell in plan.rows[0])


def stretched(pattern: str, steps: int) -> str:
    """A pattern for another number of steps: the computed steps at the same shares of the run."""
    own = [place for place, sign in enumerate(pattern) if sign == "#"]
    more = round(len(own) * steps / len(pattern))
    places = {round(value) for value in spread(own, more, (steps - 1) / (len(pattern) - 1))}
    return "".join("#" if step in places else "." for step in range(steps))


def spread(own: Sequence[int], count: int, scale: float) -> Iterator[float]:
    for number in range(count):
        place = number * (len(own) - 1) / (count - 1)
        low = min(int(place), len(own) - 2)
        yield scale * (own[low] + (place - low) * (own[low + 1] - own[low]))


def rules(bench: Bench, steps: int, computed: float) -> dict[str, fc.Method]:
    """The rules with thresholds for a mean number of computed steps, from statistics."""
    stats = bench.stats(steps)
    makers = {
        "fbcache": fc.fbcache(0.2, last=1),
        "teacache": fc.teacache(0.3, stats=stats),
        "easycache": fc.easycache(0.2, first=2),
        "seacache": fc.seacache(0.3, max_gap=99),
        "dicache": fc.dicache(0.1, first=2),
    }
    made = {name: fc.threshold_for(rule, stats, computed=computed).method for name, rule in makers.items()}
    return made | {"magcache": magcache(stats, computed)}


def magcache(stats: fc.Statistics, computed: float) -> fc.Method:
    """MagCache with the threshold that comes nearest to so many computed steps, and no longest gap."""
    grid = fc.Grid(stats.num_steps, stats.sites)
    tried = [fc.magcache(stats=stats, threshold=0.02 * 1.1**number, max_gap=99, retention=0.1) for number in range(60)]
    counts = [pattern_of(method.plan(grid)).count("#") for method in tried]
    return tried[min(range(len(tried)), key=lambda number: abs(counts[number] - computed))]


def chosen(bench: Bench, budget: int) -> tuple[str, float]:
    """The best forecast on evenly spread steps, and the best factor of `adaptive`, on samples of the calibration."""
    count, even = bench.calibration, fc.methods.spread(STEPS / budget)

    def mean(setting: Setting, method: fc.Method) -> float:
        return statistics.mean(bench.measured(setting, method, 0, count, converged=False)["psnr"])

    means = bench.kept(
        f"forecasts/{budget}", lambda: {name: mean(bench.home, wrap(even)) for name, wrap in FORECASTS.items()}
    )
    return max(means, key=means.get), 1.5


def factors(bench: Bench, budget: int, forecast: str) -> None:
    """Adaptive by factor, on samples of the calibration, where it was calibrated and at another guidance."""
    count, wrap = bench.calibration, FORECASTS[forecast]
    pattern = pattern_of(fc.Plan.load(bench.record.tuned_path(budget)))
    methods = {"none": wrap(fc.explicit(pattern=pattern))}
    for factor in FACTORS:
        methods[f"{factor:g}"] = wrap(fc.adaptive(pattern, bench.stats(STEPS), factor, budget=budget))
    for setting in settings(bench.home.guidance)[:2]:
        for name, method in methods.items():
            make = partial(bench.measured, setting, method, 0, count, converged=False)
            bench.kept(f"factors/{setting.name}/{name}", make)


def measure(bench: Bench) -> None:
    shifted = SHIFTED[bench.name]
    for setting in settings(bench.home.guidance):
        is_home = setting.name == bench.home.name
        for budget in BUDGETS[bench.name] if is_home else (shifted,):
            table(bench, setting, budget, is_home)
    factors(bench, shifted, chosen(bench, shifted)[0])


def table(bench: Bench, setting: Setting, budget: int, is_home: bool) -> None:
    """The rows of one setting and budget."""
    forecast, factor = chosen(bench, budget)
    tuned = fc.Plan.load(bench.record.tuned_path(budget))
    own = stretched(pattern_of(tuned), setting.steps) if setting.steps != STEPS else pattern_of(tuned)
    computed = own.count("#")
    wrap = FORECASTS[forecast]
    even = fc.methods.spread(setting.steps / computed)
    listed = fc.explicit(pattern=own)
    methods: dict[str, Any] = {"even": even, "even, forecast": wrap(even)}
    if setting.steps == STEPS:
        methods["tuned"] = tuned
    methods["tuned steps, forecast"] = wrap(listed)
    made = rules(bench, setting.steps, computed)
    for name in RULES:
        methods |= {name: made[name]} if is_home else {}
        methods[f"{name}, forecast"] = wrap(made[name])
    follows = fc.adaptive(own, bench.stats(setting.steps), factor, budget=computed)
    adds = fc.adaptive(own, bench.stats(setting.steps), factor, at_most=min(setting.steps, computed + 3))
    methods |= {"adaptive, forecast": wrap(follows), "adaptive at most +3, forecast": wrap(adds)}
    where = f"{setting.name}/{budget}"

    def kept(name: str, method: Any) -> dict[str, Any]:
        make = partial(bench.measured, setting, method, HELD_OUT, bench.samples, converged=True)
        return bench.kept(f"{where}/{name}", make)

    for name, method in methods.items():
        kept(name, method)
    more = round(statistics.mean(kept("adaptive at most +3, forecast", None)["computed"]))
    if more > computed:
        kept(f"even, {more} computed, forecast", wrap(fc.methods.spread(setting.steps / more)))


# ---- the page --------------------------------------------------------------------------------------------------------


def paired(own: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The mean of differences, and its standard error."""
    gains = [a - b for a, b in zip(own, other, strict=True)]
    return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0


def lines_of(document: Mapping[str, Any]) -> list[str]:
    rows, model, count = document["rows"], document["model"], document["samples"]
    forecasts = {key.split("/")[1]: max(value, key=value.get) for key, value in rows.items() if "forecasts/" in key}
    groups = dict.fromkeys(tuple(key.split("/")[:2]) for key in rows if key.count("/") == 2 and "factors/" not in key)
    lines: list[str] = []
    for setting, budget in groups:
        own = {key.split("/")[2]: row for key, row in rows.items() if key.startswith(f"{setting}/{budget}/")}
        first = next(iter(own.values()))
        even = own["even, forecast"]
        lines += [
            f"### {model}, {setting}: {statistics.mean(first['computed']):g} computed steps",
            "",
            f"The forecast is {forecasts[budget]}.",
            "",
            "| | computed (fewest to most) | PSNR, dB | worst twentieth | to converged | less even steps, forecast |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in own.items():
            near, computed = row["psnr"], row["computed"]
            worst = statistics.mean(sorted(near)[: max(1, len(near) // 20)])
            gain, error = paired(near, even["psnr"])
            spread_ = f" ({min(computed)} to {max(computed)})" if min(computed) < max(computed) else ""
            difference = "" if name == "even, forecast" else f"{gain:+.2f} ± {error:.2f}"
            lines.append(
                f"| {name} | {statistics.mean(computed):.2f}{spread_} | {statistics.mean(near):.2f} | {worst:.2f} | "
                f"{statistics.mean(row['converged']):.2f} | {difference} |"
            )
        lines += ["", *against_plan(own), ""]
    lines += factor_lines(rows, document)
    place = document["environment"]
    lines += [
        f"{model}: {count} held-out samples, {document['calibration']} others for forecast and factor. ± is the "
        f"standard error of paired differences. `{document['command']}`, {common.machine(place)}.",
    ]
    return lines


def against_plan(own: Mapping[str, Any]) -> list[str]:
    """What `adaptive` gains on the steps that it follows."""
    if "adaptive, forecast" not in own:
        return []
    gain, error = paired(own["adaptive, forecast"]["psnr"], own["tuned steps, forecast"]["psnr"])
    return [f"`adaptive` less the same steps without it, at the same count: {gain:+.2f} ± {error:.2f} dB."]


def factor_lines(rows: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    keys = [key for key in rows if key.startswith("factors/")]
    if not keys:
        return []
    lines = [
        f"### {document['model']}: the factor of `adaptive`", "",
        f"On {document['calibration']} samples of the calibration, with as many computed steps as its pattern has; "
        "less the pattern alone, dB.", "",
        "| | " + " | ".join(f"{factor:g}" for factor in FACTORS) + " |", "|---" * (len(FACTORS) + 1) + "|",
    ]  # fmt: skip
    for setting in dict.fromkeys(key.split("/")[1] for key in keys):
        base = rows[f"factors/{setting}/none"]["psnr"]
        cells = []
        for factor in FACTORS:
            row = rows.get(f"factors/{setting}/{factor:g}")
            cells.append("{:+.2f} ± {:.2f}".format(*paired(row["psnr"], base)) if row else "")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def write_pages() -> None:
    lines: list[str] = []
    for name in BUDGETS:
        document = common.load(f"online-{name}")
        lines += lines_of(document) if document else []
    common.fill_page("online", lines)


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="digits", choices=list(BUDGETS), help="a bundled model")
    parser.add_argument("--samples", type=int, default=16, help="held-out samples of a row")
    parser.add_argument("--calibration", type=int, default=8, help="samples that factor and forecast are chosen on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--pages", action="store_true", help="write the page from the records alone")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    if not args.pages:
        measure(Bench(args.model, args.samples, args.calibration, words))
    write_pages()


if __name__ == "__main__":
    main(sys.argv[1:])
