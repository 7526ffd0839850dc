"""A model with a cache on it, called without a pipeline: `peers.py` times it and samples from it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from forecache.sampling.loop import sample, to_images
from forecache.sampling.sources import Condition, Sampling
from forecache.sampling.timing import timed

Start = Callable[[], None]
BARE = "no cache"
GUIDANCE, BATCH = 1.5, 50


class Called:
    """A model that records its calls.

    model: the transformer.
    num_steps: calls of a generation.
    run: samples from it once, for caches that calibrate themselves.
    now: timestep of the last call.
    seconds: latency of every call.
    """

    def __init__(self, model: Any, num_steps: int, run: Callable[[Called], Any]) -> None:
        self.model, self.num_steps, self.run = model, num_steps, run
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.now = 0
        self.seconds: list[float] = []

    def __call__(self, x: torch.Tensor, **arguments: Any) -> Any:
        self.now = int(arguments["timestep"].max())
        output, seconds = timed(lambda: self.model(hidden_states=x, **arguments))
        self.seconds.append(seconds)
        return output


@dataclass(frozen=True)
class Cache:
    """A cache in one configuration.

    name: in tables.
    package: the distribution that has it.
    put_on: puts it on a model, and returns a function that starts a generation.
    """

    name: str
    package: str
    put_on: Callable[[Called], Start]

    @property
    def version(self) -> str | None:
        """The installed version of its package; None if it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


class Nowhere:
    """A file that discards what some caches print in every call."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discards stdout and stderr inside the block."""
    nowhere: Any = Nowhere()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@dataclass(frozen=True)
class Subject:
    """A model that all caches are put on.

    model: the transformer.
    scheduler: for sampling.
    num_steps: sampling steps.
    digits: the bundled model that the transformer is of; None for random weights.
    """

    model: Any
    scheduler: Any
    num_steps: int
    digits: Any = None

    def few(self, count: int) -> Sequence[Condition]:
        """Some conditions, where any will do."""
        return range(count)

    def run(self, called: Called, labels: Sequence[Any], first: int = 0, seed: int = 0) -> Tensor:
        """The images of one generation, in [-1, 1]; sample i starts from noise (seed, first + i)."""
        indices = range(first, first + len(labels))
        steps = self.num_steps
        with silence():
            return sample(
                called, self.scheduler, labels, num_steps=steps, guidance=GUIDANCE, seed=seed, indices=indices
            )

    def _calibration_run(self, called: Called) -> Tensor:
        return self.run(called, self.few(10), seed=1000)

    def under(self, cache: Cache) -> Running:
        """A copy of the model with the cache on it; a cache that calibrates itself does so on noise of its own."""
        called = Called(copy.deepcopy(self.model), self.num_steps, self._calibration_run)
        with silence():
            return Running(cache, called, cache.put_on(called), self)


class Captioned(Subject):
    """The digits-text model, sampled by its pipeline."""

    def few(self, count: int) -> Sequence[Condition]:
        return self.digits.prompts[:count]

    def run(self, called: Called, labels: Sequence[Any], first: int = 0, seed: int = 0) -> Tensor:
        model = replace(self.digits, transformer=called.model)
        with silence():
            return model.generate(labels, Sampling(self.num_steps, model.guidance, seed), first) * 2 - 1


@dataclass(frozen=True)
class Running:
    """A cache on its model, ready to sample.

    cache: the configuration.
    called: the model.
    start: starts a generation.
    subject: what the model was copied from.
    """

    cache: Cache
    called: Called
    start: Start
    subject: Subject

    def __call__(self, labels: Sequence[Condition], first: int = 0) -> Tensor:
        with silence():
            self.start()
        self.called.seconds.clear()
        return self.subject.run(self.called, labels, first)

    def images(self, labels: Sequence[Condition]) -> Tensor:
        """The images of all conditions, (B, C, H, W) in [0, 1]."""
        return torch.cat(
            [to_images(self(labels[first : first + BATCH], first)) for first in range(0, len(labels), BATCH)]
        )

    def counted(self, labels: Sequence[Condition]) -> list[tuple[int, int]]:
        """For every step of a generation, how often the attention and the MLP of the middle block are computed."""
        blocks = self.called.model.transformer_blocks
        middle = blocks[len(blocks) // 2]
        counts: list[list[int]] = []

        def count(which: int) -> Any:
            def hook(*_: Any) -> None:
                counts[-1][which] += 1

            return hook

        hooks = [  # of leaves that no cache replaces
            self.called.model.pos_embed.register_forward_pre_hook(lambda *_: counts.append([0, 0])),
            middle.attn1.to_q.register_forward_hook(count(0)),
            middle.ff.net[0].register_forward_hook(count(1)),
        ]
        self(labels)
        for hook in hooks:
            hook.remove()
        return [(attention, mlp) for attention, mlp in counts]
