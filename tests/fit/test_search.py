"""Search: what it ranks is what sampling by hand gives, whole or interrupted, in one process or two."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from support.clip import make_clip
from support.sources import Mine

import forecache as fc
from forecache.evaluate import Moments, frechet_distance, psnr
from forecache.fit.scores import Context, Score, clip_score, frechet, psnr_to_uncached
from forecache.parts.patterns import Constraints, computed
from forecache.report import figures
from forecache.sampling.sources import Sampling
from forecache.zoo import Digits

T, LABELS = 6, [3, 1, 3]
SPACE = Constraints(T, 3, 0, 3)
PATTERNS = list(SPACE.enumerate())
HOW = Sampling(T, 1.5, 7)
CALLS = 2 * T
"""Model calls of one pattern: two batches."""


@pytest.fixture
def digits(dit):
    return Digits(dit, DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


def search(target, space=SPACE, labels=LABELS, **options):
    return fc.search(target, space, labels, **({"score": psnr_to_uncached(), "seed": 7, "batch": 2} | options))


def sampled(digits, pattern=None, method=lambda base: base):
    """The images under a pattern, in batches of two, by hand."""
    source = digits

    def images():
        return torch.cat([source.generate(LABELS[first : first + 2], HOW, first) for first in (0, 2)])

    if pattern is None:
        return images()
    plan = method(fc.explicit(compute=[i for i, sign in enumerate(pattern) if sign == "#"])).plan(fc.grid(digits, T))
    with fc.apply(digits, plan):
        return images()


def brightness():
    return Score("brightness", lambda images, context: images.mean().item(), better="lower")


def test_the_space_of_these_tests_is():
    assert PATTERNS == ["#...##", "#..#.#", "#.#.#."]


METHODS = {"reuse": lambda base: base, "taylor": lambda base: fc.taylorseer(base, 1)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_patterns_are_ranked_by_what_sampling_by_hand_gives(digits, method):
    bare = sampled(digits)
    expected = {pattern: psnr(sampled(digits, pattern, method), bare).mean().item() for pattern in PATTERNS}
    result = search(digits, method=method)
    assert {candidate.pattern: candidate.score for candidate in result.ranked} == pytest.approx(expected, rel=1e-6)
    assert [candidate.pattern for candidate in result.ranked] == sorted(
        PATTERNS, key=lambda pattern: -expected[pattern]
    )
    assert (result.size, result.exhaustive) == (len(PATTERNS), True)
    best = result.ranked[0]
    plan = method(fc.explicit(compute=computed(best.pattern))).plan(fc.grid(digits, T))
    assert (result.plan.rows, result.plan.grid) == (plan.rows, plan.grid)
    assert best.macs_ratio == plan.cost(digits).speedup
    assert f"  1  {best.pattern}  {best.score:#.4g}  {best.macs_ratio:.2f}x fewer MACs" in result.show()


def test_a_score_of_ones_own_is_given_images_and_labels(digits):
    seen = []

    def darkness(images, context):
        seen.append(context)
        return images.mean().item()

    result = search(digits, score=Score("darkness", darkness, better="lower"))
    values = {pattern: sampled(digits, pattern).mean().item() for pattern in PATTERNS}
    assert [candidate.pattern for candidate in result.ranked] == sorted(PATTERNS, key=values.get)
    assert seen == [Context(tuple(LABELS))] * len(PATTERNS)  # nothing was sampled without a cache


def test_the_plan_says_how_it_was_found_and_its_file_keeps_it(digits, tmp_path):
    result = search(digits)
    first, second = result.ranked[:2]
    provenance = result.plan.provenance
    assert provenance["method"] == f"explicit(compute={list(computed(first.pattern))})"
    assert provenance["search"] == f"best of all {len(PATTERNS)} patterns"
    assert provenance["constraints"] == "6 steps, 3 computed, 0 to 3 reused after each, never growing"
    assert provenance["score"] == f"PSNR to uncached, dB = {first.score:.6g}, higher is better"
    assert provenance["runner_up"] == f"{second.pattern} = {second.score:.6g}"
    assert provenance["samples"] == "3 of 2 classes, guidance 1.5, seed 7, batch 2, float32"
    assert provenance["forecache"] == fc.__version__
    result.plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == result.plan


def test_a_larger_space_is_sampled_and_the_file_goes_on_with_more(digits, tmp_path):
    space, scored = Constraints(T, 3, 0, 3, monotone=False), []
    options = {"path": tmp_path / "s.json", "sampling_seed": 3, "score": brightness()}
    few = search(digits, space, candidates=2, on_candidate=scored.append, **options)
    assert tuple(candidate.pattern for candidate in scored) == space.sample(2, 3)
    assert (
        few.plan.provenance["search"] == f"best of 2 of {space.count()} patterns, drawn by stick-breaking with seed 3"
    )
    assert few.plan.provenance["constraints"].endswith("in any order")
    assert not few.exhaustive
    more = search(digits, space, candidates=4, on_candidate=scored.append, **options)
    assert tuple(candidate.pattern for candidate in scored) == space.sample(4, 3)
    assert {candidate.pattern for candidate in more.ranked} == set(space.sample(4, 3))


@pytest.mark.parametrize("score", [psnr_to_uncached(), brightness()], ids=["uncached", "alone"])
def test_as_many_steps_are_run_as_were_announced(digits, score):
    announced, steps = [], []
    search(digits, score=score, on_start=announced.append, on_step=steps.append)
    assert announced == [len(steps)] == [(len(PATTERNS) + score.needs_uncached) * CALLS]


@pytest.mark.parametrize("call", [1, 2 * CALLS + 5, 3 * CALLS])
def test_an_interrupted_search_goes_on_to_the_same_result(digits, tmp_path, call):
    """Stopped in the samples without a cache, in those of the second pattern, and right before that is scored."""
    steps, announced = [], []

    def stop(_):
        steps.append(None)
        if len(steps) == call:
            raise KeyboardInterrupt

    whole = search(digits, path=tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        search(digits, path=tmp_path / "s.json", on_step=stop)
    assert (tmp_path / "s.json").exists() == (call > 1)
    result = search(digits, path=tmp_path / "s.json", on_start=announced.append)
    assert announced == [(len(PATTERNS) + (1 if call == 1 else 0)) * CALLS]
    assert (result.ranked, result.plan) == (whole.ranked, whole.plan)
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    finished = search(digits, path=tmp_path / "s.json", on_start=announced.append)
    assert announced[-1] == 0
    assert finished.ranked == whole.ranked
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["s.json", "whole.json"]


OTHERS = {
    "num_steps": {"space": Constraints(5, 3, 0, 3)},
    "v_max": {"space": Constraints(T, 3, 0, 2)},
    "monotone": {"space": Constraints(T, 3, 0, 3, monotone=False)},
    "score, better": {"score": brightness()},
    "method": {"method": lambda base: fc.taylorseer(base, 2)},
    "guidance": {"guidance": 2.0},
    "seed": {"seed": 8},
    "batch": {"batch": 3},
    "conditions": {"labels": [3, 1, 4]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_file_of_another_search_is_refused(digits, tmp_path, name):
    path = tmp_path / "s.json"
    options = {"path": path, "candidates": 1}
    search(digits, **options)
    before = path.read_bytes()
    with pytest.raises(
        fc.errors.SearchFileError, match=rf"holds another search \({name} differ\): write to another file"
    ):
        search(digits, **options, **OTHERS[name])
    assert path.read_bytes() == before


def test_the_file_of_another_model_is_refused(digits, tmp_path, facebook):
    search(digits, path=tmp_path / "s.json", candidates=1)
    for parameter in digits.transformer.parameters():
        parameter.data.mul_(1.5)
    with pytest.raises(fc.errors.SearchFileError, match=r"\(fingerprint differ\)"):
        search(digits, path=tmp_path / "s.json")
    digits.transformer.double()
    with pytest.raises(fc.errors.SearchFileError, match=r"\(dtype, fingerprint differ\)"):
        search(digits, path=tmp_path / "s.json")
    with pytest.raises(fc.errors.SearchFileError, match=r"\(model, scheduler, .*fingerprint differ\)"):
        search(Mine(facebook, T), path=tmp_path / "s.json")


def spoilt(change):
    def apply(document):
        change(document)
        return json.dumps(document)

    return apply


SPOILT = {
    "no JSON": (lambda document: "{", "is not a readable search file"),
    "a list": (lambda document: "[]", "must be an object"),
    "another format": (spoilt(lambda d: d.update(format="forecache-plan")), "its format is 'forecache-plan'"),
    "another version": (spoilt(lambda d: d.update(version=2)), "its version is 2; this forecache reads version 1"),
    "an unknown key": (spoilt(lambda d: d.update(extra=1)), "unknown keys"),
    "no candidates": (spoilt(lambda d: d.pop("candidates")), "lacks candidates"),
    "an unknown setting": (spoilt(lambda d: d["settings"].update(extra=1)), "unknown keys"),
    "a setting of another type": (spoilt(lambda d: d["settings"].update(seed="7")), "seed must be of type int"),
    "a label that is none": (spoilt(lambda d: d["settings"].update(conditions=[0, "3"])), "conditions must hold"),
    "a text for a label": (
        spoilt(lambda d: d["settings"].update(conditions=["3"])),
        r"another search \(conditions differ\)",
    ),
    "a score that is none": (spoilt(lambda d: d["candidates"][0].update(score="31")), "score must be of type float"),
    "an infinite score": (
        spoilt(lambda d: d["candidates"][0].update(score=math.inf)),
        "Infinity is not a number",
    ),
    "a pattern twice": (spoilt(lambda d: d["candidates"].append(d["candidates"][0])), "it has a pattern twice"),
    "a strange pattern": (spoilt(lambda d: d["candidates"][0].update(pattern="######")), "do not allow"),
    "no pattern": (spoilt(lambda d: d["candidates"][0].update(pattern="~")), "scores ~, which its own constraints"),
    "a ratio that is none": (spoilt(lambda d: d["candidates"][0].update(macs_ratio="2")), "macs_ratio must be of type"),
}


@pytest.mark.parametrize(("change", "sentence"), SPOILT.values(), ids=SPOILT)
def test_a_file_that_was_spoilt_is_refused(digits, tmp_path, change, sentence):
    path = tmp_path / "s.json"
    search(digits, path=path, candidates=1)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(fc.errors.SearchFileError, match=sentence):
        search(digits, path=path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_cannot_be_ranked_is_refused_with_its_pattern(digits, tmp_path, value):
    score = Score("mine", lambda images, context: value)
    with pytest.raises(
        fc.errors.InputError, match=rf"mine of the pattern {PATTERNS[0]} is .*{value}, .*: check the score"
    ):
        search(digits, score=score, path=tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()


def test_images_that_are_not_finite_are_named_as_the_cause(digits):
    for parameter in digits.transformer.proj_out_2.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(fc.errors.InputError, match=r"is nan, .*: check the images, which are not finite themselves"):
        search(digits)


def test_equal_images_are_the_best_there_is_and_hide_no_others(digits):
    """Nothing is skipped: every image is equal, which is 100 dB and not infinitely many."""
    result = search(digits, Constraints(T, T, 0, 0))
    assert [(candidate.pattern, candidate.score, candidate.macs_ratio) for candidate in result.ranked] == [
        ("######", 100.0, 1.0)
    ]
    assert "runner_up" not in result.plan.provenance
    image = torch.rand(1, 1, 4, 4)
    pair, other = torch.cat([image, image]), torch.cat([image, image + 0.1])
    assert psnr_to_uncached().of(pair, Context((), other)) == pytest.approx((100 + 20) / 2, abs=1e-3)


def test_the_frechet_score_is_the_distance_of_the_features():
    images = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    reference = Moments.of(torch.randn(50, 9, generator=torch.Generator().manual_seed(1)))
    score = frechet(lambda x: x.flatten(1), reference)
    assert score.better == "lower"
    assert score.of(images, Context(())) == frechet_distance(Moments.of(images.flatten(1)), reference) > 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip"))


def test_the_clip_score_is_the_cosine_of_each_image_and_its_text(clip):
    """On a model with random weights: the mean of single pairs, in order, not below 0. Real weights were not tried."""
    from transformers import CLIPModel

    images, prompts = torch.rand(3, 3, 20, 20), ["queen of hearts", "umbrella", "zebra"]
    single = [clip_score([text], str(clip)).of(images[i : i + 1], Context((0,))) for i, text in enumerate(prompts)]
    assert 100 > single[0] > single[1] > 10  # hundred times a cosine: one that is lost in a factor would show
    assert single[2] == 0
    score = clip_score(prompts, str(clip), batch=2)
    assert score.of(images, Context((0, 1, 2))) == pytest.approx(sum(single) / 3, abs=1e-3)
    assert CLIPModel.from_pretrained(clip).config.projection_dim == 8
    with pytest.raises(fc.errors.InputError, match="3 prompts for 2 samples"):
        score.of(images[:2], Context((0, 1)))


def test_a_clip_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(fc.errors.InputError, match=r"The CLIP model .*nowhere cannot be loaded"):
        clip_score(["a"], str(tmp_path / "nowhere")).of(torch.rand(1, 3, 8, 8), Context((0,)))


def test_the_clip_score_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(fc.errors.MissingExtraError, match=r"pip install .*\[diffusers\]'"):
        clip_score(["a"]).of(torch.rand(1, 3, 8, 8), Context((0,)))


@pytest.mark.parametrize("options", [{"labels": []}, {"batch": 0}, {"candidates": 0}], ids=str)
def test_a_search_needs_something_to_sample(digits, options):
    with pytest.raises(
        fc.errors.InputError, match="at least one condition, a batch of at least 1 and at least 1 candidate"
    ):
        search(digits, **options)


def test_a_score_has_a_direction():
    with pytest.raises(fc.errors.InputError, match="is 'higher' or 'lower', not 'best'"):
        Score("mine", lambda images, context: 0.0, better="best")


def test_a_source_of_the_users_own_is_searched(facebook, tmp_path):
    score = Score("brightness", lambda images, context: images.mean().item())
    result = search(Mine(facebook, T), score=score, path=tmp_path / "s.json")
    assert len(result.ranked) == len(PATTERNS)
    assert len({candidate.score for candidate in result.ranked}) > 1
    assert {candidate.macs_ratio for candidate in result.ranked} == {None}  # what the model is called with is not known
    assert search(Mine(facebook, T), score=score, path=tmp_path / "s.json").ranked == result.ranked


def test_the_ranking_is_drawn(digits, tmp_path):
    result = search(digits, Constraints(3, 1, 2, 2), labels=[1])
    ranked = tuple(
        fc.fit.Candidate(pattern, 30.0 - place, 2.0)
        for place, pattern in enumerate(Constraints(T, 3, 0, 3, False).enumerate())
    )
    result = replace(result, ranked=ranked, size=len(ranked))
    figures.draw_search(result, tmp_path / "all.png")
    figures.draw_search(result, tmp_path / "few.png", max_patterns=3)
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("all", "few")]
    assert heights[0] > heights[1] > 200
    lines = result.show(3).splitlines()
    assert len(lines) == 1 + 3 + 1
    assert lines[-1].strip() == f"and {len(result.ranked) - 3} more"


SCRIPT = """
import json, sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

