"""What a layout is, and how forwards are put on a model and taken off again.

B batch, N tokens, D width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forecache._core import Cell, Site
from forecache._errors import PlanMismatchError
from forecache.adapters.blocks import Block, Collapse, Forward, Gate, Gates, Value
from forecache.adapters.stacked_gates import StackedGates

Example = Callable[[int], Mapping[str, Any]]
Level = Literal["branches", "blocks", "modules"]
"""What sites are: the branches of known blocks, what whole blocks add, or modules."""


@dataclass(frozen=True)
class Layout:
    """A model seen as sites, in order of execution.

    forwards: given ``value`` and ``collapse``, the (module, forward) pairs that route every site through them. example:
    inputs of one model call for a batch size, on the meta device; None where only the user knows them. tokenwise: the
    sites that treat every token by itself. received: for sites that are attentions, called as they are computed, what
    every token receives, (B, N). blocks: where sites belong to blocks, each with the index of its first site. stacked:
    the gates of some of these blocks at once; None if they are made one by one. starts: the numbers of the blocks
    before which the model does something else than hand on; a run of skipped blocks ends there. level: what sites are.
    rising: the model's time goes up while it samples. clips: its blocks clip what they hand on, in half floats.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    forwards: Callable[[Value, Collapse | None], Iterable[tuple[nn.Module, Forward]]]
    example: Example | None = None
    tokenwise: frozenset[int] = frozenset()
    received: Mapping[int, Callable[..., Tensor]] = field(default_factory=dict)
    blocks: tuple[tuple[int, Block], ...] = ()
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None
    starts: frozenset[int] = frozenset()
    level: Level = "modules"
    rising: bool = False
    clips: bool = False

    @property
    def spans(self) -> tuple[range, ...]:
        """The sites of every block."""
        return tuple(range(first, first + len(block.branches)) for first, block in self.blocks)

    @property
    def streams(self) -> tuple[tuple[int, ...], ...]:
        """The streams that every site adds to, where sites belong to blocks."""
        return tuple(branch.streams for _, block in self.blocks for branch in block.branches)

    def weights(self) -> object:
        """What tells the weights that make gates from others: another value where one has changed.

        Where they lie, their versions, whether gradients flow to them, and sums of those that are copied, because a
        write through ``.data``, as by peft's merging, shows nowhere else.
        """
        found = [each for _, block in self.blocks for each in block.weights()]
        copied = [each for _, block in self.blocks if block.copies for each in block.weights()]
        places = [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in found]
        return places, _is_trained(copied), _sums(copied)

    def gates(self, numbers: Iterable[int]) -> Gates:
        """The gates of these blocks, from one batched product where the family has one and the modules allow it."""
        blocks = [self.blocks[number][1] for number in numbers]
        copied = [each for block in blocks if block.copies for each in block.weights()]
        if self.stacked is None or _is_trained(copied):
            return _one_by_one(blocks)
        return self.stacked([block.module for block in blocks]) or _one_by_one(blocks)

    def gates_of(self, runs: Iterable[range]) -> dict[tuple[int, int], Gates]:
        """The gates of runs of blocks, by first and last block; weights that have to be copied are copied once."""
        found = list(runs)
        numbers = sorted({number for run in found for number in run})
        whole = self.gates(numbers)
        if not isinstance(whole, StackedGates):
            return {(run.start, run.stop - 1): self.gates(run) for run in found}
        return {(run.start, run.stop - 1): whole.part(numbers.index(run.start), len(run)) for run in found}

    def check_tokens(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Raises PlanMismatchError if a plan computes some tokens of a site where this model cannot."""
        number = {site.name: index for index, site in enumerate(self.sites)}
        for index, row in enumerate(rows):
            chosen = [cell.tokens for cell in row if cell.tokens is not None]
            name = self.sites[index].name
            if chosen and index not in self.tokenwise:
                possible = ", ".join(dict.fromkeys(self.sites[each].kind for each in sorted(self.tokenwise)))
                raise PlanMismatchError(
                    f"The plan computes some tokens of {name}, which does not treat every token by itself: partial "
                    f"cells are for sites of the kinds {possible or '(none in this model)'}."
                )
            scored = {number[each.site] for each in chosen if each.importance == "attention"}
            if unknown := sorted(scored - set(self.received)):
                raise PlanMismatchError(
                    f"The plan ranks tokens by the attention of {self.sites[unknown[0]].name}, which forecache cannot "
                    f"see in {type(self.model).__name__}: use importance='attn_norm'."
                )


def _is_trained(weights: Iterable[Tensor]) -> bool:
    """Whether a gradient has to reach the weights themselves."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in weights)


def _sums(weights: Iterable[Tensor]) -> list[float]:
    """The sum of every weight, read at once from each device."""
    found: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for each in weights:
            if type(each) in (Tensor, nn.Parameter) and not each.is_meta:
                found.setdefault(each.device, []).append(each.sum(dtype=torch.float32))
        return [number for sums in found.values() for number in torch.stack(sums).tolist()]


def _one_by_one(blocks: Sequence[Block]) -> Gates:
    if all(branch.gate is None for block in blocks for branch in block.branches):
        ones = [1.0 for block in blocks for _ in block.branches]
        return lambda *_, **__: ones

    def gates(*args: Any, **kwargs: Any) -> list[Gate]:
        found: list[Gate] = []
        for block in blocks:
            condition = block.condition(*args, **kwargs)
            found.extend(1.0 if branch.gate is None else branch.gate(condition) for branch in block.branches)
        return found

    return gates


def from_blocks(
    model: nn.Module,
    blocks: Iterable[Block],
    example: Example | None = None,
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None,
    *,
    starts: Iterable[int] = (),
    level: Level = "branches",
    rising: bool = False,
    clips: bool = False,
) -> Layout:
    """The layout of a stack of blocks, each called with what the one before gave out, except for ``starts``.

    Sites are named ``blocks.<depth>.<kind>`` in every family.
    """
    placed: list[tuple[int, Block]] = []
    sites: list[Site] = []
    for depth, block in enumerate(blocks):
        placed.append((len(sites), block))
        sites.extend(Site(f"blocks.{depth}.{branch.kind}", depth, branch.kind) for branch in block.branches)

    def forwards(value: Value, collapse: Collapse | None = None) -> list[tuple[nn.Module, Forward]]:
        return [
            (block.module, block.forward(number, first_site, value, collapse))
            for number, (first_site, block) in enumerate(placed)
        ]

    branches = [branch for _, block in placed for branch in block.branches]
    return Layout(
        model,
        tuple(sites),
        forwards,
        example,
        frozenset(site for site, branch in enumerate(branches) if branch.tokenwise),
        {site: branch.received for site, branch in enumerate(branches) if branch.received is not None},
        tuple(placed),
        stacked,
        frozenset(starts),
        level,
        rising,
        clips,
    )


def is_named(model: object, name: str) -> bool:
    """Whether the model is of this diffusers class or a subclass; diffusers is not imported for it."""
    return any(each.__name__ == name and each.__module__.startswith("diffusers.") for each in type(model).__mro__)


@contextmanager
def mounted(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Give modules these forwards, and on exit, by whatever road, the ones they had.

    A forward is set on the instance, as accelerate's hooks do it: no module, parameter, hook or class is touched.
    """
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(replaced(module, "forward", forward))
        yield


@contextmanager
def replaced(owner: object, name: str, function: Forward) -> Iterator[None]:
    """``owner.name`` is ``function`` inside the block, set on the instance alone. Blocks may end in any order.

    A deep copy of the owner does not have it: it would go on acting for the original.
    """
    own, mark = vars(owner), vars(function)
    mark["_forecache"] = own.get(name)  # what it replaces
    own[name] = function
    if _is_copied_plainly(type(owner)):
        own.setdefault("__deepcopy__", functools.partial(_bare_copy, owner))
    try:
        yield
    finally:
        before, top = mark["_forecache"], own.get(name)
        if (above := _above(function, top)) is not None:
            vars(above)["_forecache"] = before  # a later block goes on: it will restore what we would
        elif top is function and before is None:
            own.pop(name)
        elif top is function:
            own[name] = before
        # else somebody else has put something there since: it stays
        if not any(hasattr(each, "_forecache") for each in own.values()):
            own.pop("__deepcopy__", None)


def _is_copied_plainly(kind: type) -> bool:
    """Whether copy.deepcopy makes an object of the class and gives it a copy of the state."""
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, way) is getattr(object, way) for way in ("__reduce_ex__", "__reduce__")
    )


def _bare_copy(owner: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with what our replacements have replaced."""
    kind: Any = type(owner)
    twin = memo[id(owner)] = kind.__new__(kind)
    state = {name: each for name, each in owner.__getstate__().items() if name != "__deepcopy__"}
    below = {name: _below(each) for name, each in state.items()}
    bare = copy.deepcopy({name: each for name, each in below.items() if each is not None or state[name] is None}, memo)
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(bare)
    else:
        vars(twin).update(bare)
    return twin


def _below(found: Any) -> Any:
    """What replacements of ours lie over; None for nothing."""
    while isinstance(found, FunctionType) and "_forecache" in vars(found):
        found = vars(found)["_forecache"]
    return found


def is_in_place(owner: object, name: str, function: Forward) -> bool:
    """Whether ``owner.name`` still comes to ``function``; False if what was there before it is there again.

    Wrappers around either are seen through as far as they say what they wrap.
    """
    top, before = vars(owner).get(name), vars(function).get("_forecache")
    original = getattr(type(owner), name, None)
    left, seen = [top], set[int]()
    while left:
        each = left.pop()
        if each is function:
            return True
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            marks = getattr(each, "__dict__", {})
            left += [marks.get("_forecache"), marks.get("__wrapped__"), getattr(each, "__func__", None)]
    return top is not None and id(before) not in seen and id(original) not in seen


def _above(function: Forward, top: Any) -> Any:
    """The replacement of ours that was put over ``function``, looking down from ``top``; None if there is none."""
    while top is not None and (below := getattr(top, "__dict__", {}).get("_forecache")) is not function:
        top = below
    return top


def is_mounted(module: nn.Module) -> bool:
    """Whether the module's forward is one of ours."""
    return hasattr(vars(module).get("forward"), "_forecache")
