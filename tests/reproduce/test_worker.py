"""A reproduction that is killed, continued, shared, or refused because something is missing or changed."""

import shutil
from dataclasses import replace

import pytest
import torch
from support.reproductions import JUDGE, ROWS, SMALL, Counting, figures, open_projected, shortened

import forecache as fc
from forecache import evaluate
from forecache.reproduce import testbed as testbeds
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.table import open_table
from forecache.reproduce.worker import Protocol


@pytest.mark.parametrize("where", ["no cache: sampling", "FORA 50 %: pairs", "L2C 22 %: sampling"])
def test_a_killed_run_goes_on_and_ends_with_the_same_figures(where, whole, pipe_folder, real, router, tmp_path):
    table = open_table("goc-table-3")

    def die(what, done, total):
        if what == where:
            raise KeyboardInterrupt

    here = open_projected(table, pipe_folder, real, router)
    with pytest.raises(KeyboardInterrupt):
        reproduce(table, here, tmp_path, SMALL, rows=ROWS, on_progress=die)
    finished = len(list((tmp_path / "rows").glob("*.json")))
    sampled = len(list((tmp_path / "samples").glob("*/shards/*.safetensors")))
    counting = Counting(here.source)
    result = reproduce(table, replace(here, source=counting), tmp_path, SMALL, rows=ROWS)
    assert (finished, sampled) == {"n": (0, 0), "F": (1, 2), "L": (2, 2)}[where[0]]
    assert counting.calls == 2 * (3 - sampled)  # two batches a row
    assert figures(result) == figures(whole[1])
    assert not list(tmp_path.rglob("*.tmp"))


