"""LPIPS (Zhang et al., arXiv 1801.03924), by the authors' package: perceptual distance of two images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError, MissingExtraError

NETS = ("alex", "vgg", "squeeze")


@dataclass(frozen=True)
class Perceptual:
    """LPIPS with one trunk.

    name: of the trunk
    of: images (B, 3, H, W) in [0, 1] and their references -> distances (B,), 0 if equal
    """

    name: str
    of: Callable[[Tensor, Tensor], Tensor]


def load_lpips(net: str = "alex", weights: str | Path | None = None, device: str = "cpu") -> Perceptual:
    """LPIPS version 0.1 with the trunk ``alex`` (the authors' choice for comparisons), ``vgg`` or ``squeeze``.

    weights: a file of the trunk's ImageNet weights as torchvision publishes them (``features.*``); None downloads them

    Needs the extra ``eval``, and a torchvision that fits the installed torch.
    """
    if net not in NETS:
        raise InputError(f"LPIPS has the trunks {', '.join(NETS)}; {net!r} was asked for.")
    package = _package()
    try:
        model: Any = package.LPIPS(net=net, version="0.1", pnet_rand=weights is not None, verbose=False)
    except OSError as error:
        raise InputError(f"The weights of LPIPS ({net}) cannot be downloaded: {error}. Give them as a file.") from error
    if weights is not None:
        _fill(model.net, Path(weights), net)
    model = model.eval().to(device)

    @torch.no_grad()
    def of(images: Tensor, reference: Tensor) -> Tensor:
        if images.shape != reference.shape:
            raise InputError(
                f"LPIPS compares images pair by pair; {tuple(images.shape)} and {tuple(reference.shape)} differ."
            )
        return model(images.float().to(device), reference.float().to(device), normalize=True).flatten().cpu()

    return Perceptual(f"lpips-{net}", of)


def _package() -> Any:
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(error.name or "lpips", "eval", "LPIPS") from error
    except Exception as error:  # a torchvision of another torch fails in its own ways
        raise InputError(f"LPIPS needs torchvision, which cannot be imported here: {_line(error)}") from error
    return lpips


def _fill(trunk: Any, path: Path, net: str) -> None:
    """Put ``features.3.weight`` where the slices of lpips have layer 3."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There are no weights at {path}.") from None
    except Exception as error:  # a damaged or foreign file fails in many ways
        raise InputError(f"{path} cannot be read as weights: {_line(error)}") from error
    own = {key: f"features.{key.split('.', 1)[1]}" for key in trunk.state_dict()}
    if missing := [name for name in own.values() if name not in state]:
        raise InputError(f"{path} does not hold the weights of torchvision's {net}: it lacks {missing[0]}.")
    try:
        trunk.load_state_dict({key: state[name] for key, name in own.items()})
    except RuntimeError as error:
        raise InputError(f"{path} does not hold the weights of torchvision's {net}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
