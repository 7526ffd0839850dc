"""The bundled models, trained, one record each; and shapes: models of random weights for timing.

record = zoo.record("digits")
model, statistics, router = zoo.load_digits(), record.statistics_path(20), record.router_path(22)

Importing this package registers the judges and test sets of the models with `forecache.evaluate`.
"""

from forecache.evaluate.extractors import register_extractor
from forecache.evaluate.reference import register_reference
from forecache.zoo.bundled import DEFAULT, models, record, routers
from forecache.zoo.digits import Digits, load_digits
from forecache.zoo.digits_text import DigitsText, load_digits_text
from forecache.zoo.open import open_source
from forecache.zoo.records import Record
from forecache.zoo.shapes import SHAPES, random_inputs, shaped

__all__ = [
    "DEFAULT",
    "SHAPES",
    "Digits",
    "DigitsText",
    "Record",
    "load_digits",
    "load_digits_text",
    "models",
    "open_source",
    "random_inputs",
    "record",
    "routers",
    "shaped",
]

for _name in models():
    register_extractor(_name, record(_name).extractor)
    register_reference(_name, record(_name).reference)