def test_statistics_are_measured_as_the_table_says_and_kept(pipe_folder, real, tmp_path):
    """One sample a class, the same noise for all; a run that comes back takes them from its file."""
    table = shortened(open_table("eoc"))
    here = open_projected(table, pipe_folder, real)
    counting = Counting(here.source)
    rows = ["FORA 50 % + EOC"]
    reproduce(table, replace(here, source=counting), tmp_path, SMALL, rows=rows)
    assert counting.calls == 1 + 2 * 2  # three samples; two batches a row
    expected = fc.calibrate(here.source, [0, 1, 2], num_steps=20, guidance=1.5, seed=9, batch=5, shared_noise=True)
    statistics = fc.Statistics.load(tmp_path / "statistics.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(statistics.means, expected.means, strict=True))
    reproduce(table, replace(here, source=counting), tmp_path, SMALL, rows=rows)
    assert counting.calls == 5
    reproduce(table, replace(here, source=counting, statistics=statistics), tmp_path, SMALL, rows=rows)
    assert counting.calls == 5


def test_finished_rows_are_skipped_and_damaged_ones_measured_again(whole, pipe_folder, real, router, tmp_path):
    table, folder = open_table("goc-table-3"), shutil.copytree(whole[0], tmp_path / "copy")
    here = open_projected(table, pipe_folder, real, router)
    counting = Counting(here.source)
    here, told = replace(here, source=counting), []
    again = reproduce(table, here, folder, SMALL, rows=ROWS, on_progress=lambda *what: told.append(what))
    assert (counting.calls, told) == (0, [])
    assert figures(again) == figures(whole[1])
    shutil.rmtree(folder / "samples")  # a finished row needs them no more
    reproduce(table, here, folder, SMALL, rows=ROWS)
    assert counting.calls == 0
    text = (folder / "rows/fora-50.json").read_text()
    (folder / "rows/fora-50.json").write_text(text[: len(text) // 2])
    assert figures(reproduce(table, here, folder, SMALL, rows=ROWS)) == figures(whole[1])
    assert counting.calls == 4  # the row, and what it is compared with
    more = reproduce(table, here, folder, SMALL, rows=["FORA 25 %"])
    assert list(more.measured) == ["no cache", "FORA 50 %", "FORA 25 %", "L2C 22 %"]
    assert "FORA 50 % + GOC, eta 1.2" in more.document["missing"]


def test_changed_settings_are_refused(whole, pipe_folder, real, router, tmp_path):
    table, folder = open_table("goc-table-3"), shutil.copytree(whole[0], tmp_path / "copy")
    here = open_projected(table, pipe_folder, real, router)

    def refused(words, table=table, here=here, protocol=SMALL):
        with pytest.raises(
            fc.errors.TableError, match=rf"copy holds .*\(.*{words}.*\): choose another folder, or delete it"
        ):
            reproduce(table, here, folder, protocol, rows=ROWS)

    refused("samples 10, not 12", protocol=replace(SMALL, samples=12))
    refused("seed 0, not 1", protocol=replace(SMALL, seed=1))
    refused("call_size 5, not 4", protocol=replace(SMALL, batch=4))
    refused("resamples 20, not 30", protocol=replace(SMALL, resamples=30))
    refused("guidance 1.5, not 2.0", here=replace(here, guidance=2.0))
    refused("metrics fid, sfid, .* not fid, psnr", here=replace(here, metrics=("fid", "psnr")))
    other = evaluate.Judges(replace(JUDGE, name="other"))
    refused("extractor projections, not other", here=replace(here, judges=other))
    elsewhere = replace(here.reference, name="elsewhere")
    refused("reference .*real.npz, not elsewhere", here=replace(here, reference=elsewhere))
    refused("table goc-table-3, not goc-table-1", table=replace(table, name="goc-table-1"))
    refused("another version of the table goc-table-3", table=replace(table, sha256="0"))
    torch.manual_seed(1)
    trained = testbeds.open_testbed(
        table, str(pipe_folder), testbeds.TestbedOptions(str(real), router=str(router)), "cpu", judges=False
    )
    for parameter in trained.source.target.transformer.parameters():
        parameter.data.mul_(1.1)
    refused("other weights of the transformer", here=replace(here, source=trained.source))
    first = torch.zeros_like(here.routers[22].logits)
    first[1] = -5
    routers = {22: fc.Router(first, here.routers[22].sites, (1,))}
    refused("another router, other statistics", here=replace(here, routers=routers))
    (folder / "reproduction.json").write_text("{}")
    with pytest.raises(fc.errors.TableError, match=r"reproduction.json is not a readable reproduction"):
        reproduce(table, here, folder, SMALL, rows=ROWS)


def test_what_is_lacking_is_said_before_anything_is_sampled(pipe_folder, real, tmp_path):
    table = open_table("goc-table-3")
    here = open_projected(table, pipe_folder, real)

    def refused(error, words, **more):
        with pytest.raises(error, match=words):
            reproduce(table, here, tmp_path, **({"protocol": SMALL} | more))
        assert not list(tmp_path.iterdir())

    refused(
        fc.errors.InputError, "L2C 22 % needs a router that skips about 22 % .* with --router, or choose other rows"
    )
    refused(fc.errors.TableError, "goc-table-3 has no row 'fora-60'; it has 'no cache', 'FORA 50 %'", rows=["fora-60"])
    refused(fc.errors.InputError, "is needs at least 10 samples; 9 were", protocol=Protocol(9), rows=["fora-50"])
    with pytest.raises(
        fc.errors.InputError, match="compare with real images: give ADM's .npz or a folder with --reference"
    ):
        testbeds.open_testbed(table, str(pipe_folder), testbeds.TestbedOptions(), "cpu")
    with pytest.raises(fc.errors.InputError, match="digits brings its own reference and judge: leave --reference out"):
        testbeds.open_testbed(table, "digits", testbeds.TestbedOptions(str(real)), "cpu")
    smooth = replace(table.rows[1], recipe={"method": "smoothcache", "threshold": 0.1})
    smooth = replace(table, rows=(table.rows[0], smooth))
    with pytest.raises(fc.errors.InputError, match="needs statistics of .* with --stats"):
        reproduce(smooth, here, tmp_path, SMALL)


def test_several_processes_share_the_work(pipe_folder, real, tmp_path, monkeypatch):
    """The second of two samples its shards and what is left of them; the first one finds them and evaluates."""
    table = open_table("goc-table-1")
    here = open_projected(table, pipe_folder, real)
    one = reproduce(table, here, tmp_path / "one", SMALL, rows=["fora-50"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    second = reproduce(table, here, tmp_path / "two", SMALL, rows=["fora-50"])
    assert second.measured == {}
    assert not (tmp_path / "two/result.json").exists()
    monkeypatch.setenv("RANK", "0")
    counting = Counting(here.source)
    two = reproduce(table, replace(here, source=counting), tmp_path / "two", SMALL, rows=["fora-50"])
    assert counting.calls == 0
    assert figures(two) == figures(one)
