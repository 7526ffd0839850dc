"""Samples of a batch that decide each for itself: their decisions, their features, and the calls that they share.

A sample is all rows of a batch that belong together: one, or the two of a guidance pair. Samples that do the same at a
step are called together, so that a call in which they differ becomes one call for each thing that is done.

B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forecache.errors import RunError
from forecache.models.arguments import Arguments, named_arguments
from forecache.models.layout import Layout
from forecache.plan.ops import Op
from forecache.plan.plan import Plan
from forecache.runtime.cache import FeatureCache, weighted_sum
from forecache.runtime.constants import DeviceConstants
from forecache.runtime.deciding import Deciding, Inside, sample_of
from forecache.runtime.executable import Executable
from forecache.runtime.executor import StepExecutor
from forecache.runtime.program import Step
from forecache.runtime.storage import CacheMeter, CacheOptions
from forecache.runtime.tokens import TokenChooser

GUIDED = (4, 3, 2)
"""Numbers of rows of one sample that are looked for: two of a guidance pair, more where guidance has more parts."""
SHARED = ("ids", "rotary", "freqs")
"""Parts of the names of arguments that are of tokens and not of samples, whatever their first size is."""


class DividedError(Exception):
    """Ends a model call in whose middle samples have decided differently: they are called apart."""


@dataclass(eq=False)
class Sample:
    """One sample of a batch.

    places: its rows in the batch, one in each of the equal parts that the batch has.
    deciding: its steps.
    features: its kept features, by site and slot.
    now: the step that it makes now; None until it is decided.
    step: number of the next step.
    """

    places: list[int]
    deciding: Deciding
    features: dict[tuple[int, int], Kept] = field(default_factory=dict)
    now: Step | None = None
    step: int = 0

    @property
    def plan(self) -> Plan:
        """The plan with what this sample decided so far."""
        return self.deciding.plan

    @property
    def rows(self) -> Sequence[tuple[Op, ...]]:
        """The operations of its steps so far, [site][step]."""
        return self.deciding.rows

    @property
    def looks(self) -> Mapping[int, Sequence[Op]]:
        """Estimates beside computed steps, of which a plan that decides while it runs has none."""
        return {}


@dataclass(eq=False)
class Kept:
    """A feature of several samples that were computed together.

    feature: their rows (B, N, D), or one row for all of them.
    samples: whose it is, in the order of their rows in each part of the batch.
    version: the tensor's version when it was kept; None where it counts none.
    """

    feature: Tensor
    samples: list[Sample]
    version: int | None

    def rows(self, samples: Sequence[Sample]) -> Tensor:
        """The feature of some of these samples; RunError if something has written into it."""
        if self.version is not None and self.feature._version != self.version:
            raise RunError(
                "A kept feature was changed in place after its module gave it out, so it cannot be reused: choose "
                "sites whose output the model does not write into, such as the modules inside."
            )
        if len(samples) == len(self.samples) and all(map(lambda a, b: a is b, samples, self.samples)):
            return self.feature
        if len(self.feature) == 1 != len(self.samples):
            return self.feature
        places = [self.samples.index(sample) for sample in samples]
        parts = len(self.feature) // len(self.samples)
        index = [part * len(self.samples) + place for part in range(parts) for place in places]
        return self.feature[torch.tensor(index, device=self.feature.device)]


class SharedCache(FeatureCache):
    """The store of a step that some samples make together; every sample has its own features.

    samples: these samples.
    """

    def __init__(self, samples: Sequence[Sample], constants: DeviceConstants, meter: CacheMeter) -> None:
        super().__init__((), constants, CacheOptions(), meter)
        self._samples = samples

    def read(self, site: int, slot: int) -> Tensor:
        found = [sample.features[site, slot] for sample in self._samples]
        owners: dict[int, tuple[Kept, list[Sample]]] = {}
        for kept, sample in zip(found, self._samples, strict=True):
            owners.setdefault(id(kept), (kept, []))[1].append(sample)
        if len(owners) == 1:
            return found[0].rows(self._samples)
        parts = len(self._samples[0].places)
        places = [self._samples.index(sample) for _, samples in owners.values() for sample in samples]
        order = torch.tensor([places.index(place) for place in range(len(places))], device=found[0].feature.device)
        by_part = [_by_part(kept.rows(samples), parts, len(samples)) for kept, samples in owners.values()]
        joined = torch.cat(by_part, 1)[:, order]  # (parts, samples, N, D)
        return joined.flatten(0, 1)

    def read_in_turn(self, places: Sequence[tuple[int, int]]) -> Iterable[Tensor]:
        return [self.read(site, slot) for site, slot in places]

    def weighted_sum(self, site: int, op: Op) -> Tensor:
        return weighted_sum([self.read(site, slot) for slot, _ in op.reads], op.reads)

    def keep_as_is(self, site: int, op: Op, slot: int, output: Tensor) -> bool:
        return False

    def keep(self, site: int, op: Op, sums: Sequence[Tensor]) -> None:
        self.free([(site, slot) for slot in op.frees])
        for kept, total in zip(op.keeps, sums, strict=False):
            self.fill(site, kept.slot, total)

    def fill(self, site: int, slot: int, feature: Tensor) -> None:
        """Keep a feature of all samples."""
        rows = sum(len(sample.places) for sample in self._samples)
        if len(feature) not in (1, rows):
            raise RunError(
                f"A feature of site {site} has {len(feature)} rows in a call of {rows}, so it is not of samples: leave "
                "out per_sample=, or choose other sites."
            )
        kept = Kept(feature, list(self._samples), None if feature.is_inference() else feature._version)
        for sample in self._samples:
            sample.features[site, slot] = kept
        self.meter.held += feature.nbytes
        self.meter.peak = max(self.meter.peak, self.meter.held)

    def free(self, places: Sequence[tuple[int, int]]) -> None:
        for place in places:
            owners = {id(kept): kept for sample in self._samples if (kept := sample.features.pop(place))}
            for kept in owners.values():
                self._release(kept)

    def _release(self, kept: Kept) -> None:
        """Keep of a feature what other samples still need, so that no row is held for nobody."""
        rest = [sample for sample in kept.samples if sample not in self._samples]
        self.meter.held -= kept.feature.nbytes
        if rest:
            feature = kept.rows(rest)
            kept.feature, kept.samples = feature, rest
            kept.version = None if feature.is_inference() else feature._version
            self.meter.held += feature.nbytes


def _by_part(feature: Tensor, parts: int, samples: int) -> Tensor:
    """A feature as (parts, samples, N, D); one row stands for all."""
    if len(feature) == 1 != parts * samples:
        feature = feature.expand(parts * samples, *feature.shape[1:])
    return feature.unflatten(0, (parts, samples))


class Samples:
    """The samples of one lane, from its second call on.

    layout: of the model.
    executable: of the lane.
    samples: in the order of their rows.
    num_rows: of the batch.
    meter: counts the bytes of the thread.
    """

    def __init__(
        self, layout: Layout, executable: Executable, samples: Sequence[Sample], num_rows: int, meter: CacheMeter
    ) -> None:
        self.samples, self.num_rows = tuple(samples), num_rows
        self._layout, self._executable, self._meter = layout, executable, meter

    def clear(self) -> None:
        """Drop all features."""
        kept = {id(feature): feature for sample in self.samples for feature in sample.features.values()}
        self._meter.held -= sum(feature.feature.nbytes for feature in kept.values())
        for sample in self.samples:
            sample.features.clear()

    def begin(self, arguments: Arguments, value: Any, sigma: Callable[[], float | None]) -> bool:
        """Begin a step of all samples: whether it is known before the blocks run. See `Deciding.begin`."""
        whole = sample_of(arguments, value) if self.samples[0].deciding.shared.sees.sample else None
        for sample in self.samples:
            own = Arguments((), {}) if whole is None else Arguments((whole[sample.places],), {})
            sample.now = sample.deciding.begin(own, None, sigma)
        return self.samples[0].now is not None

    def compute(self) -> None:
        """Begin a step that all samples compute."""
        for sample in self.samples:
            sample.now = sample.deciding.compute()

    def executor(self, samples: Sequence[Sample], step: Step, image: Sequence[int] | None) -> StepExecutor:
        """What runs a step of these samples."""
        cache = SharedCache(samples, self._executable.constants, self._meter)
        chooser = TokenChooser(self._layout, self._meter, cache.random)
        executor = StepExecutor(
            self._layout, cache, chooser, self._executable.gates, self._executable.options.max_error
        )
        executor.begin(step, image)
        return executor

    def whole(self, image: Sequence[int] | None) -> StepExecutor:
        """What runs a call of all samples: their step if it is one, else what decides about it inside of the call."""
        steps = self._steps()
        if None not in steps:
            return self.executor(self.samples, steps[0] or self._executable.open_step, image)
        executor = self.executor(self.samples, self._executable.open_step, image)
        assert self._executable.first is not None
        sees = self.samples[0].deciding.shared.sees
        executor.deferred = Inside(self._decided, executor, self._layout, sees, self._executable.first)
        return executor

    def _decided(self, **seen: Any) -> Step:
        """The step of all samples, which have seen something; DividedError where they decide differently."""
        for sample in self.samples:
            own = {name: _rows(value, sample.places, self.num_rows) for name, value in seen.items()}
            sample.now = sample.deciding.decide(**own)
        if self.is_divided:
            raise DividedError
        step = self.samples[0].now
        assert step is not None
        return step

    def _steps(self) -> list[Step | None]:
        return [sample.now for sample in self.samples]

    @property
    def is_divided(self) -> bool:
        """Whether the samples make different steps now."""
        return len({id(step) for step in self._steps()}) > 1

    def groups(self) -> list[list[Sample]]:
        """The samples that make the same step now, together."""
        groups: dict[int, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault(id(sample.now), []).append(sample)
        return list(groups.values())

    def end(self, output: Any, output_of: Callable[[Any], Tensor]) -> tuple[int, int]:
        """Note the output of a call; the cells that all samples computed, and those that some did."""
        if self.samples[0].deciding.shared.sees.output and self.samples[0].deciding.leads:
            whole = output_of(output)
            for sample in self.samples:
                sample.deciding.end(whole[sample.places])
        every = some = 0
        for ops in zip(*(sample.deciding.last for sample in self.samples), strict=True):
            computed = sum(not op.reads for op in ops)
            every, some = every + (computed == len(ops)), some + (0 < computed < len(ops))
        for sample in self.samples:
            sample.now, sample.step = None, sample.step + 1
        return every, some


def _rows(value: Any, rows: Sequence[int], num_rows: int) -> Any:
    """These rows of a stream (B, N, D); one row stands for all."""
    return value[list(rows)] if isinstance(value, Tensor) and len(value) == num_rows else value


def samples_of(
    layout: Layout,
    executable: Executable,
    first: Deciding,
    leaders: Samples | None,
    whole: Tensor,
    cache: FeatureCache,
) -> Samples | None:
    """The samples of a lane whose first call was made for all of them together; None where there is one alone.

    first: decided about that call.
    leaders: the samples that decide for these; None where these decide themselves.
    whole: the model's input (B, ...) at the second call, which tells which rows belong together.
    cache: what the first call has kept.
    """
    num_rows = len(whole)
    parts = next((number for number in GUIDED if _repeats(whole, number)), 1)
    count = num_rows // parts
    if leaders is not None and len(leaders.samples) != count:
        raise RunError(
            f"The calls of a step have {count} and {len(leaders.samples)} samples, and each decides for itself: call "
            "the model with the same batch, or leave out per_sample=."
        )
    if count == 1:
        return None
    samples: list[Sample] = []
    for place in range(count):
        rows = list(range(place, num_rows, count))
        deciding = executable.deciding(None if leaders is None else leaders.samples[place].deciding.shared)
        assert deciding is not None
        if leaders is None:
            own = {name: _rows(value, rows, num_rows) for name, value in first.seen.items()}
            deciding.decide(**own)  # the first step is computed, and the rule has seen it
            deciding.shared.output = _rows(first.shared.output, rows, num_rows)
        else:
            deciding.follow()
        samples.append(Sample(rows, deciding, step=1))
    made = Samples(layout, executable, samples, num_rows, cache.meter)
    shared = SharedCache(samples, executable.constants, cache.meter)
    for site, slot, feature in cache.taken():
        shared.fill(site, slot, feature)
    return made


def _repeats(whole: Tensor, parts: int) -> bool:
    """Whether a batch (B, ...) has this number of equal parts."""
    if len(whole) % parts:
        return False
    first, *others = whole.chunk(parts)
    return all(torch.equal(first, other) for other in others)


# ---- calls of a part of a batch --------------------------------------------------------------------------------------


def divided(arguments: Arguments, rows: Sequence[int], num_rows: int, module: Any) -> Arguments:
    """The arguments of a call with these rows of its batch alone."""
    names = list(named_arguments(module, arguments.args, arguments.kwargs))
    args = [
        value if _is_shared(names[place]) else _divide(value, rows, num_rows, names[place])
        for place, value in enumerate(arguments.args)
    ]
    kwargs = {
        name: value if _is_shared(name) else _divide(value, rows, num_rows, name)
        for name, value in arguments.kwargs.items()
    }
    return Arguments(args, kwargs)


def _is_shared(name: str) -> bool:
    return any(part in name for part in SHARED)


def _divide(value: Any, rows: Sequence[int], num_rows: int, name: str) -> Any:
    if isinstance(value, Tensor):
        is_batch = value.ndim > 0 and len(value) == num_rows > 1
        return value[torch.tensor(list(rows), device=value.device)] if is_batch else value
    if isinstance(value, dict):
        names = {key: str(key) for key in value}
        return {
            key: part if _is_shared(names[key]) else _divide(part, rows, num_rows, names[key])
            for key, part in value.items()
        }
    if not isinstance(value, list | tuple) or not any(isinstance(part, Tensor | list | tuple) for part in value):
        return value
    is_of_samples = isinstance(value, list) and len(value) == num_rows > 1
    is_of_batches = all(isinstance(part, Tensor) and part.ndim > 0 and len(part) == num_rows for part in value)
    if is_of_samples and is_of_batches:
        raise RunError(
            f"The argument {name} lists {num_rows} tensors of {num_rows} rows, so it is not known which are its "
            "samples: sample another number of images at a time, or leave out per_sample=."
        )
    if is_of_samples:
        return [value[row] for row in rows]
    parts = [_divide(part, rows, num_rows, name) for part in value]
    return tuple(parts) if isinstance(value, tuple) else parts


def joined(outputs: Sequence[Any], rows: Sequence[Sequence[int]], num_rows: int) -> Any:
    """The output of a call from those of its parts; RunError where it has no rows of samples."""
    first = outputs[0]
    if isinstance(first, Tensor):
        if any(len(output) != len(own) for output, own in zip(outputs, rows, strict=True)):
            raise RunError(
                f"The model's output has {[len(output) for output in outputs]} rows for "
                f"{[len(own) for own in rows]} samples, so it cannot be put together: leave out per_sample=."
            )
        order = [row for own in rows for row in own]
        index = torch.tensor([order.index(row) for row in range(num_rows)], device=first.device)
        return torch.cat(list(outputs))[index]
    if isinstance(first, Mapping):
        return type(first)(**{key: joined([output[key] for output in outputs], rows, num_rows) for key in first})
    if isinstance(first, list) and len(first) == len(rows[0]) and all(isinstance(part, Tensor) for part in first):
        order = [row for own in rows for row in own]
        parts = [part for output in outputs for part in output]
        return [parts[order.index(row)] for row in range(num_rows)]
    if isinstance(first, tuple):
        return tuple(joined(parts, rows, num_rows) for parts in zip(*outputs, strict=True))
    if first is None or all(output is first for output in outputs):
        return first
    raise RunError(
        f"The model gives out a {type(first).__name__}, of which the samples are not known: leave out per_sample=."
    )
