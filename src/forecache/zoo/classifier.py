"""The MNIST classifier that judges digits: the class of an image, and features for a Fréchet distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecache.errors import InputError
from forecache.evaluate.extractors import Extractor
from forecache.evaluate.inception import SPATIAL_CHANNELS

SIZE = 24
"""Height and width, in pixels, of the images that it is trained on: the central part of MNIST's 28 x 28."""


class DigitClassifier(nn.Module):
    """Images (B, 1, 24, 24) in [-1, 1] -> logits (B, 10); `features` gives the layer before, (B, 128)."""

    def __init__(self, width: int = 32, dimensions: int = 128) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        self.stages = nn.Sequential(stage(1, width), stage(width, 2 * width), stage(2 * width, 2 * width))
        self.project = nn.Linear(2 * width * 9, dimensions)  # 24 -> 12 -> 6 -> 3 pixels
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(dimensions, 10)

    def features(self, images: Tensor) -> Tensor:
        """The features (B, 128) of images."""
        return torch.relu(self.project(self.stages(images).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, 10) of images."""
        return self.head(self.dropout(self.features(images)))


def check_grey(images: Tensor, height: int, width: int, name: str) -> None:
    """Raises InputError unless images (B, 3, H, W) are grey and of this size. name: that of the extractor."""
    if tuple(images.shape[-2:]) != (height, width) or bool((images != images[:, :1]).any()):
        raise InputError(
            f"The {name} extractor judges grey images of {height} x {width} pixels; these are {images.shape[-2]} x "
            f"{images.shape[-1]}, or have colours."
        )


def digits_extractor(model: DigitClassifier, device: str = "cpu") -> Extractor:
    """The classifier's layers pool (128), spatial (7 of the 64 channels of its 6 x 6 stage: 252) and logits (10)."""

    @torch.no_grad()
    def of(images: Tensor) -> dict[str, Tensor]:
        check_grey(images, SIZE, SIZE, "digits")
        x = images[:, :1].to(device).float() / 127.5 - 1
        spatial = model.stages[:2](x)[:, :SPATIAL_CHANNELS].flatten(1)
        pool = model.features(x)
        return {"pool": pool, "spatial": spatial, "logits": model.head(pool)}

    return Extractor("digits", ("pool", "spatial", "logits"), of)
