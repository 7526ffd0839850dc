"""Scores by name."""

import pytest

import forecache as fc
from forecache.fit import scores
from forecache.sampling.sources import DiTSource
from forecache.zoo import load_digits


def test_frechet_is_for_digits_and_clip_takes_the_names_of_classes(pipe):
    with pytest.raises(fc.errors.InputError, match="only the bundled models have: use --proxy psnr, or in Python"):
        scores.by_name("frechet", DiTSource(pipe), [1])
    assert scores.by_name("frechet", load_digits(), [1]).better == "lower"
    pipe.labels = {"tench": 0, "white shark": 2}
    score = scores.by_name("clip", DiTSource(pipe), [2, 0])
    assert score.name == "CLIP score (openai/clip-vit-base-patch16, 'a photo of a white shark'...)"
    with pytest.raises(fc.errors.InputError, match="no name for class 1"):
        scores.by_name("clip", DiTSource(pipe), [2, 1])
