"""The records of the bundled models: what they promise ships, and nothing else in the package knows a model by name."""

import ast

import pytest
import torch
from support.architecture import MODULES

import forecache as fc
from forecache import evaluate, zoo


@pytest.mark.parametrize("name", zoo.models())
def test_what_a_record_promises_ships(name):
    record = zoo.record(name)
    assert record.name == name
    assert record.card.read_text(encoding="utf-8").startswith(f"# {name}\n")
    for num_steps, path in record.statistics.items():
        assert fc.Statistics.load(path).num_steps == num_steps
        assert record.statistics_path(num_steps) == path
    for path in record.routers.values():
        assert fc.Router.load(path).num_steps == record.steps
    for path in record.tuned_folder.glob("*.json"):
        computed, num_steps = map(int, (path.stem.split("-")[1], path.stem.split("-")[3]))
        assert record.tuned_path(computed, num_steps) == path
    assert record.steps in record.statistics


@pytest.mark.parametrize("name", zoo.models())
def test_a_record_says_what_its_source_says(name):
    record = zoo.record(name)
    source = zoo.open_source(name, "cpu", "float32")
    assert source.classes == record.classes
    assert tuple(fc.sampling.sources.all_conditions(source)) == record.conditions
    assert fc.sampling.sources.own_guidance(source) == record.guidance


@pytest.mark.parametrize("name", zoo.models())
def test_the_judge_of_a_record_is_that_of_its_source(name):
    source = zoo.open_source(name, "cpu", "float32")
    images = source.generate(list(zoo.record(name).conditions[:2]), fc.sampling.sources.Sampling(2, 1.0, 0))
    pixels = (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    extractor = evaluate.load_extractor(name)
    torch.testing.assert_close(extractor.of(pixels)["pool"], source.features(pixels[:, :1].float() / 255))
    assert torch.equal(evaluate.open_reference(name).of("pool").mean, source.reference.mean)
    with pytest.raises(fc.errors.InputError, match=f"The {name} extractor judges grey images of"):
        extractor.of(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(fc.errors.InputError, match=f"The {name} extractor comes with its weights"):
        evaluate.load_extractor(name, "file")


def test_the_metrics_of_a_record_exist():
    for name in zoo.models():
        assert set(zoo.record(name).metrics) <= set(evaluate.metrics.METRICS)


def test_an_unknown_model_is_refused():
    with pytest.raises(fc.errors.InputError, match="no bundled model 'imagenet'; there are digits, digits-text"):
        zoo.record("imagenet")
    with pytest.raises(fc.errors.InputError, match="digits-text comes with routers for no % of the cells"):
        zoo.record("digits-text").router_path(22)


def test_bundled_routers_have_names():
    assert list(zoo.routers()) == ["digits-22", "digits-40"]
    assert zoo.routers()["digits-22"] == zoo.record("digits").router_path(22)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("zoo")])
def test_no_other_package_knows_a_bundled_model_by_name(module):
    """Names in docstrings and examples are free; strings that the program reads are not."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = {*zoo.models(), *zoo.routers()}
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not names & set(strings)
