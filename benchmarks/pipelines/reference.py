"""FORA at interval 2, written out by hand on a diffusers transformer: it knows nothing of the library.

A site is a module whose output is reused, or a block of which the residual is. The step of a model call is the number
of timesteps before it, its lane the number of calls before it at the same timestep. Even steps are computed, and the
first call of a lane, and one after the time turns back, and a call whose inputs are of other shapes than those of the
call before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

INTERVAL = 2
TIMESTEPS = ("timestep", "timesteps", "t", "vision_timesteps", "bb_ca_time", "decoder_noise_time")


@dataclass(frozen=True)
class Stack:
    """A list of blocks of which the residuals are reused.

    path: the list's attribute in the model
    streams: arguments of a block's forward, in the order in which it returns their successors
    """

    path: str
    streams: tuple[str, ...] = ("hidden_states",)


@dataclass(frozen=True)
class Mix:
    """A linear map of a stream and of another one, whose output takes the stream's place; its change is reused.

    path: pattern of the map's path in the model
    norm: the module beside it that is given both streams, one after the other in their width
    """

    path: str
    norm: str


@dataclass(frozen=True)
class Whole:
    """All blocks of lists that follow one another as one site, with whatever the model adds between them.

    stacks: the lists; their blocks take the same streams in the same order.
    """

    stacks: tuple[Stack, ...]


Sites = tuple[Stack | Mix | Whole | str, ...]
"""Stacks of blocks, mixes of streams, stacks as a whole, and patterns of modules' paths."""


@dataclass
class Run:
    """The progress of a pipeline's run: which step and lane a model call is.

    timestep: of the last call; None before the first
    direction: whether the time goes up (positive) or down (negative); 0 before it changed
    step, lane: of the call in progress
    calls: model calls so far
    computed, reused: sites that were computed, and that were not
    memory: what the last computed call of a site gave out, with the shapes of its inputs
    started: shapes of the inputs of the last call, by model and lane
    fresh: whether sites are computed in this call
    """

    timestep: Any = None
    direction: float = 0.0
    step: int = -1
    lane: int = 0
    calls: int = 0
    computed: int = 0
    reused: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)
    started: dict[Any, Any] = field(default_factory=dict)
    fresh: bool = True

    def begin(self, model: nn.Module, timestep: Any, shapes: Any) -> None:
        """Count a model call with inputs of these shapes."""
        if self.step >= 0 and _same(timestep, self.timestep):
            self.lane += 1
        else:
            if self._turns_back(timestep):  # the next chunk of a video
                self.step, self.direction = -1, 0.0
                self.started.clear()
            self.step, self.lane, self.timestep = self.step + 1, 0, timestep
        self.calls += 1
        key = id(model), self.lane
        self.fresh = self.step % INTERVAL == 0 or self.started.get(key) != shapes
        self.started[key] = shapes

    def _turns_back(self, timestep: Any) -> bool:
        """Whether the time goes the other way than before."""
        if self.step < 0 or timestep is None:
            return False
        change = _mean(timestep) - _mean(self.timestep)
        back = change * self.direction < 0
        self.direction = self.direction or change
        return back

    def value(self, site: Any, shapes: Any, compute: Callable[[], Any]) -> Any:
        """What a site gives out at this call."""
        key = site, self.lane
        if self.fresh or key not in self.memory or self.memory[key][0] != shapes:
            self.computed += 1
            result = compute()
            self.memory[key] = shapes, _copied(result)
            return result
        self.reused += 1
        return _copied(self.memory[key][1])


@contextmanager
def counted(models: Sequence[nn.Module]) -> Iterator[Run]:
    """A run in which model calls are counted and nothing is reused."""
    with fora(models, ()) as run:
        yield run


@contextmanager
def fora(models: Sequence[nn.Module], sites: Sites) -> Iterator[Run]:
    """Reuse at these sites of the models while the block lasts."""
    run = Run()
    with ExitStack() as stack:
        for number, model in enumerate(models):
            stack.enter_context(_forward(model, _begins(model, run)))
            for site in sites:
                if isinstance(site, Whole):
                    for block, forward in _whole(model, site, (number, site), run):
                        stack.enter_context(_forward(block, forward))
                    continue
                if isinstance(site, Stack):
                    blocks: Any = model.get_submodule(site.path)
                    for depth, block in enumerate(blocks):
                        key = number, site.path, depth
                        stack.enter_context(_forward(block, _residual(block, site.streams, key, run)))
                    continue
                for path, module in list(model.named_modules()):
                    if isinstance(site, Mix):
                        if matches(path, site.path):
                            norm = model.get_submodule(f"{path.rpartition('.')[0]}.{site.norm}")
                            stack.enter_context(_changes(norm, module, (number, path), run))
                    elif matches(path, site):
                        stack.enter_context(_forward(module, _reused(module, (number, path), run)))
        yield run
    run.memory.clear()
    run.timestep = None


