"""`forecache search` as a user runs it."""

import json
import re

import pytest
from PIL import Image

import forecache as fc
from forecache.zoo import load_digits

TINY = ["--steps", 4, "--budget", 2, "--v-min", 0, "--samples", 3]


def written(folder):
    return json.loads((folder / "search.json").read_text())


def test_search_ranks_draws_and_writes_the_winner_and_continues(forecache, tmp_path):
    words = ["search", *TINY, "--out", tmp_path]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert "2 patterns fit the constraints: all are sampled with, 3 images each." in out
    assert "The best of all 2 patterns: explicit(compute=" in out
    scores = {each["pattern"]: each["score"] for each in written(tmp_path)["candidates"]}
    best = max(scores, key=scores.get)
    assert re.search(rf"^ +1  {re.escape(best)} +{scores[best]:#.4g}  \d\.\d\dx fewer MACs", out, re.MULTILINE)
    plan = fc.Plan.load(tmp_path / "plan.json")
    assert plan.picture() == best
    assert plan.provenance["samples"].startswith("3 of 3 classes, guidance 1.5, seed 1000")
    assert min(Image.open(tmp_path / "search.png").size) > 100
    result = fc.search(
        load_digits(),
        fc.parts.patterns.Constraints(4, 2, 0, 3),
        range(3),
        score=fc.fit.scores.psnr_to_uncached(),
        seed=1000,
    )
    assert result.plan == plan
    before = (tmp_path / "search.json").read_bytes()
    code, again, _ = forecache(*words)
    assert (code, again) == (0, out)
    assert (tmp_path / "search.json").read_bytes() == before
    code, _, err = forecache(*words, "--guidance", 2)
    assert code == 1
    assert "holds another search (guidance differ)" in err


def test_search_takes_a_forecast_any_order_and_a_sample_of_the_space(forecache, tmp_path):
    words = ["--any-order", "--order", 1, "--candidates", 2, "--sampling-seed", 5, "--proxy", "frechet"]
    code, out, _ = forecache("search", *TINY, *words, "--v-max", 2, "--out", tmp_path)
    assert code == 0
    assert "3 patterns fit the constraints: 2 of them, drawn by stick-breaking, are sampled with" in out
    assert "Fréchet distance to MNIST test" in out
    found = written(tmp_path)
    assert {each["pattern"] for each in found["candidates"]} == set(
        fc.parts.patterns.Constraints(4, 2, 0, 2, monotone=False).sample(2, 5)
    )
    assert found["settings"]["method"] == "taylorseer(explicit(compute=[0]), order=1)"
    assert fc.Plan.load(tmp_path / "plan.json").provenance["score"].endswith("lower is better")


REFUSED = {
    "nothing fits": (["--budget", 3, "--v-min", 3], "No pattern of 20 steps has 3 computed ones"),
    "another label": (["--budget", 7, "--labels", "11"], "classes 0 to 9; 11 is not"),
    "clip without names": (["--budget", 7, "--proxy", "clip"], "no name for class 0"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_searched_is_answered_with_a_sentence(forecache, tmp_path, words, sentence):
    code, _, err = forecache("search", *words, "--out", tmp_path / "out")
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
