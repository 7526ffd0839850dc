"""Inception-v3 of 2015, the network of FID, from torch-fidelity, whose outputs equal the TensorFlow graph's.

B images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.errors import InputError, MissingExtraError

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
DIGEST = "6726825d"
SPATIAL_CHANNELS = 7
"""Channels of the spatial features, of the 192 of mixed_6/conv (seventh mixed block), as in the ADM suite."""


class Inception:
    """Images uint8 (B, 3, H, W), any size -> pool (B, 2048), spatial (B, 7 x 17 x 17 = 2023), logits (B, 1008).

    The logits are without bias, as the inception score needs them.
    """

    def __init__(self, weights: str | Path | None = None, device: str = "cpu") -> None:
        network = _network()
        self.name = _name(Path(weights)) if weights is not None else f"inception-2015-12-05-{DIGEST}"
        try:
            model: Any = network(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights, verbose=False
            )
        except OSError as error:
            raise InputError(
                f"The Inception weights cannot be downloaded: {error}. Fetch {URL} where there is a network, and give "
                "the file."
            ) from error
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{weights} does not hold the weights of Inception-v3 2015 ({URL}): {reason}") from error
        self.model, self.device = model.to(device), device
        self.spatial = torch.empty(0)
        model.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].flatten(1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        pool, logits = self.model(images.to(self.device))
        spatial, self.spatial = self.spatial, torch.empty(0)
        return {"pool": pool, "spatial": spatial.float(), "logits": logits}


def _network() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise MissingExtraError(error.name or "torch-fidelity", "eval", "The Inception extractor") from error
    except Exception as error:  # a torchvision of another torch fails in its own ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise InputError(
            f"torch-fidelity needs torchvision, which cannot be imported here ({reason}): install the torchvision that "
            "belongs to the installed torch."
        ) from error
    return FeatureExtractorInceptionV3


def _name(path: Path) -> str:
    """A name from the digest of the weights, so that features of different weights are never compared.

    Nothing in the file is executed.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There are no Inception weights at {path}; they are published at {URL}.") from None
    except Exception as error:  # a damaged or foreign file fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as weights: {reason}") from error
    return f"inception-2015-12-05-{digest}" if digest == DIGEST else f"inception-{digest}"
