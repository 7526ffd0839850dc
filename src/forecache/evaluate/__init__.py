"""Quality of images: pure functions on images or features, usable without the rest of the library.

on features     frechet_distance of Moments, inception_score, precision_recall
on images       psnr, ssim, and by networks load_clip, load_lpips
by name         evaluate, with a bootstrap interval for every figure; `metrics.METRICS` lists the names
"""

from forecache.evaluate.bootstrap import Bootstrap
from forecache.evaluate.clip import Clip, load_clip
from forecache.evaluate.estimates import Difference, Estimate, difference
from forecache.evaluate.evaluation import Evaluation, evaluate
from forecache.evaluate.extractors import Extractor, extractor_names, load_extractor, register_extractor
from forecache.evaluate.features import Features, extract
from forecache.evaluate.frechet import Moments, Stream, distance_to, frechet_distance
from forecache.evaluate.images import psnr, ssim
from forecache.evaluate.imagesets import Images, ImageSet, open_images
from forecache.evaluate.inception_score import inception_score
from forecache.evaluate.measure import Against, Judges
from forecache.evaluate.neighbours import precision_recall
from forecache.evaluate.perceptual import Perceptual, load_lpips
from forecache.evaluate.reference import Reference, open_reference, prepared, reference_names, register_reference
from forecache.evaluate.tables import Row

__all__ = [
    "Moments",
    "Stream",
    "frechet_distance",
    "distance_to",
    "inception_score",
    "precision_recall",
    "psnr",
    "ssim",
    "Clip",
    "load_clip",
    "Perceptual",
    "load_lpips",
    "Images",
    "ImageSet",
    "open_images",
    "Extractor",
    "extractor_names",
    "load_extractor",
    "register_extractor",
    "Features",
    "extract",
    "Reference",
    "open_reference",
    "reference_names",
    "register_reference",
    "prepared",
    "Bootstrap",
    "Estimate",
    "Difference",
    "difference",
    "Against",
    "Judges",
    "Evaluation",
    "evaluate",
    "Row",
]
