"""`forecache bench`, and the speed of plans: counts and predictions; never how long something takes."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.main import get_command

import forecache as fc
from forecache import zoo
from forecache.bench import speed, subjects
from forecache.cli.terminal import app


@pytest.fixture
def tiny(monkeypatch):
    """The shape "tiny" with two small blocks instead of its 28."""
    config = zoo.SHAPES["tiny"].config | {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    monkeypatch.setitem(zoo.SHAPES, "tiny", replace(zoo.SHAPES["tiny"], config=config | {"sample_size": 8}))
    return subjects.open_subject("tiny", 2)


def planned(subject, num_steps, names=subjects.PRESETS):
    grid = subject.grid(num_steps)
    return {name: subjects.preset(name, num_steps).plan(grid) for name in names}


def test_the_presets_are_the_papers_schedules():
    grid = fc.Grid(20, (fc.parts.Site("blocks.0.attn", 0, "attn"),))
    pictures = {name: make(20).plan(grid).picture() for name, make in subjects.PRESETS.items()}
    assert pictures["all-computed"] == "#" * 20
    for level in (25, 50, 75):
        assert pictures[f"fora-{level}"] == fc.methods.fora_paper(level).plan(grid).picture()
    assert pictures["goc-50"] == pictures["taylor-50"] == "#." + "#~" * 9
    with pytest.raises(fc.errors.InputError, match="no preset 'fora-30'; there are all-computed, fora-25"):
        subjects.preset("fora-30", 20)


def test_steps_are_sorted_by_what_they_compute():
    grid = fc.Grid(4, (fc.parts.Site("blocks.0.attn", 0, "attn"), fc.parts.Site("blocks.0.mlp", 0, "mlp")))
    where = fc.parts.schedules.at(
        fc.parts.schedules.kind("mlp"), fc.parts.schedules.by_step("##.."), fc.parts.schedules.by_step("#..#")
    )
    plan = fc.Method("by hand", where).plan(grid)
    assert speed.kinds(plan, 4) == ["full", "mixed", "skipped", "mixed"]
    assert speed.kinds(None, 4) == ["full"] * 4


def test_a_row_says_what_was_predicted_and_what_was_counted(tiny):
    """Bytes as counted by the session, MACs as `plan.cost` says, and as many times as there were rounds and steps."""
    plans = planned(tiny, 6, ["all-computed", "fora-50", "goc-50"])
    seen = []
    rows = speed.measure(tiny, plans, rounds=2, on_run=seen.append)
    assert seen == [speed.BARE, *plans] * 2  # in turn
    bare, *others = rows
    assert bare.cost is None
    assert bare.time_ratio.median == bare.realised == bare.step_ratios["full"].median == 1
    assert bare.steps["full"].count == 12
    for row in others:
        expected = plans[row.name].cost(tiny.model, 2, guidance=False)
        assert row.cost == expected
        assert row.cache_bytes == expected.cache_bytes
        assert row.realised == pytest.approx(row.time_ratio.median / expected.speedup)
        assert {kind: spread.count for kind, spread in row.steps.items()} == (
            {"full": 12} if row.name == "all-computed" else {"full": 6, "skipped": 6}
        )
        assert len(row.each_step) == 6
    assert not any("forward" in vars(module) for module in tiny.model.modules())
    lines = speed.table(rows)
    assert f"| fora-50 | `#.#.#.` | {rows[2].cost.speedup:.2f}x | " in lines[4]
    assert "predicted" not in lines[4]
    assert {line.count("|") for line in lines} == {10}


def test_ratios_are_formed_within_a_round(monkeypatch, tiny):
    """A machine that is twice as slow in the second round changes no ratio."""
    speeds = iter([9.0, 1.0, 9.0, 0.5, 9.0, 2.0, 9.0, 1.0, 9.0, 1.0, 9.0, 0.5])  # the first of a session does not count
    monkeypatch.setattr(speed, "one_run", lambda subject, steps, _: [next(speeds)] * steps)
    bare, row = speed.measure(tiny, planned(tiny, 4, ["fora-50"]), rounds=3)
    assert (row.time_ratio.low, row.time_ratio.median, row.time_ratio.high) == (2, 2, 2)
    assert row.step_ratios["skipped"].median == 0.5
    assert bare.over(row) == row.time_ratio
    assert (bare.run.low, bare.run.median, bare.run.high) == (4, 4, 6)


SIZES = {"tiny": 13.3e6, "dit-cpu": 39.8e6, "dit-xl-2": 750e6, "pixart-alpha": 611e6}
"""Parameters; the blocks of DiT-XL/2 hold an embedding each in diffusers, which makes it larger than the original."""


@pytest.mark.parametrize("name", zoo.SHAPES)
def test_shapes_are_those_of_the_models(name):
    model = zoo.shaped(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(SIZES[name], rel=0.01)


def test_the_cost_of_dit_xl_is_the_published_one():
    """118.6 GMACs a call (arXiv 2212.09748); on the meta device, where a cost is as exact as anywhere else."""
    subject = subjects.open_subject("dit-xl-2", 4, "meta")
    cost = subject.cost(planned(subject, 2, ["fora-50"])["fora-50"])
    assert cost.macs_uncached == pytest.approx(2 * 4 * 118.6e9, rel=0.02)


def test_pixart_is_timed_by_its_branches(monkeypatch):
    """Two small blocks; attention, cross attention and MLP of each are skipped, and the cache is as predicted."""
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    config = zoo.SHAPES["pixart-alpha"].config | small | {"sample_size": 8, "caption_channels": 12}
    monkeypatch.setitem(zoo.SHAPES, "pixart-alpha", replace(zoo.SHAPES["pixart-alpha"], config=config))
    subject = subjects.open_subject("pixart-alpha", 2)
    assert len(subject.grid(4).sites) == 6
    _, row = speed.measure(subject, planned(subject, 4, ["goc-50"]), rounds=1)
    assert row.cache_bytes == row.cost.cache_bytes == 2 * 6 * 2 * 16 * 16 * 4  # features x sites x B x N x D x float32


def test_random_weights_switch_no_branch_off(tiny):
    block = tiny.model.transformer_blocks[1]
    assert block.norm1.linear.weight.std() > 0.01  # adaLN-Zero starts its training at zero
    assert torch.equal(zoo.shaped("tiny").pos_embed.proj.weight, tiny.model.pos_embed.proj.weight)  # the same seed
    with pytest.raises(fc.errors.InputError, match="no shape 'huge'; there are tiny"):
        zoo.shaped("huge")
    model = torch.nn.Linear(2, 2)
    model.config, model.device, model.dtype = None, None, None
    with pytest.raises(fc.errors.InputError, match="the arguments of a Linear"):
        zoo.random_inputs(model, 1)


def test_bench_writes_a_table_a_picture_and_what_was_measured(forecache, tmp_path, tiny):
    """A plan file among the presets; the figures of the JSON are those of `plan.cost`."""
    plan = fc.goc(fc.warmup(fc.fora(2), 2), 0.8).plan(tiny.grid(6))
    plan.save(tmp_path / "mine.json")
    words = ["--plan", tmp_path / "mine.json", "--preset", "fora-50", "--rounds", 1, "--threads", 1]
    code, out, err = forecache("bench", *words, "--device", "cpu", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert re.search(rf"mine +{plan.cost(tiny.model).speedup:.2f}x", out)
    assert "!" not in out.split("! marks")[0]
    record = json.loads((tmp_path / "out/bench.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["no cache", "fora-50", "mine"]
    cost = plan.cost(tiny.model)
    assert rows["mine"]["macs_ratio"] == cost.speedup
    assert rows["mine"]["cache_bytes"] == rows["mine"]["cache_bytes_predicted"] == cost.cache_bytes
    assert rows["mine"]["each_step_macs"] == list(cost.step_macs)
    assert record["settings"]["command"].startswith("forecache bench --plan")
    assert record["model"]["rows"] == 2
    assert f"`{plan.picture()}`" in (tmp_path / "out/bench.md").read_text()
    assert min(Image.open(tmp_path / "out/bench.png").size) > 300


FAILURES = {
    "unknown preset": (["--preset", "fora-30"], "no preset 'fora-30'"),
    "unknown model": (["--model", "nowhere"], "no model 'nowhere'"),
    "missing plan": (["--plan", "nowhere.json"], "no plan file at nowhere.json"),
    "unknown dtype": (["--dtype", "int3"], "dtype must be"),
}


@pytest.mark.parametrize(("words", "sentence"), FAILURES.values(), ids=FAILURES)
def test_bad_input_is_answered_with_a_sentence(forecache, tmp_path, words, sentence):
    code, _, err = forecache("bench", *words, "--out", tmp_path / "out")
    assert code == 1
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_plans_of_other_lengths_are_refused(tiny):
    plans = planned(tiny, 4, ["fora-50"]) | planned(tiny, 5, ["fora-75"])
    with pytest.raises(fc.errors.InputError, match=r"one number of steps; these have \[4, 5\]"):
        speed.measure(tiny, plans)
    with pytest.raises(fc.errors.InputError, match="At least one round is timed; 0"):
        speed.measure(tiny, planned(tiny, 4, ["fora-50"]), rounds=0)


def test_the_example_runs(forecache, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    text = get_command(app).commands["bench"].help
    line = re.search(r"Example: `forecache (bench --model tiny [^`]+)`", text)[1]
    code, _, err = forecache(*shlex.split(line), "--steps", 4)
    assert (code, err) == (0, "")
    assert (tmp_path / "out/bench/bench.png").exists()


def test_a_pipeline_that_is_no_class_conditional_one_is_timed_on_the_example_of_its_class(flux_folder):
    subject = subjects.open_subject(str(flux_folder), 1, "cpu")
    plan = fc.fora(2).plan(subject.grid(2))
    assert subject.cost(plan) == plan.cost(subject.model)
    rows = speed.measure(subject, {"fora-50": plan}, rounds=1)
    assert rows[1].cache_bytes == rows[1].cost.cache_bytes > 0


def test_the_bundled_text_model_is_timed():
    subject = subjects.open_subject("digits-text", 2, "cpu")
    rows = speed.measure(subject, {"fora-50": fc.fora(2).plan(subject.grid(2))}, rounds=1)
    assert rows[1].cache_bytes == rows[1].cost.cache_bytes > 0
