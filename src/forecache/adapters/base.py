"""What a layout is, and how forwards are put on a model and taken off again.

B batch, N tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from forecache._core import Cell, Site
from forecache._errors import PlanMismatchError

Forward = Callable[..., Any]
Example = Callable[[int], Mapping[str, Tensor]]


class Value(Protocol):
    """Who decides what a site gives out: ``compute(*args, **kwargs)``, or an estimate of it."""

    def __call__(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor: ...


class Collapse(Protocol):
    """Who knows which blocks are skipped as a whole: what such a block gives out, or None if it is not skipped."""

    def __call__(
        self, block: int, x_BND: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Tensor | None: ...


Gates = Callable[..., Sequence[Tensor] | Tensor]
"""The gates of a run of blocks, one a branch, broadcastable to (B, N, D), from the arguments of a block's forward."""


@dataclass(frozen=True)
class Branch:
    """A residual branch of a block: ``x + gate(condition) * compute(x, condition)``.

    compute: norm, modulation and module, up to but without the gate; (B, N, D) -> (B, N, D). gate: the gate of the
    current step, broadcastable to (B, N, D); None where the branch is added as it is. tokenwise: every token is
    computed by itself, so that ``compute`` of some tokens (B, K, D) is possible. received: of an attention, what every
    token receives from all queries, mean over heads, (B, N), float32.
    """

    kind: str
    compute: Callable[[Tensor, Any], Tensor]
    gate: Callable[[Any], Tensor] | None
    tokenwise: bool = False
    received: Callable[[Tensor, Any], Tensor] | None = None

    def added(self, x_BND: Tensor, y_BND: Tensor, condition: Any) -> Tensor:
        """x after the branch, whose ungated output is y."""
        return y_BND + x_BND if self.gate is None else self.gate(condition) * y_BND + x_BND


@dataclass(frozen=True)
class Block:
    """A block as its branches, in order. ``condition`` makes what they share from the arguments of its forward.

    weights: the tensors that gates are made of, where those of many blocks are stacked.
    """

    module: nn.Module
    condition: Callable[..., Any]
    branches: tuple[Branch, ...]
    weights: Callable[[], Iterable[Tensor]] = tuple

    def forward(self, number: int, first_site: int, value: Value, collapse: Collapse | None) -> Forward:
        """The block's forward with every branch asked from ``value``, unless ``collapse`` speaks for the whole block.

        number: of the block. first_site: the index of branch 0.
        """

        @functools.wraps(self.module.forward)
        def forward(x_BND: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if collapse is not None and (given := collapse(number, x_BND, args, kwargs)) is not None:
                return given
            condition = self.condition(x_BND, *args, **kwargs)
            for site, branch in enumerate(self.branches, first_site):
                y_BND = value(site, branch.compute, x_BND, condition)
                x_BND = branch.added(x_BND, y_BND, condition)
            return x_BND

        return forward


@dataclass(frozen=True)
class Layout:
    """A model seen as sites, in order of execution.

    forwards: given ``value`` and ``collapse``, the (module, forward) pairs that route every site through them. example:
    inputs of one model call for a batch size, on the meta device; None where only the user knows them. tokenwise: the
    sites that treat every token by itself. received: for sites that are attentions, called as they are computed, what
    every token receives, (B, N). blocks: where sites are the branches of a stack of blocks, each with the index of its
    first site. stacked: the gates of some of these blocks at once; None if they are made one by one.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    forwards: Callable[[Value, Collapse | None], Iterable[tuple[nn.Module, Forward]]]
    example: Example | None = None
    tokenwise: frozenset[int] = frozenset()
    received: Mapping[int, Callable[..., Tensor]] = field(default_factory=dict)
    blocks: tuple[tuple[int, Block], ...] = ()
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None

    @property
    def spans(self) -> tuple[range, ...]:
        """The sites of every block."""
        return tuple(range(first, first + len(block.branches)) for first, block in self.blocks)

    def weights(self) -> tuple[tuple[int, int], ...]:
        """Where the weights that make gates lie, and their versions: another value where one has changed."""
        found = (each for _, block in self.blocks for each in block.weights())
        return tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in found)

    def gates(self, numbers: Iterable[int]) -> Gates:
        """The gates of these blocks, from one batched product where the family has one and the modules allow it."""
        blocks = [self.blocks[number][1] for number in numbers]
        made = self.stacked([block.module for block in blocks]) if self.stacked is not None else None
        return made or functools.partial(_one_by_one, blocks)

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


def _one_by_one(blocks: Sequence[Block], x_BND: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    gates = []
    for block in blocks:
        condition = block.condition(x_BND, *args, **kwargs)
        one = x_BND.new_ones(1)
        gates.extend(one if branch.gate is None else branch.gate(condition) for branch in block.branches)
    return gates


def from_blocks(
    model: nn.Module,
    blocks: Iterable[Block],
    example: Example,
    stacked: Callable[[Sequence[nn.Module]], Gates | None] | None = None,
) -> Layout:
    """The layout of a stack of blocks, each called with what the one before gave out.

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
    tokenwise = frozenset(site for site, branch in enumerate(branches) if branch.tokenwise)
    received = {site: branch.received for site, branch in enumerate(branches) if branch.received is not None}
    return Layout(model, tuple(sites), forwards, example, tokenwise, received, tuple(placed), stacked)


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
    """``owner.name`` is ``function`` inside the block, set on the instance alone. Blocks may end in any order."""
    own, mark = vars(owner), vars(function)
    mark["_forecache"] = own.get(name)  # what it replaces
    own[name] = function
    try:
        yield
    finally:
        before = mark["_forecache"]
        if (above := _above(function, own.get(name))) is not None:
            vars(above)["_forecache"] = before  # a later block goes on: it will restore what we would
        elif before is None:
            own.pop(name, None)
        else:
            own[name] = before


def _above(function: Forward, top: Any) -> Any:
    """The replacement of ours that was put over ``function``, looking down from ``top``; None if there is none."""
    while top is not None and (below := getattr(top, "__dict__", {}).get("_forecache")) is not function:
        top = below
    return top


def is_mounted(module: nn.Module) -> bool:
    """Whether the module's forward is one of ours."""
    return hasattr(vars(module).get("forward"), "_forecache")
