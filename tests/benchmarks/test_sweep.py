"""The sweep over diffusers' pipelines: cheap rows are right, its checks find faults, and every class has a row."""

import importlib
import json
import sys
from pathlib import Path

import diffusers
import pytest
import torch

import forecache as fc

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def sweep(monkeypatch):
    """Imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("pipelines", "sweep", "common"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "variant", "level", "followed"),
    [
        ("DiTPipeline", "guided", "branches", []),
        ("FluxPipeline", "default", "branches", []),
        ("FluxPipeline", "batch of two", "branches", []),  # one text for two images
        ("WanPipeline", "guided", "branches", []),
        ("StableDiffusion3Pipeline", "batch of two", "branches", []),
        ("SanaPipeline", "batch of two", "branches", []),
        ("Lumina2Pipeline", "default", "branches", ["lanes of 2"]),
        ("CogView4Pipeline", "guided", "modules", ["sites"]),
    ],
)
def test_a_row_is_right(sweep, name, variant, level, followed):
    """All-computed bit for bit, FORA as by hand, counted, repeated, and nothing left."""
    (row,) = sweep("pipelines.rows").rows(name, [variant])
    assert (row.verdict, row.reason, row.level, row.followed) == ("right", "", level, followed)
    assert row.numbers["computed"] > 0 < row.numbers["skipped"]


@pytest.fixture
def subject(sweep):
    build, cases = sweep("pipelines.build"), sweep("pipelines.cases")
    return build.subject("DiTPipeline", cases.CASES["DiTPipeline"], "default")


def checked(sweep, subject):
    check = sweep("pipelines.check")
    row = check.Row("DiTPipeline", "default")
    check.check(subject, row)
    return row.verdict, row.reason[:3]


def test_a_forecast_that_is_not_reuse_is_found(sweep, subject, monkeypatch):
    monkeypatch.setattr(fc, "fora", lambda interval: fc.taylorseer(fc.methods.fora(interval), order=1))
    assert checked(sweep, subject) == ("WRONG", "(b)")


def test_a_plan_that_skips_nothing_is_found(sweep, subject, monkeypatch):
    whole = fc.methods.fora(1)
    monkeypatch.setattr(fc, "fora", lambda interval: whole)
    assert checked(sweep, subject) == ("WRONG", "(c)")


def test_what_is_left_behind_is_found(sweep, subject, monkeypatch):
    apply = fc.apply

    def leaves(target, plan, **options):
        target.transformer.trace = torch.zeros(1)
        return apply(target, plan, **options)

    monkeypatch.setattr(fc, "apply", leaves)
    assert checked(sweep, subject) == ("WRONG", "(e)")


def test_every_case_is_a_pipeline_and_every_configuration_a_transformer(sweep):
    walk = sweep("pipelines.walk")
    assert set(sweep("pipelines.cases").CASES) <= set(walk.pipeline_classes())
    assert set(sweep("pipelines.transformers").SMALL) <= set(walk.transformer_classes())


def test_the_table_has_every_class_and_none_wrong(sweep):
    """benchmarks/results/pipelines.json, as it was measured."""
    document = json.loads((Path(BENCHMARKS) / "results/pipelines.json").read_text())
    if document["environment"]["diffusers"] == diffusers.__version__:
        assert {row["name"] for row in document["rows"]} == set(sweep("pipelines.walk").pipeline_classes())
    verdicts = {row["verdict"] for row in document["rows"]}
    assert verdicts <= {"right", "refused", "not built", "none", "no transformer"}
    assert all(row["reason"] for row in document["rows"] if row["verdict"] in ("refused", "not built"))


def test_what_errors_advise_is_followed(sweep):
    check = sweep("pipelines.check")
    request, row = check.Request(None, 4), check.Row("", "")
    sentence = "make the plan with forecache.grid(model, num_steps=3)."
    assert check._advised(sentence, fc.errors.StepCountError(sentence), None, request, row)
    assert request.steps == 3
    assert not check._advised(sentence, fc.errors.StepCountError(sentence), None, request, row)
