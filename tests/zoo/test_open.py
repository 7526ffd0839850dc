"""Models by name: what is read of a pipeline for a plan, and why one cannot be loaded, in a sentence."""

import pytest
import torch
from support.pipelines import PIPELINES, pipeline
from support.tiny import TINY

import forecache as fc
from forecache.zoo.open import check_name, open_source, open_structure


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    kind, _ = PIPELINES["Wan 2.1"]
    pipeline(kind, TINY["Wan 2.1"].model()).save_pretrained(folder)
    return folder


def test_a_structure_has_no_weights_and_costs_what_the_model_costs(wan, monkeypatch):
    for weights in (wan / "transformer").glob("*.safetensors"):
        weights.unlink()  # they are not read
    structure = open_structure(str(wan))
    assert all(parameter.is_meta for parameter in structure.transformer.parameters())
    plan = fc.fora(2).plan(fc.grid(structure, 4))
    model = TINY["Wan 2.1"].model()
    own = fc.fora(2).plan(fc.grid(model, 4))
    assert (plan.rows, plan.grid.sites) == (own.rows, own.grid.sites)
    assert "FlowMatchEulerDiscreteScheduler" in plan.grid.scheduler
    sizes = {"height": 64, "width": 64, "frames": 5}
    assert plan.cost(structure, **sizes) == own.cost(model, **sizes)


def test_a_plan_of_a_structure_runs_on_the_model(wan):
    plan = fc.fora(2).plan(fc.grid(open_structure(str(wan)), 8))
    model = TINY["Wan 2.1"].model()
    with fc.apply(model, plan) as session, torch.no_grad():
        TINY["Wan 2.1"].generate(model)
    assert session.stats.skipped


@pytest.mark.parametrize("opens", [open_source, open_structure])
def test_a_name_with_a_typo_is_refused_with_the_nearest(opens):
    with pytest.raises(fc.errors.InputError, match=r"no model 'digts': did you mean 'digits'\? There are 'digits'"):
        opens("digts")


def test_a_name_is_checked_without_loading_anything():
    check_name("owner/name")
    check_name("tiny", "tiny")
    with pytest.raises(fc.errors.InputError, match=r"There is no model 'nothing at all': give 'digits'"):
        check_name("nothing at all")


class LocalEntryNotFoundError(OSError):
    """As huggingface_hub has it."""


@pytest.mark.parametrize(
    ("offline", "error", "sentence"),
    [
        (True, LocalEntryNotFoundError("see the stack trace above"), r"HF_HUB_OFFLINE is set.*unset it once, or give"),
        (
            False,
            OSError("We couldn't connect to 'https://huggingface.co'"),
            r"the hub cannot be reached.*folder",
        ),
        (False, OSError("Repository not found"), r"pipeline: Repository not found"),
    ],
)
def test_the_hub_fails_in_a_sentence(monkeypatch, offline, error, sentence):
    import diffusers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")

    def fails(*_, **__):
        raise error

    for name in ("from_pretrained", "load_config"):
        monkeypatch.setattr(diffusers.DiffusionPipeline, name, fails)
    for opens in (open_source, open_structure):
        with pytest.raises(fc.errors.InputError, match=sentence) as caught:
            opens("owner/name")
        assert "stack trace" not in str(caught.value)


def test_a_pipeline_without_a_transformer_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    with pytest.raises(fc.errors.InputError, match=r"a StableDiffusionPipeline, which has no transformer to plan for"):
        open_structure(str(tmp_path))
