"""Z-Image: texts of different lengths, and Omni's given images, whose tokens have a modulation of their own."""

import dataclasses

from support.families import check
from support.tiny import TINY, fraction, normal

Z_IMAGE = TINY["Z-Image"]


def test_texts_of_different_lengths_are_masked():
    texts = [normal(40, 12), normal(5, 12, seed=2)]  # padded to multiples of 32
    check(dataclasses.replace(Z_IMAGE, inputs=lambda x, t: {"x": list(x), "t": fraction(1000 - t), "cap_feats": texts}))


def test_given_images_are_modulated_as_at_time_one():
    def inputs(x, time):
        return {
            "x": [[normal(4, 1, 4, 4, seed=row), sample] for row, sample in enumerate(x)],
            "t": fraction(1000 - time),
            "cap_feats": [[normal(3, 12, seed=row), normal(5, 12)] for row in range(2)],
            "image_noise_mask": [[0, 1], [0, 1]],
            "siglip_feats": [None, None],
        }

    check(dataclasses.replace(Z_IMAGE, inputs=inputs))
