"""Layouts of published code outside of diffusers: facebookresearch/DiT's attribute names, and timm's.

A block is recognised by its parts, never by its class. B batch, N tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from forecache.errors import SiteError
from forecache.models.blocks import Block, Branch
from forecache.models.family import Family
from forecache.models.layout import Layout, from_blocks

DIT = {"norm1", "attn", "norm2", "mlp", "adaLN_modulation"}
TIMM = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks of a model; empty if it has no list of them."""
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList | nn.Sequential) else []


def refuse_skips(model: nn.Module) -> None:
    """Raises SiteError for models with long skips, as U-ViT: later blocks read the outputs of earlier ones."""
    skipping = [path for path, _ in model.named_modules() if path.endswith("skip_linear")]
    if skipping or all(hasattr(model, name) for name in ("in_blocks", "mid_block", "out_blocks")):
        raise SiteError(
            f"{type(model).__name__} has long skips, as U-ViT"
            + (f" ({skipping[0]})" if skipping else " (in_blocks, mid_block, out_blocks)")
            + ": a block there is not its input plus branches, so forecache has no default sites. Name the "
            'modules inside of blocks, for example sites=["in_blocks.*.attn", "in_blocks.*.mlp"].'
        )


def fits(model: nn.Module) -> bool:
    """Whether all blocks have exactly the parts and the arguments of DiT's, or of timm's."""
    blocks = blocks_of(model)
    return bool(blocks) and (all(map(_is_dit, blocks)) or all(map(_is_timm, blocks)))


def layout(model: nn.Module) -> Layout:
    blocks = blocks_of(model)
    make: Callable[[Any], Block] = _dit if _is_dit(blocks[0]) else _timm
    return from_blocks(model, map(make, blocks))


def _parts(block: nn.Module) -> set[str]:
    return {name for name, _ in block.named_children()}


def _arguments(block: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(type(block).forward).parameters.values())[1:]


def _is_dit(block: nn.Module) -> bool:
    """adaLN-Zero, from shift, scale, gate of attention and MLP: (x, c) -> x."""
    if _parts(block) != DIT or len(_arguments(block)) != 2:
        return False
    linears = [module for module in block.get_submodule("adaLN_modulation").modules() if isinstance(module, nn.Linear)]
    return bool(linears) and linears[-1].out_features == 6 * linears[-1].in_features


def _is_timm(block: nn.Module) -> bool:
    """Pre-norm with layer scale and drop path, (x) -> x."""
    arguments = _arguments(block)
    return _parts(block) == TIMM and all(argument.default is not inspect.Parameter.empty for argument in arguments[1:])


def _modulated(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return x_BND * (1 + scale_BD[:, None]) + shift_BD[:, None]


def _dit(block: Any) -> Block:
    """x + gate * attn(modulate(norm1(x))), then the same with the MLP (arXiv 2212.09748)."""

    def condition(x_BND: Tensor, c_BD: Tensor) -> tuple[Tensor, ...]:
        return block.adaLN_modulation(c_BD).chunk(6, dim=1)

    def attention(x_BND: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        return block.attn(_modulated(block.norm1(x_BND), c[0], c[1]))

    def mlp(x_BND: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        return block.mlp(_modulated(block.norm2(x_BND), c[3], c[4]))

    branches = (
        Branch("attn", attention, lambda c: c[2][:, None]),
        Branch("mlp", mlp, lambda c: c[5][:, None], tokenwise=True),
    )
    return Block(block, condition, branches, inputs=(_arguments(block)[0].name,))


def _timm(block: Any) -> Block:
    def condition(x_BND: Tensor, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if value is not None}

    def attention(x_BND: Tensor, c: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
        return block.drop_path1(block.ls1(block.attn(block.norm1(x_BND), *c[0], **c[1])))

    def mlp(x_BND: Tensor, _: Any) -> Tensor:
        return block.drop_path2(block.ls2(block.mlp(block.norm2(x_BND))))

    branches = Branch("attn", attention, None), Branch("mlp", mlp, None, tokenwise=True)
    return Block(block, condition, branches, inputs=(_arguments(block)[0].name,))


FAMILIES = (
    Family(
        "facebookresearch/DiT, timm",
        "blocks of norm1, attn, norm2, mlp, ...",
        "branches",
        ("attn", "mlp"),
        fits,
        layout,
        by_structure=True,
    ),
)
