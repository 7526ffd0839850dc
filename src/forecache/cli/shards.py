"""`forecache sample --num-samples`: many images, in shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import forecache as fc
from forecache import distributed
from forecache.cli.terminal import emit, progress, say
from forecache.sampling import runs
from forecache.sampling.loop import random_labels
from forecache.sampling.shards import CALL_SIZE
from forecache.sampling.sources import Condition, Source


@dataclass(frozen=True)
class Many:
    """The options of many images, as typed; None where nothing was given."""

    num_samples: int | None
    prompts: Path | None
    shard_size: int | None
    call_size: int | None
    exact: bool | None
    random_classes: bool | None
    png: bool | None

    def check(self, given: bool, compare: bool) -> None:
        """InputError for options that do not belong, or say two things. given: whether labels or texts were typed."""
        if self.num_samples is None:
            names = ("prompts", "shard_size", "call_size", "exact", "random_classes", "png")
            if idle := [name for name in names if getattr(self, name) is not None]:
                raise fc.errors.InputError(f"--{idle[0].replace('_', '-')} belongs to --num-samples.")
        elif compare:
            raise fc.errors.InputError(
                "--compare is for a few images. Sample twice, with the plan and without one, and compare the folders."
            )
        if self.exact is False and self.call_size is not None:
            raise fc.errors.InputError(
                "--call-size is what makes a run exact, and --no-exact says that it is not: give one."
            )
        if sum((given, self.prompts is not None, bool(self.random_classes))) > 1:
            raise fc.errors.InputError(
                "--labels, --prompt, --prompts and --random-classes all say what to sample: give one of them."
            )

    def conditions(self, source: Source, settings: runs.Settings) -> Sequence[Condition]:
        """One class or text a sample: what was typed, the texts of the file, or the model's classes, in turn."""
        count = self.num_samples or 0
        if self.random_classes and source.classes:
            return random_labels(count, source.classes, settings.seed)
        if given := settings.conditions:
            return [given[index % len(given)] for index in range(count)]
        return runs.conditions(source, count, None, self.prompts)

    def sample(
        self, source: Source, plan: fc.Plan | None, settings: runs.Settings, out: Path, *, as_json: bool
    ) -> None:
        """Sample, with a bar, and say what was done; of several processes the first one talks."""
        world, started = distributed.launched(), time.monotonic()
        call_size = None if self.exact is False else self.call_size or CALL_SIZE
        with progress(self.num_samples, shown=world.leads) as (bar, task):
            try:
                done = fc.sampling.sample_shards(
                    source,
                    self.conditions(source, settings),
                    out,
                    num_steps=settings.num_steps,
                    plan=plan,
                    guidance=settings.guidance,
                    seed=settings.seed,
                    shard_size=self.shard_size or 256,
                    batch=settings.batch,
                    call_size=call_size,
                    png=bool(self.png),
                    on_progress=lambda what, count, _: bar.update(task, description=what, completed=count),
                )
            except KeyboardInterrupt:
                kept = len(list(out.glob("shards/*.safetensors")))
                if world.leads and not as_json:
                    say(f"{kept} finished shards are kept in {out}: the same command continues.")
                raise
        if world.leads and as_json:
            emit(done.record)
        elif world.leads:
            _tell(done, plan, time.monotonic() - started)


def _tell(done: fc.sampling.Sampled, plan: fc.Plan | None, seconds: float) -> None:
    if plan is not None:
        say(f"{plan.provenance.get('method', 'plan')}\n{plan.picture()}")
    if done.damaged:
        say(f"Damaged, and sampled again: {', '.join(map(str, done.damaged))}.")
    others = done.shards - len(done.made)
    say(f"Sampled {len(done.made)} of {done.shards} shards; {others} were there, or are the work of other processes.")
    record = done.record or {}
    if len(record["made_on"]) > 1:
        say("Made on different hardware or versions, so that bytes may differ by rounding from a run on one of them:")
        for place, shards in record["made_on"].items():
            say(f"  {shards} shards: {place}")
    size = "x".join(map(str, record["shape"]))
    say(f"{done.images}: {size} uint8 and labels ({seconds:.1f} s).")
