"""Sessions that open and close as one, for a pipeline whose runs two transformers make, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from forecache.plan.plan import Plan
from forecache.runtime.session import Session
from forecache.runtime.stats import Stats


class Sessions:
    """What a `Session` is, for a plan that two transformers share."""

    def __init__(self, plan: Plan, members: Sequence[Session]) -> None:
        self.plan = plan
        self._members = tuple(members)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for member in self._members:
                stack.enter_context(member)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def close(self) -> None:
        """Both models are as they were."""
        with ExitStack() as stack:
            for member in self._members:
                stack.callback(member.close)

    @property
    def stats(self) -> Stats:
        """What both have done; a run of the two is one generation. The caches are never there together."""
        first, *others = [member.stats for member in self._members]
        total = first
        for each in others:
            total = Stats(
                max(total.generations, each.generations),
                total.calls + each.calls,
                total.computed + each.computed,
                total.skipped + each.skipped,
                max(total.peak_cache_bytes, each.peak_cache_bytes),
                total.partial + each.partial,
                total.fallbacks + each.fallbacks,
            )
        return total

    def new_run(self) -> None:
        """The next model call of this thread starts a new generation."""
        for member in self._members:
            member.new_run()

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Model calls in this block have a history of their own."""
        with ExitStack() as stack:
            for member in self._members:
                stack.enter_context(member.lane(name))
            yield


def parts(pipe: Any) -> list[Callable[[Sequence[float]], range]]:
    """Which timesteps of a run each of two transformers makes: the second one those below the pipeline's boundary."""

    def boundary(timesteps: Sequence[float]) -> int:
        if pipe.config.boundary_ratio is None:
            return len(timesteps)
        least = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
        return sum(time >= least for time in timesteps)

    return [lambda times: range(boundary(times)), lambda times: range(boundary(times), len(times))]
