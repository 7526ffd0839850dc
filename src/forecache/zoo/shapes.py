"""Models of known shapes with random weights, for timing: the cost of the real ones without a download.

The latency of a model call does not depend on the values of its weights, so these models give the same measurements as
trained ones, except of quality. Biases and modulations are random too, so that no gate of zeros switches a branch off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import InputError, MissingExtraError


@dataclass(frozen=True)
class Shape:
    """A model of a diffusers class.

    about: one line for people
    kind: the class
    config: the arguments of its constructor
    """

    about: str
    kind: str
    config: Mapping[str, Any]


def _dit(about: str, blocks: int, heads: int, head_width: int, size: int, **more: Any) -> Shape:
    config = {
        "num_layers": blocks,
        "num_attention_heads": heads,
        "attention_head_dim": head_width,
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
    }
    return Shape(about, "DiTTransformer2DModel", config | more)


PIXART = {
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}

SHAPES: Mapping[str, Shape] = {
    "tiny": _dit("28 blocks, width 128, 64 tokens: all that is not matrix products shows", 28, 4, 32, 16),
    "dit-cpu": _dit("12 blocks, width 384, 256 tokens: a DiT that a CPU can time", 12, 6, 64, 32),
    "dit-xl-2": _dit("DiT-XL/2 at 256 x 256: 28 blocks, width 1152, 256 tokens", 28, 16, 72, 32),
    "pixart-alpha": Shape(
        "PixArt-alpha at 512 x 512: 28 blocks, width 1152, 1024 tokens, 120 of the caption",
        "PixArtTransformer2DModel",
        {**_dit("", 28, 16, 72, 64).config, **PIXART},
    ),
}
CAPTION_TOKENS = 120


def shaped(name: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0) -> Any:
    """A model of a shape with random weights, in eval mode. Needs the extra ``diffusers``."""
    if name not in SHAPES:
        raise InputError(f"There is no shape {name!r}; there are {', '.join(SHAPES)}.")
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", f"The model {name}") from error
    shape = SHAPES[name]
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model: Any = getattr(diffusers, shape.kind)(**shape.config)
    return nn.Module.to(model, dtype).eval()  # diffusers' own `to` prints warnings


def random_inputs(model: Any, rows: int, seed: int = 0) -> dict[str, Any]:
    """The arguments of a model call on ``rows`` samples, without the timestep: noise, classes or captions."""
    config, device, dtype = model.config, model.device, model.dtype
    kind = _kind(model)
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    inputs: dict[str, Any] = {"hidden_states": normal(rows, config.in_channels, config.sample_size, config.sample_size)}
    if kind == "DiTTransformer2DModel":
        inputs["class_labels"] = torch.randint(config.num_embeds_ada_norm, (rows,), generator=random).to(device)
        return inputs
    inputs["encoder_hidden_states"] = normal(rows, CAPTION_TOKENS, config.caption_channels)
    inputs["encoder_attention_mask"] = torch.ones(rows, CAPTION_TOKENS, device=device, dtype=dtype)
    inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return inputs


def _kind(model: nn.Module) -> str:
    known = {shape.kind for shape in SHAPES.values()}
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__name__ in known]
    if not kinds:
        raise InputError(
            f"forecache does not know the arguments of a {type(model).__name__}; it times {', '.join(sorted(known))}."
        )
    return kinds[0]
