"""Module sites: any module whose output is one tensor, found by its path. Works on every torch model.

Only the module is skipped; norms and modulation around it still run. For facebookresearch/DiT (``blocks.*.attn``,
``blocks.*.mlp``, gates outside) this is exactly the papers' arithmetic.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import ModelError, RunError, SiteError
from forecache.models.blocks import BlockHandler, Forward, OpenSpans, SiteHandler
from forecache.models.examples import example_of
from forecache.models.families.whole_blocks import row_of
from forecache.models.layout import Layout
from forecache.models.writes import Writes
from forecache.parts.grid import Site

DIT_PATTERNS = ("blocks.*.attn", "blocks.*.mlp")

TOKENWISE = ("mlp", "ff", "ffn", "feed_forward")
"""Names of modules that treat every token by itself."""


def fits(model: nn.Module) -> bool:
    """Whether the model has the layout of facebookresearch/DiT, so that DIT_PATTERNS are its branches."""
    block = next(iter(getattr(model, "blocks", ())), None)
    return all(isinstance(getattr(block, name, None), nn.Module) for name in ("attn", "mlp", "adaLN_modulation"))


def has(model: nn.Module, path: str) -> bool:
    """Whether a module has this path."""
    try:
        return bool(path) and isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def matching(model: nn.Module, patterns: Sequence[str]) -> Layout:
    """The layout of all modules whose paths match a pattern, part by part: ``blocks.*.attn`` for ``blocks.3.attn``."""
    if isinstance(patterns, str):
        patterns = [patterns]
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            raise SiteError(
                f"The site pattern {pattern!r} matches no module of {type(model).__name__}; its modules are "
                f"{', '.join(_shapes(paths)[:12])}."
            )
    matches = [path for path in paths if any(_matches(path, pattern) for pattern in patterns)]
    return named(model, tuple(Site(path, _depth(path), path.rsplit(".", 1)[-1]) for path in matches))


def named(model: nn.Module, sites: tuple[Site, ...]) -> Layout:
    """The layout of modules at the sites' names."""
    names = {site.name for site in sites}
    for name in names:
        parents = [name[:i] for i, sign in enumerate(name) if sign == "."]
        if inside := names.intersection(parents):
            raise SiteError(f"Site {name} lies inside site {inside.pop()}: cache one of the two.")

    def forwards(
        on_site: SiteHandler, on_block: BlockHandler | None = None, opened: OpenSpans | None = None, /
    ) -> Iterable[tuple[nn.Module, Forward]]:
        for index, site in enumerate(sites):
            module = model.get_submodule(site.name)
            yield module, _forward(on_site, index, _only_tensor(module.forward, site.name), site.name)

    tokenwise = frozenset(index for index, site in enumerate(sites) if site.kind in TOKENWISE)
    row, known = row_of(model), example_of(model)
    return Layout(
        model,
        sites,
        forwards,
        functools.partial(known, model) if known is not None else None,
        tokenwise,
        rising=row is not None and row.rising,
        guided=known is None or known.guided,
    )


def census(model: nn.Module, sites: Sequence[Site]) -> str:
    """The number of modules of every kind of site: ``blocks.*.attn x 12, blocks.*.mlp x 12``."""
    paths = [path for path, _ in model.named_modules() if path]
    patterns = _shapes([site.name for site in sites])
    return ", ".join(f"{pattern} x {sum(_matches(path, pattern) for path in paths)}" for pattern in patterns)


def _forward(on_site: SiteHandler, site: int, own: Callable[..., Tensor], name: str) -> Forward:
    writes = Writes()

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        ran = False

        def compute(*given: Any, **kwargs: Any) -> Tensor:
            nonlocal ran
            if torch.compiler.is_compiling():
                return own(*given, **kwargs)
            ran = all(map(operator.is_, given, args))  # False for some tokens of them
            tensors = writes.before(given, kwargs)
            output = own(*given, **kwargs)
            writes.after(tensors)
            return output

        output = on_site(site, compute, *args, **kwargs)
        if writes.beyond and not ran:
            raise RunError(
                f"Module {name} writes into its input, which a skipped call would not: choose modules around or inside "
                "it, or one that leaves its input as it is (inplace=False)."
            )
        return output

    return forward


def _only_tensor(forward: Forward, name: str) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def compute(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise ModelError(
                f"Module {name} returns a {type(output).__name__}; a site returns one tensor: name modules inside it."
            )
        return output

    return compute


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _depth(path: str) -> int:
    return next((int(part) for part in path.split(".") if part.isdigit()), 0)


def _shapes(paths: Sequence[str]) -> list[str]:
    """Paths with numbers as stars, without duplicates: blocks.*.attn, blocks.*.mlp, ..."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in path.split(".")) for path in paths))
