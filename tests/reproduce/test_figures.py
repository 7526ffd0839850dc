"""The papers' figures: their data against sampling by hand, and the command that draws them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import forecache as fc
from forecache.parts import forecasts
from forecache.reproduce import figures
from forecache.reproduce.figures import FIGURES, Lab, measure, principal, settings_of
from forecache.sampling import sources


@pytest.fixture
def source(pipe):
    return sources.as_source(pipe)


def settings(name, source, **more):
    return settings_of(FIGURES[name], source, "tiny", **({"samples": 2, "steps": 8} | more))


def test_principal_axes_are_the_eigenvectors_of_the_covariance():
    points = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 4, 2, 0.1, 0.5])
    mean, axes = principal(points)
    centred = points.double().numpy() - points.double().numpy().mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    for axis, expected in zip(axes.double().numpy(), vectors.T[::-1][:2], strict=True):
        assert abs(axis @ expected) == pytest.approx(1, abs=1e-5)
        assert axis[np.abs(axis).argmax()] > 0
    torch.testing.assert_close(mean, points.mean(0))


def test_estimates_of_the_first_figure_are_the_rules_on_recorded_features(source):
    """Features by hooks on a bare model: reuse, GC with the reused step before, and the line through t-2 and t."""
    how = settings("goc-figure-1", source, samples=1)
    point = figures._trajectories(Lab(source, how))["mlp"]()
    outputs = []
    block = source.pipe.transformer.transformer_blocks[1]
    hook = block.ff.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
    source.generate([0], sources.Sampling(8, how.guidance, 0))
    hook.remove()
    assert (point["site"], point["step"]) == ("blocks.1.mlp", 4)
    truth = outputs[5]
    expected = {
        "reuse": outputs[4],
        "GC": outputs[4] + 1.2 * (outputs[4] - outputs[2]),
        "Taylor 1": outputs[4] + (outputs[4] - outputs[2]) / 2,
    }
    for name, estimate in expected.items():
        assert point["errors"][name] == pytest.approx(((estimate - truth).norm() / truth.norm()).item(), rel=1e-4)
    assert [len(places) for places in point["outputs"].values()] == [16, 16, 16]
    assert forecasts.Gradient(1.2).reads(5, [4, 2]) == pytest.approx({4: 2.2, 3: -1.2})


def test_the_third_figure_corrects_one_step_and_all_up_to_it(source):
    how = settings("goc-figure-3", source)
    points = figures._steps(Lab(source, how))
    keys = [f"{words} {step}" for step in (3, 5, 7) for words in ("at", "up to", "without")]
    assert list(points) == ["none", *keys]
    assert points["without 7"]() == points["up to 5"]()
    assert points["at 3"]() == points["up to 3"]()
    sampling = sources.Sampling(8, how.guidance, 0)
    bare = source.generate([0, 1], sampling)
    plan = fc.goc(fc.fora(2), 1.2, steps=[3, 5]).plan(fc.grid(source.target, 8))
    with fc.apply(source.target, plan):
        images = source.generate([0, 1], sampling)
    expected = fc.evaluate.psnr(images, bare).mean().item()
    assert points["up to 5"]()["psnr"] == pytest.approx(expected, abs=1e-3)
    assert points["at 5"]()["psnr"] != pytest.approx(expected, abs=1e-3)


def test_the_map_of_errors_reuses_one_cell(source):
    how = settings("procache-errors", source)
    points = figures._propagation(Lab(source, how))
    assert list(points)[:4] == ["1/0-0", "1/1-1", "1/2-2", "2/0-0"]
    sampling = sources.Sampling(8, how.guidance, 0)
    bare = source.generate([0, 1], sampling)

    def schedule(step, site, grid):
        return fc.parts.Action.SKIP if (step, site.depth) == (2, 1) else fc.parts.Action.COMPUTE

    with fc.apply(source.target, fc.Method("one", schedule).plan(fc.grid(source.target, 8))) as session:
        images = source.generate([0, 1], sampling)
    assert session.stats.skipped == 2
    assert points["2/1-1"]()["distance"] == pytest.approx(((images - bare).norm() / bare.norm()).item(), rel=1e-4)
    assert figures._thinned(range(1, 50), 10)[:2] == [1, 6]
    assert figures._thinned(range(1, 50), 10)[-1] == 49
    assert list(figures._groups(28)) == [(0, 5), (5, 9), (9, 14), (14, 19), (19, 23), (23, 28)]


def test_changes_are_relative_sums_of_absolute_values(source):
    how = settings("procache-changes", source, samples=1)
    point = figures._changes(Lab(source, how))["changes"]()
    features = Lab(source, how).features(lambda step, site: site.name == "blocks.2.attn")
    before, after = features[3, "blocks.2.attn"], features[4, "blocks.2.attn"]
    row = point["changes"][point["sites"].index("blocks.2.attn")]
    assert row[3] == pytest.approx(((after - before).abs().sum() / after.abs().sum()).item(), rel=1e-5)
    assert len(row) == 7


def test_a_figure_goes_on_and_refuses_other_settings(source, tmp_path, monkeypatch):
    figure, path = FIGURES["goc-figure-4"], tmp_path / "figure.json"
    how = settings("goc-figure-4", source)
    ran = []
    images_of = Lab.images
    monkeypatch.setattr(Lab, "images", lambda self, method: ran.append(method.name) or images_of(self, method))
    first = measure(figure, source, how, path)
    assert len(ran) == 4
    document = json.loads(path.read_text())
    del document["points"]["FORA + GOC"]
    path.write_text(json.dumps(document))
    again = measure(figure, source, how, path)
    assert len(ran) == 5
    assert again["points"] == first["points"]
    sampled = source.generate([0, 1], sources.Sampling(8, how.guidance, 0))
    pixels = torch.tensor(first["points"]["no cache"]["images"]).permute(0, 3, 1, 2)
    assert torch.equal(pixels, (sampled * 255).round().long())
    with pytest.raises(fc.errors.TableError, match="holds a figure with other settings"):
        measure(figure, source, replace(how, seed=1), path)
    path.write_text("{}")
    with pytest.raises(fc.errors.TableError, match="is not a readable figure"):
        measure(figure, source, how, path)


def test_further_plans_stand_below_the_paper_s(source, tmp_path):
    """Their images are those of a run under the plan; the file of a figure with other plans is refused."""
    figure, grid = FIGURES["goc-figure-4"], fc.grid(source.target, 8)
    plan, other = (fc.taylorseer(fc.fora(4), order).plan(grid) for order in (1, 0))
    how = settings("goc-figure-4", source, samples=None, labels=[2, 0, 2], plans={"mine": plan}, steps=20)
    assert (how.conditions, how.steps) == ((2, 0, 2), 8)
    points = measure(figure, source, how, tmp_path / "figure.json")["points"]
    assert list(points) == ["no cache", "FORA", "FORA + GC", "FORA + GOC", "FORA + GC, eta 0.8", "mine"]
    with fc.apply(source.target, plan):
        images = source.generate([2, 0, 2], sources.Sampling(8, how.guidance, 0))
    pixels = torch.tensor(points["mine"]["images"]).permute(0, 3, 1, 2)
    assert torch.equal(pixels, (images * 255).round().long())
    for plans in ({}, {"mine": other}, {"theirs": plan}):
        with pytest.raises(fc.errors.TableError, match="holds a figure with other settings"):
            measure(figure, source, replace(how, plans=plans), tmp_path / "figure.json")
    with pytest.raises(fc.errors.InputError, match="goc-figure-3 shows no plans side by side"):
        settings("goc-figure-3", source, plans={"mine": plan})
    longer = fc.fora(2).plan(fc.grid(source.target, 9))
    with pytest.raises(fc.errors.InputError, match="these have several: a 8, b 9"):
        settings("goc-figure-5", source, plans={"a": plan, "b": longer})
    strange = fc.fora(2).plan(fc.Grid(8, (fc.parts.Site("elsewhere", 0, "mlp"),)))
    with pytest.raises(fc.errors.PlanMismatchError, match="has 6 .blocks.0.attn to blocks.2.mlp"):
        settings("goc-figure-5", source, plans={"mine": strange})


def test_a_model_of_texts_without_prompts_is_refused(pixart_folder):
    from forecache.zoo.open import open_source

    with pytest.raises(fc.errors.InputError, match="takes prompts: give a file of them"):
        settings_of(FIGURES["goc-figure-4"], open_source(str(pixart_folder), "cpu"), "tiny")


@pytest.mark.parametrize("name", FIGURES)
def test_the_command_draws_every_figure(name, forecache, pipe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MOST_STEPS", 2)
    monkeypatch.setattr(figures, "MOST_DEPTHS", 1)
    words = ["reproduce", name, "--on", pipe_folder, "--samples", 1, "--out", tmp_path, "--device", "cpu"]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert FIGURES[name].title in out
    assert json.loads((tmp_path / "figure.json").read_text())["figure"] == name
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 150


def test_a_figure_takes_no_option_of_tables(forecache, pipe_folder):
    code, _, err = forecache("reproduce", "goc-figure-1", "--on", pipe_folder, "--metrics", "fid")
    assert (code, "goc-figure-1 is a figure, which takes no --metrics" in err) == (1, True)


def test_the_command_shows_labels_and_plans(forecache, pipe, pipe_folder, tmp_path):
    plan = fc.fora(3).plan(fc.grid(pipe, 6))
    plan.save(tmp_path / "thirds.json")
    words = ["reproduce", "goc-figure-5", "--on", pipe_folder, "--out", tmp_path / "out", "--device", "cpu"]
    code, _, err = forecache(*words, "--labels", "3,1", "--plan", tmp_path / "thirds.json")
    assert (code, err) == (0, "")
    document = json.loads((tmp_path / "out/figure.json").read_text())
    assert (document["settings"]["conditions"], document["settings"]["steps"]) == ([3, 1], 6)
    assert list(document["points"])[-1] == "thirds"
    (tmp_path / "again").mkdir()
    plan.save(tmp_path / "again/thirds.json")
    refused = {
        "called alike": ["--plan", tmp_path / "thirds.json", "--plan", tmp_path / "again/thirds.json"],
        "both say what to sample": ["--labels", "1", "--prompts", tmp_path / "prompts.txt"],
    }
    for words_of_error, more in refused.items():
        code, _, err = forecache(*words, *more)
        assert (code, words_of_error in err) == (1, True)
    code, _, err = forecache("reproduce", "goc-table-1", "--on", pipe_folder, "--labels", "1")
    assert (code, "goc-table-1 is a table, whose samples and plans are its own: leave --labels out" in err) == (1, True)
