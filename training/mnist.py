"""MNIST for the digits models: the central 24 x 24 pixels, scaled to [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from forecache.errors import MissingExtraError
from forecache.zoo.classifier import SIZE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (count, 1, 24, 24) float32 in [-1, 1] and labels (count,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load(path: str | Path | None = None) -> tuple[Split, Split]:
    """The (train, test) splits, from an ``mnist.npz`` or, without a path, from the hub dataset ``ylecun/mnist``.

    The ``.npz`` holds ``x_train (60000, 28, 28) uint8``, ``y_train``, ``x_test (10000, 28, 28)``, ``y_test``.
    """
    if path is None:
        arrays = _from_hub()
    else:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return _split(arrays["x_train"], arrays["y_train"]), _split(arrays["x_test"], arrays["y_test"])


def _split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    edge = (pixels.shape[1] - SIZE) // 2
    crop = torch.from_numpy(pixels[:, edge : edge + SIZE, edge : edge + SIZE].copy())
    return Split(crop.float().div_(127.5).sub_(1)[:, None], torch.from_numpy(labels.astype(np.int64)))


def _from_hub() -> dict[str, np.ndarray]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("datasets", "train", "downloading MNIST") from error
    arrays: dict[str, np.ndarray] = {}
    for name in ("train", "test"):
        rows = load_dataset("ylecun/mnist", split=name)
        arrays[f"x_{name}"] = np.stack([np.asarray(image) for image in rows["image"]])
        arrays[f"y_{name}"] = np.asarray(rows["label"])
    return arrays
