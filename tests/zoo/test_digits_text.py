"""The bundled text-to-image model draws what its captions ask for, through diffusers' own pipeline."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import forecache as fc
from forecache import zoo
from forecache.bench.subjects import open_subject
from forecache.sampling import sources
from forecache.sampling.loop import generators
from forecache.sampling.sources import Sampling
from forecache.zoo import captions, load_digits, load_digits_text
from forecache.zoo.digits_text import CALL, FOLDER, GUIDANCE

PAIRS = captions.pairs(100)[::6]
"""17 pairs, every digit left and right at least once."""
HOW = Sampling(20, GUIDANCE, 7)


@pytest.fixture(scope="module")
def digits():
    return load_digits_text()


@pytest.fixture(scope="module")
def source(digits):
    """The same: the model is its own source."""
    return sources.as_source(digits)


def asked(which=0):
    return [captions.captions(*pair)[which] for pair in PAIRS]


@pytest.fixture(scope="module")
def uncached(source):
    return source.generate(asked(), HOW)


def right(digits, images, pairs=PAIRS):
    """The share of images with both digits as asked."""
    return (digits.recognised(images) == torch.tensor(pairs)).all(1).float().mean().item()


def test_everything_that_ships_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {"README.md", "training.json", "reference.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert json.loads((FOLDER / "training.json").read_text())["images_seen"] > 0


def test_samples_show_what_was_asked_for(digits, uncached):
    """The card's figure is over 90 % for 1000 samples; 17 cannot be more exact than this."""
    assert right(digits, uncached) >= 0.75


@pytest.mark.parametrize("which", range(1, len(captions.TEMPLATES)))
def test_every_wording_asks_for_the_same(digits, source, which):
    chosen = slice(0, 12)
    images = source.generate(asked(which)[chosen], HOW)
    assert right(digits, images, PAIRS[chosen]) >= 0.65


def test_shuffled_captions_change_the_picture(digits, source, uncached):
    """From the same noise, other captions give other digits: those of the other captions."""
    order = [(index + 1) % len(PAIRS) for index in range(len(PAIRS))]
    images = source.generate([asked()[index] for index in order], HOW)
    assert right(digits, images) <= 0.1
    assert right(digits, images, [PAIRS[index] for index in order]) >= 0.75
    assert (images - uncached).abs().flatten(1).mean(1).min() > 0.02


def test_left_and_right_are_told_apart(digits, source):
    pairs = [(1, 0), (0, 1), (7, 2), (2, 7), (4, 6), (6, 4)]
    images = source.generate([captions.captions(*pair)[0] for pair in pairs], HOW)
    assert right(digits, images, pairs) >= 0.8


def test_the_pipeline_gives_the_sources_images(digits, uncached):
    """As a user calls it: PIL, one prompt, PixArt's own 120 tokens of padding, which a mask makes mean nothing."""
    call = {**CALL, "max_sequence_length": 120}
    pipe = digits.pipeline()
    made = pipe(asked()[3], num_inference_steps=20, guidance_scale=GUIDANCE, generator=generators(7, [3]), **call)
    assert made.images[0].size == (48, 24)
    pixels = torch.tensor(np.asarray(made.images[0])) / 255
    assert (pixels - uncached[3, 0]).abs().max() < 0.01


def test_images_depend_on_seed_and_number_alone(source, uncached):
    images = source.generate(asked()[4:6], HOW, first_index=4)
    torch.testing.assert_close(images, uncached[4:6], rtol=0, atol=1e-4)
    assert not torch.allclose(source.generate(asked()[4:6], HOW), images, atol=0.1)


def test_encode_gives_what_the_pipeline_gives_the_transformer(digits):
    text, mask = digits.encode(["A seven left of a three "])
    expected = digits.pipeline().encode_prompt(
        "a seven left of a three", do_classifier_free_guidance=False, clean_caption=False, max_sequence_length=12
    )
    torch.testing.assert_close(text, expected[0].detach(), rtol=0, atol=1e-5)
    assert torch.equal(mask, expected[1])


def test_a_plan_that_computes_everything_is_bit_identical_and_one_that_skips_is_not(source, uncached):
    grid = fc.grid(source.target, 20)
    with fc.apply(source.target, fc.explicit(skip=[]).plan(grid)):
        assert torch.equal(source.generate(asked(), HOW), uncached)
    with fc.apply(source.target, fc.fora(2).plan(grid)) as session:
        images = source.generate(asked(), HOW)
    assert session.stats.skipped == 10 * len(grid.sites)
    assert not torch.equal(images, uncached)


def test_what_a_plan_costs_is_what_was_counted(source):
    plan = fc.fora(2).plan(fc.grid(source.target, 4))
    with fc.apply(source.target, plan) as session:
        source.generate(asked()[:3], Sampling(4, GUIDANCE, 0))
    assert session.stats.peak_cache_bytes == plan.cost(source.target, inputs=source.call_inputs(6)).cache_bytes


def test_it_is_timed_at_its_own_size(source):
    """`forecache bench --model digits-text` calls it on its canvases, with captions."""
    subject = open_subject("digits-text", 2)
    assert subject.inputs["hidden_states"].shape == (2, 1, 24, 48)
    with torch.no_grad():
        out = subject.model(**{**subject.inputs, "timestep": subject.timesteps(3)[1]}, return_dict=False)[0]
    assert out.shape == (2, 1, 24, 48)
    plan = fc.fora(2).plan(subject.grid(4))
    assert subject.cost(plan).macs == plan.cost(source.target, inputs=source.call_inputs(2)).macs


