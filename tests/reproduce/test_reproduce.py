"""Every row of the papers' tables runs, and its figures are those of its parts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.reproductions import DIT, JUDGE, SMALL, Judge, open_projected, shortened

import forecache as fc
from forecache import evaluate
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.table import open_table
from forecache.sampling import sources


def distinct():
    """The tables of DiT with their rows, each plan in the first table that has it."""
    seen, tables = [], {}
    for name in sorted(DIT, reverse=True):
        rows = [row for row in open_table(name).rows[1:] if row.recipe not in (None, *seen)]
        seen += [row.recipe for row in rows]
        tables |= {name: rows} if rows else {}
    return tables


@pytest.mark.parametrize(("name", "rows"), distinct().items(), ids=distinct())
def test_every_row_of_a_dit_table_runs_on_a_pipeline(name, rows, pipe_folder, real, router, tmp_path):
    table = shortened(open_table(name))
    names = [row.name for row in rows]
    result = reproduce(table, open_projected(table, pipe_folder, real, router), tmp_path, SMALL, rows=names)
    assert list(result.measured) == ["no cache", *names]
    for row in (table.rows[0], *rows):
        estimates = result.measured[row.name]["figures"]
        assert set(estimates) == {*table.metrics, *(["psnr"] if row.recipe else [])}
        assert all(figure.count == 10 and figure.interval for figure in estimates.values())
    lines = result.markdown()
    for row in (table.rows[0], *rows):
        place = next(number for number, line in enumerate(lines) if line.startswith(f"| {row.name} |"))
        if row.published:
            assert lines[place + 1].startswith("| published |")
            assert all(text in lines[place + 1] for name, text in row.published.items() if name != "speed")
    document = json.loads((tmp_path / "result.json").read_text())
    assert [row["published"] for row in document["rows"]] == [dict(row.published) for row in (table.rows[0], *rows)]
    header = ["fewer MACs", *["TFLOPs"] * (table.flops is not None)]
    header += [*["latency, s", "of its base"] * (table.latency is not None), "sampling, s", "FID"]
    assert (tmp_path / "table.md").read_text().startswith("|  | " + " | ".join(header))


def test_the_pixart_table_of_goc_runs_on_a_pipeline(pixart_folder, real, tmp_path):
    table = open_table("goc-table-4")
    (tmp_path / "prompts.txt").write_text("a red cat\na small cactus\n")
    here = open_projected(table, pixart_folder, real, prompts=tmp_path / "prompts.txt")
    result = reproduce(table, here, tmp_path / "out", replace(SMALL, samples=4))
    assert [set(row["figures"]) for row in result.measured.values()] == [{"fid"}, *[{"fid", "psnr"}] * 2]
    assert [line.split("|")[1].strip() for line in result.markdown()[2:8]] == [
        "no cache", "published", "FORA 25 %", "published", "FORA 25 % + GOC, eta 1.7", "published",
    ]  # fmt: skip


def test_every_row_of_the_pixart_table_runs_on_a_pipeline(pixart_folder, real, tmp_path):
    from support.clip import make_clip

    table = open_table("procache-pixart")
    (tmp_path / "prompts.txt").write_text("a red cat\na small cactus\n\na happy apple\n")
    here = open_projected(table, pixart_folder, real, prompts=tmp_path / "prompts.txt")
    here = replace(here, judges=evaluate.Judges(JUDGE, evaluate.load_clip(str(make_clip(tmp_path)))))
    result = reproduce(table, here, tmp_path / "out", replace(SMALL, samples=6))
    assert [set(row["figures"]) for row in result.measured.values()] == [
        {"fid", "clip"},
        *[{"fid", "clip", "psnr"}] * 3,
    ]
    assert result.document["protocol"]["guidance"] == 4.5
    with np.load(tmp_path / "out/samples/procache/samples.npz") as file:
        assert file["arr_1"].tolist() == ["a red cat", "a small cactus", "a happy apple"] * 2
    with pytest.raises(fc.errors.InputError, match="takes prompts: give a file of them, one a line, with --prompts"):
        reproduce(table, open_projected(table, pixart_folder, real), tmp_path / "other", SMALL)


def test_the_figures_are_those_of_the_parts(pipe_folder, real, tmp_path):
    """A row by hand: its plan, the plain sampling, and the metrics of those images."""
    table = open_table("goc-table-3")
    here = open_projected(table, pipe_folder, real)
    result = reproduce(table, here, tmp_path, replace(SMALL, seed=3), rows=["fora 50 %"])
    labels = here.conditions(table, 10, 3)
    how, target = sources.Sampling(20, 1.5, 3), here.source.target
    uncached = sources.in_batches(here.source, labels, how, 5)
    with fc.apply(target, fc.methods.fora_paper(50).plan(fc.grid(target, 20))) as session:
        images = sources.in_batches(here.source, labels, how, 5)
    pixels, others = ((batch * 255).round().to(torch.uint8) for batch in (images, uncached))
    mean = 10 * torch.log10(255**2 / (pixels.double() - others.double()).square().mean((1, 2, 3))).clamp_max(100)
    row = result.measured["FORA 50 %"]
    assert row["figures"]["psnr"].value == pytest.approx(mean.mean().item(), abs=1e-3)
    pool = Judge()(pixels)["pool"]
    against = Judge()(torch.cat(list(evaluate.open_images(real).batches(5))))["pool"]
    expected = evaluate.frechet_distance(evaluate.Moments.of(pool), evaluate.Moments.of(against))
    assert row["figures"]["fid"].value == pytest.approx(expected, rel=1e-4)
    assert session.stats.skipped == 2 * 6 * 10  # two generations, six branches, ten steps
    assert row["macs_ratio"] == fc.methods.fora_paper(50).plan(fc.grid(target, 20)).cost(target).speedup
    assert len(set(labels)) > 1
    assert max(labels) < 1000