def matches(path: str, pattern: str) -> bool:
    """Whether a path has the pattern's parts, where * stands for one part."""
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _begins(model: nn.Module, run: Run) -> Callable[..., Any]:
    own, signature = model.forward, inspect.signature(model.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        name = next((name for name in TIMESTEPS if name in given), None)
        run.begin(model, given[name] if name is not None else None, _shapes(given))
        return own(*args, **kwargs)

    return forward


def _reused(module: nn.Module, key: Any, run: Run) -> Callable[..., Any]:
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run.value(key, _shapes((args, kwargs)), lambda: own(*args, **kwargs))

    return forward


@contextmanager
def _changes(norm: nn.Module, linear: Any, key: Any, run: Run) -> Iterator[None]:
    given: list[Tensor] = []
    own_norm, own = norm.forward, linear.forward

    def normed(both: Tensor) -> Tensor:
        given[:] = [both[..., : linear.out_features]]
        return own_norm(both)

    def forward(both: Tensor) -> Tensor:
        outputs: list[Tensor] = []

        def change() -> Tensor:
            outputs.append(own(both))
            return outputs[0] - given[0]

        part = run.value(key, _shapes((both,)), change)
        return outputs[0] if outputs else given[0] + part

    with _forward(norm, normed), _forward(linear, forward):
        yield


def _residual(block: nn.Module, streams: Sequence[str], key: Any, run: Run) -> Callable[..., Any]:
    own, signature = block.forward, inspect.signature(block.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        before = [given[name] for name in streams]
        kept = [stream.clone() for stream in before]
        outputs: list[Any] = []

        def residuals() -> list[Tensor | None]:
            outputs.append(own(*args, **kwargs))
            output = outputs[0]
            after = output if isinstance(output, tuple) else (output,)
            pairs = zip(after[: len(kept)], kept, strict=True)
            return [None if new is None else new - old for new, old in pairs]  # a last block may drop its texts

        parts = run.value(key, _shapes(before), residuals)
        for output in outputs:
            return output
        after = [None if part is None else old + part for old, part in zip(before, parts, strict=True)]
        return tuple(after) if len(after) > 1 else after[0]

    return forward


def _whole(model: nn.Module, site: Whole, key: Any, run: Run) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """The forwards of a stack as a whole: skipped, its blocks hand through, and the last adds to what the first got."""
    lists: list[tuple[Any, Stack]] = [(model.get_submodule(stack.path), stack) for stack in site.stacks]
    blocks = [(block, stack.streams) for group, stack in lists for block in group]
    start: list[Tensor] = []

    def forward_of(index: int) -> Callable[..., Any]:
        block, streams = blocks[index]
        own, signature = block.forward, inspect.signature(block.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            before = [given[name] for name in streams]
            if index == 0:
                start[:] = [stream.clone() for stream in before]
            shapes = _shapes(start)
            known = run.memory.get((key, run.lane))
            is_computed = run.fresh or known is None or known[0] != shapes
            output = own(*args, **kwargs) if is_computed else tuple(stream.clone() for stream in before)
            if index + 1 < len(blocks):
                return output[0] if not is_computed and len(before) == 1 else output
            after = output if isinstance(output, tuple) else (output,)
            pairs = list(zip(after, start, strict=True))
            parts = run.value(key, shapes, lambda: [None if new is None else new - old for new, old in pairs])
            if is_computed:
                return output
            total = [None if part is None else old + part for old, part in zip(start, parts, strict=True)]
            return total[0] if len(total) == 1 else tuple(total)

        return forward

    return [(block, forward_of(index)) for index, (block, _) in enumerate(blocks)]


@contextmanager
def _forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Put a forward on a module, and what was there back at the end."""
    missing = object()
    before = vars(module).get("forward", missing)
    vars(module)["forward"] = function
    try:
        yield
    finally:
        if before is missing:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _mean(timestep: Any) -> float:
    return float(torch.as_tensor(timestep, dtype=torch.float64).mean())


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_copied, value))
    return value


def _shapes(value: Any) -> Any:
    """The shapes of the first tensors among arguments."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    return {name: _shapes(part) for name, part in value.items()} if isinstance(value, dict) else None
