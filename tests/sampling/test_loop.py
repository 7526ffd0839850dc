"""The sampling loop: what a sample depends on, and what it does not."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from support import reference
from support.small import small_dit

import forecache as fc
from forecache.models import find
from forecache.sampling.device import as_dtype
from forecache.sampling.loop import noise, sample, to_images
from forecache.zoo.open import open_source


def test_noise_depends_on_seed_and_index_alone():
    together = noise((1, 4, 4), seed=3, indices=range(4))
    alone = noise((1, 4, 4), seed=3, indices=[2])
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(noise((1, 4, 4), seed=4, indices=[2]), alone)
    assert not torch.equal(together[0], together[1])


def test_it_is_ddim_with_guidance(dit):
    """Against a loop written out by hand: v-prediction on linear betas, timesteps offset by one, guidance 1.5."""
    y = torch.tensor([1, 2, 10, 10])
    start = noise((4, 8, 8), 5, range(2))
    expected = reference.ddim(lambda x, t, step: dit(x, timestep=t, class_labels=y).sample, start, 6, guidance=1.5)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    got = sample(dit, scheduler, [1, 2], num_steps=6, guidance=1.5, seed=5)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("version", "word"), [("0.39.0", "torch_dtype"), ("0.40.0", "dtype"), ("1.0.0.dev0", "dtype")])
def test_diffusers_is_told_the_dtype_by_the_word_that_it_knows(monkeypatch, version, word):
    monkeypatch.setattr("diffusers.__version__", version)
    assert as_dtype(torch.bfloat16) == {word: torch.bfloat16}


def test_a_model_is_loaded_in_the_dtype_that_is_asked_for():
    for name in ("digits", "digits-text"):
        target = open_source(name, "cpu", "bfloat16").target
        assert find.find(target).dtype == torch.bfloat16


def test_batches_do_not_change_the_samples(dit):
    """Within float rounding: matrix products of other shapes may add up in another order."""
    scheduler = DDIMScheduler()
    whole = sample(dit, scheduler, [1, 2, 3], num_steps=4, seed=1)
    parts = [sample(dit, scheduler, [label], num_steps=4, seed=1, indices=[i]) for i, label in enumerate([1, 2, 3])]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_without_guidance_the_batch_is_not_doubled(dit):
    seen = []
    dit.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    sample(dit, DDIMScheduler(), [1, 2], num_steps=2, guidance=1.0)
    assert seen == [2, 2]


@pytest.mark.parametrize(("kind", "calls"), [(DPMSolverMultistepScheduler, 5), (HeunDiscreteScheduler, 9)])
def test_any_scheduler_runs_and_a_plan_counts_its_calls(dit, kind, calls):
    plan = fc.fora(2).plan(fc.grid(dit, calls))
    with fc.apply(dit, plan) as session:
        out = sample(dit, kind(), [1], num_steps=5)
    assert session.stats.calls == calls
    assert out.isfinite().all()


@pytest.mark.parametrize("labels", [[10], [-1], []])
def test_unknown_labels_are_refused(labels):
    with pytest.raises(fc.errors.InputError, match="classes 0 to 9"):
        sample(small_dit(1), DDIMScheduler(), labels, num_steps=2)


def test_pixels_become_images():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])
    assert to_images(pixels).tolist() == [0, 0, 0.5, 1, 1]
