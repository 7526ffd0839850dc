"""The scripts that measure speed and compare with other caches, on small models: that they run and count right."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import forecache as fc
from forecache import zoo
from forecache.bench.subjects import open_subject
from forecache.sampling.sources import all_conditions, as_source

BENCHMARKS = str(Path(__file__).parent.parent.parent / "benchmarks")


@pytest.fixture
def scripts(monkeypatch):
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    config = zoo.SHAPES["tiny"].config | {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8}
    monkeypatch.setitem(zoo.SHAPES, "tiny", replace(zoo.SHAPES["tiny"], config=config | {"sample_size": 8}))

    def get(name):
        return __import__(name)

    yield get
    for name in ("common", "speed", "least", "peers", "peer_runs", "peer_caches", "tuned_others", "tuned_peers"):
        sys.modules.pop(name, None)


def test_every_cache_that_is_installed_runs(scripts, tmp_path, capsys):
    """On random weights; static schedules are counted, those that decide while they run need only run."""
    scripts("peers").main(["--model", "tiny", "--steps", "7", "--rounds", "1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "peers-tiny.json").read_text())
    caches = scripts("peer_caches").CACHES
    rows = {row["name"]: row for row in record["rows"]}
    absent = {cache.name for cache in caches if cache.version is None}
    assert set(record["left_out"]) == absent
    assert set(rows) == {cache.name for cache in caches} - absent
    assert {"forecache", "diffusers"} <= {row["package"] for row in rows.values()}
    assert rows["ours: FORA, N = 3"]["kinds"] == "#..#..#"
    assert rows["ours: Taylor 1, N = 3 after 3"]["kinds"] == "####..#"
    assert rows["diffusers TaylorSeer 1, N = 3 after 3"]["kinds"] == "###.#.."
    assert "." in rows["diffusers MagCache 0.12"]["kinds"]
    pyramid = rows["diffusers PAB, N = 2"]
    assert set(pyramid["kinds"]) == {"#", "-"}
    assert pyramid["attention_computed"] < pyramid["mlp_computed"] == 7
    for name in {"cache-dit static, N = 3", "SmoothCache static, N = 3"} & set(rows):
        assert rows[name]["kinds"] == "#..#..#"
    versions = record["environment"]["versions"]
    out = capsys.readouterr().out
    assert all(f"{name} is not installed: its caches are left out" in out for name in versions if not versions[name])
    assert "| ours: FORA, N = 3 | `#..#..#` | 3, 3 |" in (tmp_path / "peers-tiny.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("load", [zoo.load_digits, zoo.load_digits_text])
def test_caches_are_put_on_at_a_number_of_computed_steps(scripts, monkeypatch, load):
    """By a mask, or by the threshold that gives so many; a skipped step computes the first block all the same."""
    module = scripts("tuned_peers")
    monkeypatch.setattr(module, "FEW", 2)
    model = load()
    peers, running = module.Peers(model, 5), {}
    for name, put_on in peers.caches(3):
        with contextlib.suppress(LookupError):  # no threshold
            running[name] = put_on()
    assert running, "no threshold gave three steps"
    blocks = model.transformer.config.num_layers
    two = all_conditions(as_source(model))[:2]
    for name, cached in running.items():
        about = peers.about(cached)
        assert about["schedule"].count("#") == 3, name
        assert 5 / (3 + 2 / blocks) * 0.95 < about["fewer_macs"] < 5 / 3
        assert cached.images(two).shape[0] == 2


def test_quality_is_kept_and_not_measured_again(scripts, tmp_path, capsys):
    words = ["--model", "digits", "--samples", "2", "--steps", "3", "--timed", "1", "--rounds", "1", "--only", "N = 2"]
    words += ["--out", str(tmp_path)]
    peers = scripts("peers")
    peers.main([*words, "--untimed"])
    assert "ours: FORA, N = 2: " in capsys.readouterr().out
    first = json.loads((tmp_path / "digits-2-3.json").read_text())
    assert not (tmp_path / "peers-digits.json").exists()
    peers.main(words)
    assert " dB" not in capsys.readouterr().out.split("| cache |")[0]
    rows = {row["name"]: row for row in json.loads((tmp_path / "peers-digits.json").read_text())["rows"]}
    assert all(rows[name]["psnr"] == first[name]["psnr"] for name in first)
    assert rows["no cache"]["psnr"] is None
    assert rows["ours: GOC 0.8, N = 2"]["psnr"] > 20
    if "SmoothCache static, N = 2" in rows:  # the same arithmetic as ours
        assert rows["SmoothCache static, N = 2"]["psnr"] == pytest.approx(rows["ours: FORA, N = 2"]["psnr"], 0.01)
    assert min(Image.open(tmp_path / "peers.png").size) > 300


def test_a_cache_that_fails_is_said_and_left_out(scripts, capsys):
    runs, peers = scripts("peer_runs"), scripts("peers")

    def fails(called):
        raise TypeError("not for this model")

    subject = runs.Subject(zoo.shaped("tiny"), peers.DDIMScheduler(), 3)
    left_out = {}
    assert peers.put_all(subject, [runs.Cache("broken", "forecache", fails)], left_out) == []
    assert left_out == {"broken": "TypeError: not for this model"}
    assert "broken fails: TypeError" in capsys.readouterr().out


@torch.no_grad()
def test_the_least_that_a_skipped_step_costs_is_measured_on_the_same_arithmetic(scripts):
    """Its code gives what a skipped step of ours gives, from features that hooks saw in the step before."""
    subject = open_subject("tiny", 2, "cpu")
    blocks, features = subject.model.transformer_blocks, []
    watched = [
        module.register_forward_hook(lambda *call: features.append(call[-1]))
        for block in blocks
        for module in (block.attn1, block.ff)
    ]
    first, second = ({**subject.inputs, "timestep": timestep} for timestep in subject.timesteps(2))
    subject.model(**first)
    for hook in watched:
        hook.remove()
    with fc.apply(subject.model, fc.fora(2).plan(subject.grid(2))):
        subject.model(**first)
        ours = subject.model(**second).sample
    least = scripts("least").Least(subject, features).least(**second)
    torch.testing.assert_close(least, ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scripts("least").Least(subject).least(**second), ours, atol=1e-2)


def test_the_script_of_the_least_measures_a_model(scripts, capsys):
    scripts("least").main(["tiny", "--rounds", "1"])
    assert "| tiny |" in capsys.readouterr().out


def test_the_speed_script_writes_its_table(scripts, tmp_path):
    scripts("speed").main(["tiny", "--steps", "5", "--rounds", "1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "speed-tiny.json").read_text())
    assert [row["name"] for row in record["rows"]][:2] == ["no cache", "all-computed"]
    assert record["settings"]["command"].startswith("python benchmarks/speed.py tiny --steps 5")
    text = (tmp_path / "speed-tiny.md").read_text()
    assert "A run of goc-50 over one of fora-50: " in text
    assert min(Image.open(tmp_path / "speed-tiny.png").size) > 300
