"""Levels of sites: single blocks, groups of consecutive blocks, or the whole stack as one site.

A site of these levels is a span of blocks; see `forecache.models.span`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

from forecache.errors import SiteError
from forecache.models.chain import Chain
from forecache.models.layout import Layout, Level, from_blocks
from forecache.models.reads import read_elsewhere
from forecache.models.span import Of, span
from forecache.parts.grid import Site

KINDS = {"blocks": "block", "groups": "group", "stack": "stack"}
"""The kind of sites, by level."""

NAME = re.compile(r"blocks\.\d+\.block|(?:groups\.\d+|stack(?:\.\d+)?)(\.output)?")


@dataclass(frozen=True)
class AskedSites:
    """The sites that are asked for; the default is the finest level that the model's family knows.

    patterns: paths of modules, with ``*`` for one part of a path.
    level: what sites are.
    group: number of blocks of a site at level "groups".
    of: the feature of a site of several blocks.
    blocks: path, or paths, of the lists of blocks, in order; None for what is known of the model, or found in it.
    ends: numbers of first and of last blocks that are sites of their own beside the stack.
    """

    patterns: Sequence[str] | None = None
    level: Level | None = None
    group: int | None = None
    of: Of = "residual"
    blocks: Sequence[str] | str | None = None
    ends: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.patterns is not None and self.level not in (None, "modules"):
            raise SiteError(f"sites= names modules, and level={self.level!r} takes other sites: leave one of them out.")
        if self.level is not None and self.level not in (names := get_args(Level)):
            raise SiteError(f"level= is one of {', '.join(names)}, or None for the finest; it is {self.level!r}.")
        if self.of not in get_args(Of):
            raise SiteError(f"of= is one of {', '.join(get_args(Of))}, not {self.of!r}.")
        if (self.group is None) == (self.level == "groups"):
            raise SiteError('group= is the number of blocks of a site: give level="groups" and group= together.')
        if self.blocks is not None and self.level not in ("blocks", "groups", "stack"):
            raise SiteError('blocks= names lists of blocks: give level="blocks", "groups" or "stack" with it.')
        if self.of != "residual" and self.level not in ("groups", "stack"):
            raise SiteError(f'of={self.of!r} is for level="groups" and level="stack".')
        is_pair = isinstance(self.ends, tuple) and len(self.ends) == 2 and all(type(end) is int for end in self.ends)
        if not is_pair or min(self.ends) < 0:
            raise SiteError(f"ends= is a pair of numbers of blocks, such as (1, 0); {self.ends!r} was given.")
        if self.ends != (0, 0) and self.level != "stack":
            raise SiteError(f'ends={self.ends!r} are blocks beside the stack: give level="stack" with it.')
        if self.level == "modules" and self.patterns is None:
            raise SiteError('Modules are named: sites=["blocks.*.attn", "blocks.*.mlp"].')

    @property
    def words(self) -> str:
        """What is asked for, for records: ``groups of 3 in layers``; empty for the finest."""
        lists = [self.blocks] if isinstance(self.blocks, str) else self.blocks
        parts = [
            "" if self.level in (None, "branches") else str(self.level),
            f"of {self.group}" if self.group is not None else "",
            "of outputs" if self.of == "output" else "",
            f"beside {self.ends[0]} first and {self.ends[1]} last blocks" if self.ends != (0, 0) else "",
            f"in {', '.join(lists)}" if lists else "",
            ", ".join(self.patterns or ()),
        ]
        return " ".join(filter(None, parts))

    @property
    def options(self) -> dict[str, Any]:
        """The arguments level, group, of and blocks of `forecache.grid` and of all that takes them."""
        return {"level": self.level, "group": self.group, "of": self.of, "blocks": self.blocks}


FINEST = AskedSites()
"""The finest sites that a model's family knows."""


