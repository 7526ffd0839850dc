"""Who a model is: the same in another dtype or on another device, another with other weights."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from support.small import small_dit, small_facebook_dit

import forecache as fc
from forecache.models.fingerprint import describe_scheduler, fingerprint
from forecache.parts.identity import is_same, scheduler_differences

MODELS = {"diffusers": small_dit, "facebook": small_facebook_dit}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_is_the_same_in_another_dtype(name, dtype):
    model = MODELS[name]()
    before = fingerprint(model)
    assert is_same(before, fingerprint(model.to(dtype)))
    assert is_same(fingerprint(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_data_is_the_same(name):
    model = MODELS[name]()
    before = fingerprint(model)
    assert is_same(before, fingerprint(model.to("meta")))
    assert is_same(fingerprint(model), before)


def test_reading_a_fingerprint_changes_nothing_and_always_gives_the_same(dit):
    before = {name: each.clone() for name, each in dit.state_dict().items()}
    assert fingerprint(dit) == fingerprint(dit)
    assert all(torch.equal(each, before[name]) for name, each in dit.state_dict().items())


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_model_with_other_weights_is_another_one(seed):
    assert not is_same(fingerprint(small_dit(seed=0)), fingerprint(small_dit(seed=seed)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_trained_further_is_another_one(dit, dtype):
    """Weights that moved by a tenth of their spread, in another dtype."""
    before = fingerprint(dit)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    assert not is_same(before, fingerprint(dit.to(dtype)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_of_another_depth_or_class_is_another_one_even_without_data(device):
    prints = [fingerprint(model.to(device)) for model in (small_dit(2), small_dit(3), small_facebook_dit())]
    assert not is_same(prints[0], prints[1])
    assert not is_same(prints[1], prints[2])


def test_a_model_of_another_width_is_another_one_even_without_data():
    narrow, wide = torch.nn.Linear(4, 3, device="meta"), torch.nn.Linear(4, 5, device="meta")
    assert not is_same(fingerprint(narrow), fingerprint(wide))


def test_a_model_of_few_or_no_parameters_has_a_fingerprint():
    assert is_same(fingerprint(torch.nn.Identity()), fingerprint(torch.nn.Identity()))
    assert not is_same(fingerprint(torch.nn.Identity()), fingerprint(torch.nn.Linear(1, 1)))
    empty = torch.nn.ParameterList([torch.empty(0, 3)])
    assert is_same(fingerprint(empty), fingerprint(empty))


@pytest.mark.parametrize("other", ["", "0123456789abcdef:"])
def test_what_is_not_known_is_not_held_against_a_model(other):
    known = "0123456789abcdef:0.5,-0.25"
    assert is_same(known, other)
    assert is_same(other, known)


@pytest.mark.parametrize("other", ["0123456789abcdef:0.5", "0123456789abcdef:0.5,x", "0123456789abcdef:0.5,,1", "?"])
def test_a_fingerprint_that_somebody_changed_is_another_models(other):
    known = "0123456789abcdef:0.5,-0.25"
    assert not is_same(known, other)
    assert not is_same(other, known)


def test_the_grid_of_a_pipeline_knows_weights_and_scheduler(pipe):
    grid = fc.grid(pipe, 4)
    assert grid.fingerprint == fingerprint(pipe.transformer) == fc.grid(pipe.transformer, 8).fingerprint
    assert grid.scheduler == describe_scheduler(pipe.scheduler) != ""
    assert fc.grid(pipe.transformer, 4).scheduler == ""


def test_the_settings_in_which_schedulers_differ_are_named():
    ddim = describe_scheduler(DDIMScheduler())
    assert scheduler_differences(ddim, describe_scheduler(DDIMScheduler())) == []
    other = describe_scheduler(DDIMScheduler(steps_offset=1, prediction_type="v_prediction"))
    assert scheduler_differences(ddim, other) == [
        "prediction_type: epsilon, not v_prediction",
        "steps_offset: 0, not 1",
    ]
    assert scheduler_differences(other, ddim)[1] == "steps_offset: 1, not 0"
    solver = scheduler_differences(ddim, describe_scheduler(DPMSolverMultistepScheduler()))
    assert "class: DDIMScheduler, not DPMSolverMultistepScheduler" in solver
    assert "solver_order: None, not 2" in solver


def test_a_run_of_a_scheduler_does_not_make_it_another(pipe):
    before = describe_scheduler(pipe.scheduler)
    pipe([1], num_inference_steps=3, output_type="np")
    assert describe_scheduler(pipe.scheduler) == before


def test_a_scheduler_that_was_saved_and_loaded_is_the_same(tmp_path):
    scheduler = DDIMScheduler(trained_betas=[0.1, 0.2], steps_offset=1)
    scheduler.save_pretrained(tmp_path)
    again = DDIMScheduler.from_pretrained(tmp_path)
    assert scheduler_differences(describe_scheduler(scheduler), describe_scheduler(again)) == []


def test_a_scheduler_that_is_not_known_differs_in_nothing():
    assert describe_scheduler(None) == ""
    assert describe_scheduler(object()) == ""
    assert scheduler_differences("", describe_scheduler(DDIMScheduler())) == []


@pytest.mark.parametrize("words", ["{", "3", "[1]", "null", "[" * 100_000])
def test_a_description_that_somebody_changed_differs_and_raises_nothing(words):
    assert scheduler_differences(describe_scheduler(DDIMScheduler()), words)
    assert scheduler_differences(words, describe_scheduler(DDIMScheduler()))
