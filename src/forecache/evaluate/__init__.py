"""Quality of images: pure functions on images or features, usable without the rest of the library."""

from forecache.evaluate.frechet import Moments, frechet_distance
from forecache.evaluate.images import psnr

__all__ = ["Moments", "frechet_distance", "psnr"]