def test_the_reference_is_of_every_test_image_on_both_sides(digits):
    """Each side's moments are those of the digits model, measured on the same images; the sides are independent."""
    both, one = digits.reference, load_digits().reference
    assert both.count == one.count == 10_000
    for side in (slice(0, 128), slice(128, 256)):
        torch.testing.assert_close(both.mean[side], one.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.covariance[side, side], one.covariance, rtol=1e-3, atol=1e-3)
    across, within = both.covariance[:128, 128:], both.covariance[:128, :128]
    assert across.norm() < 0.1 * within.norm()


def test_the_judge_reads_left_and_right(digits):
    """Two pictures of the digits model side by side are the two digits."""

    images = load_digits().generate([3, 8, 5], Sampling(10, 2.0, 0))
    canvases = torch.cat([images, images.roll(1, 0)], -1)
    assert digits.recognised(canvases).tolist() == [[3, 5], [8, 3], [5, 8]]
    assert torch.equal(digits.features(canvases)[:, :128], digits.features(canvases.flip(0)).flip(0)[:, :128])


def test_the_bundled_statistics_are_of_this_model(source):
    stats = fc.Statistics.load(zoo.record("digits-text").statistics_path(20))
    stats.check(fc.grid(source.target, 20))
    assert (stats.is_partial, stats.resolution, stats.origin.rows) == (False, "channel", "second")
    assert stats.origin.guidance == GUIDANCE
    assert stats.origin.seed not in range(10), "quality is measured with these seeds"
    assert set(stats.origin.conditions) == set(source.prompts)
    with pytest.raises(fc.errors.InputError, match="for 20 steps, not for 30: make them with `forecache calibrate"):
        zoo.record("digits-text").statistics_path(30)


@pytest.mark.slow
def test_loading_it_says_nothing_and_needs_no_network(tmp_path):
    code = "from forecache.zoo import load_digits_text; load_digits_text().pipeline()"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_model_takes_prompts_or_labels_and_says_so(digits):
    with pytest.raises(fc.errors.InputError, match="takes texts; 3 is not a text"):
        fc.calibrate(digits, [3], num_steps=2)
    with pytest.raises(fc.errors.InputError, match="takes class labels, 0 to 9; 'a seven' is a text"):
        fc.calibrate(load_digits(), ["a seven"], num_steps=2)


def test_calibration_measures_the_half_with_the_prompt(source):
    """The averages are those of hooks on the blocks' MLPs, over the second rows of each guidance pair."""
    prompts, seen = asked()[:3], []
    stats = fc.calibrate(source, prompts, num_steps=3, guidance=GUIDANCE, seed=2, batch=3)
    handle = source.target.transformer.transformer_blocks[2].ff.register_forward_hook(lambda *a: seen.append(a[2]))
    try:
        source.generate(prompts, Sampling(3, GUIDANCE, 2))
    finally:
        handle.remove()
    site = next(index for index, each in enumerate(stats.sites) if each.name == "blocks.2.mlp")
    expected = torch.stack([feature[3:].mean(0) for feature in seen])
    torch.testing.assert_close(stats.means[site], expected, rtol=0, atol=1e-5)
    assert stats.origin.conditions == tuple(prompts)


def test_search_and_routers_sample_prompts(source, tmp_path):
    space, prompts = fc.parts.patterns.Constraints(4, 2, 0, 3), asked()[:2]
    how = {"score": fc.fit.scores.psnr_to_uncached(), "path": tmp_path / "search.json"}
    first = fc.search(source, space, prompts, **how)
    assert fc.search(source, space, prompts, **how).ranked == first.ranked, "the file holds prompts, and is read again"
    router = fc.train_router(source, num_steps=2, iterations=1, batch=2)
    assert router.sites == tuple(site.name for site in fc.grid(source.target, 2).sites)


def test_the_command_line_takes_prompts(forecache, tmp_path):
    words = ["sample", "--model", "digits-text", "--steps", 6, "--guidance", GUIDANCE, "--method", "fora", "--compare"]
    prompts = ["--prompt", "a seven left of a three", "--prompt", "two fives"]
    code, _, err = forecache(*words, *prompts, "--out", tmp_path)
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "run.json").read_text())
    assert [each["prompt"] for each in record["images"]] == ["a seven left of a three", "two fives"]
    assert record["stats"]["peak_cache_bytes"] == record["cost_per_batch"]["cache_bytes"]
    code, _, err = forecache(*words, "--labels", "3", "--out", tmp_path)
    assert (code, "makes images of texts, such as --prompt" in err) == (1, True)
    code, _, err = forecache("sample", *prompts, "--out", tmp_path)
    assert (code, "makes images of labels, such as --labels" in err) == (1, True)
    (tmp_path / "prompts.txt").write_text("a one and a two\n\n two sixes\n")
    words = ["calibrate", "--model", "digits-text", "--steps", 2, "--out", tmp_path / "s.safetensors"]
    code, _, err = forecache(*words, "--samples", 2, "--prompts", tmp_path / "prompts.txt")
    assert (code, err) == (0, "")
    assert fc.Statistics.load(tmp_path / "s.safetensors").origin.conditions == ("a one and a two", "two sixes")
    code, _, err = forecache(*words, "--prompts", tmp_path / "none.txt")
    assert (code, "cannot be read" in err) == (1, True)
