"""The arguments of one call of every diffusers class that forecache knows, from its config, on the meta device.

Where the config does not say how large an image is, or how long a text, it is what the class's pipeline makes by
default.
"""

from forecache.models.examples.example import Example, Latents, Scale, Size
from forecache.models.examples.table import EXAMPLES, example_of

__all__ = ["EXAMPLES", "Example", "Latents", "Scale", "Size", "example_of"]
