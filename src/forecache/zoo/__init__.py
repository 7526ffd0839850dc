"""The reference models that ship with the package, and how they were made."""

from forecache.evaluate.extractors import register_extractor
from forecache.evaluate.reference import register_reference
from forecache.zoo import digits
from forecache.zoo.digits import Digits, load_digits, router_path, statistics_path
from forecache.zoo.digits_text import DigitsText, load_digits_text
from forecache.zoo.shapes import SHAPES, random_inputs, shaped
from forecache.zoo.tuned import tuned_folder, tuned_path

__all__ = [
    "SHAPES",
    "Digits",
    "DigitsText",
    "random_inputs",
    "load_digits",
    "load_digits_text",
    "router_path",
    "shaped",
    "statistics_path",
    "tuned_folder",
    "tuned_path",
]

register_extractor("digits", digits.open_extractor)
register_reference("digits", digits.open_reference)