import forecache as fc
from forecache.distributed import started
from forecache.zoo import Digits

folder, labels = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
digits = Digits(DiTTransformer2DModel.from_pretrained(folder).eval(), DDIMScheduler.from_pretrained(folder))
with started() as world:
    calls = []
    space, score = fc.parts.patterns.Constraints(6, 3, 0, 3), fc.fit.scores.psnr_to_uncached()
    for candidates in (1, 100):
        result = fc.search(digits, space, labels, score=score, seed=7, batch=2, candidates=candidates,
                           path=folder / "s.json", on_start=calls.append)
    (folder / f"world{world.rank}").write_text(json.dumps([world.size, calls, result.show()]))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(digits, tmp_path):
    """The first search draws one pattern and leaves the second process without any; the second goes on with three."""
    digits.transformer.save_pretrained(tmp_path)
    digits.scheduler.save_pretrained(tmp_path)
    whole = search(digits, path=tmp_path / "whole.json")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]
    words = [tmp_path / "script.py", tmp_path, json.dumps(LABELS)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    worlds = [json.loads((tmp_path / f"world{rank}").read_text()) for rank in (0, 1)]
    left = len(PATTERNS) - 1
    calls = [[2, 1 + math.ceil(left / 2)], [0, 1 + left // 2]]
    assert worlds == [[2, [CALLS * count for count in calls[rank]], whole.show()] for rank in (0, 1)]
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "s.json"))
    assert {row["pattern"] for row in ours["candidates"]} == {row["pattern"] for row in theirs["candidates"]}
    assert ours["settings"] == theirs["settings"]