def level_of(sites: Sequence[Site]) -> tuple[Level, Of] | None:
    """The level that names of sites tell, and what their features are; None for branches and modules."""
    match = NAME.fullmatch(sites[0].name)
    if match is None:
        return None
    levels: dict[str, Level] = {"b": "blocks", "g": "groups", "s": "stack"}
    return levels[sites[0].name[0]], "output" if match[1] else "residual"


def of_blocks(chain: Chain) -> Layout:
    """The layout of a model with a site for every block, ``blocks.<i>.block``."""
    if not all(block.inputs for block in chain.blocks):
        return _of_spans(chain, [range(depth, depth + 1) for depth in range(len(chain.blocks))], "blocks", "residual")
    how: dict[str, Any] = {
        "rising": chain.rising,
        "clips": chain.clips,
        "lists": "" if chain.is_known else chain.census,
    }
    return from_blocks(chain.model, chain.blocks, starts=chain.starts, level="blocks", **how)


def of_stack(chain: Chain, of: Of = "residual", ends: tuple[int, int] = (0, 0)) -> Layout:
    """The layout of a model with one site, ``stack``, or one for each part of it whose streams are the same.

    ends: numbers of first and of last blocks that are sites of their own. Raises SiteError where no block is left.
    """
    count, (head, tail) = len(chain.blocks), ends
    if ends != (0, 0) and (head + tail >= count or chain.reads):
        raise SiteError(
            f"{type(chain.model).__name__} has {count} blocks, and ends={ends} leaves none of them in between, or they "
            'read outputs of blocks far before them: take level="stack" as it is, or fewer blocks.'
        )
    cuts = [cut for cut in (head, count - tail) if 0 < cut < count]
    spans: list[range] = []
    for part in chain.spans():
        edges = [part.start, *(cut for cut in cuts if part.start < cut < part.stop), part.stop]
        spans += [range(first, stop) for first, stop in pairwise(edges)]
    return _of_spans(chain, spans, "stack", of)


def of_groups(chain: Chain, group: int, of: Of = "residual") -> Layout:
    """The layout of a model with a site for every ``group`` consecutive blocks, ``groups.<i>``.

    A group is shorter where streams change. Raises SiteError where blocks read the outputs of blocks inside of other
    groups.
    """
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise SiteError(f"group= is the number of blocks of one site, 1 or more; {group!r} was given.")
    return _of_spans(chain, chain.spans(group), "groups", of)


def at_depths(chain: Chain, sites: Sequence[Site]) -> Layout | None:
    """The layout whose spans begin at the depths of these sites; None where spans cannot begin there."""
    known = level_of(sites)
    if known is None:
        return None
    level, of = known
    if level == "blocks":
        return of_blocks(chain)
    depths = [site.depth for site in sites]
    ends = [*depths[1:], len(chain.blocks)]
    spans = [range(first, stop) for first, stop in zip(depths, ends, strict=True)]
    if depths[0] or not all(spans) or any(chain.forms[part[0]] != chain.forms[part[-1]] for part in spans):
        return None
    return _of_spans(chain, spans, level, of)


def _of_spans(chain: Chain, spans: Sequence[range], level: Level, of: Of) -> Layout:
    end = ".output" if of == "output" else ""
    names = {
        "blocks": "blocks.{}.block",
        "groups": "groups.{}" + end,
        "stack": ("stack" if len(spans) == 1 else "stack.{}") + end,
    }
    for number, part in enumerate(spans):
        if (read := chain.read_beyond(part)) is not None:
            raise SiteError(read_elsewhere(chain.blocks[read].module, names[level].format(number)))
    sites = [Site(names[level].format(number), part.start, KINDS[level]) for number, part in enumerate(spans)]
    pairs = zip(sites, spans, strict=True)
    blocks = [span(chain.blocks[part.start : part.stop], site, of, chain.clips, chain.is_seen) for site, part in pairs]
    return from_blocks(
        chain.model,
        blocks,
        sites=sites,
        starts=range(len(blocks)),
        level=level,
        rising=chain.rising,
        lists=chain.census if level != "blocks" or not chain.is_known else "",
    )
