"""Results: columns of costs, rows that stand alone, changes with intervals, and the picture."""

from dataclasses import replace

import numpy as np
import pytest
from support.reproductions import ROWS, SMALL, open_projected

import forecache as fc
from forecache.report import figures as figures_module
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.table import open_table


def test_flops_are_counted_as_the_paper_counts_them(pipe_folder, real, tmp_path):
    table = open_table("goc-table-3")
    here = open_projected(table, pipe_folder, real)
    result = reproduce(table, here, tmp_path, SMALL, rows=["FORA 50 %"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.markdown()[:6]]
    place = lines[0].index("TFLOPs")
    target = here.source.target
    cost = fc.methods.fora_paper(50).plan(fc.grid(target, 20)).cost(target)
    shown = {line[0]: line[place] for line in lines if line[0] in ("no cache", "FORA 50 %")}
    wanted = {"no cache": cost.macs_uncached, "FORA 50 %": cost.macs}
    assert shown == {name: f"{macs * 50 / 20 / 1e12:.4g}" for name, macs in wanted.items()}
    assert [line[place] for line in lines if line[0] == "published"] == ["11.868", "5.934"]


def test_a_row_that_cannot_be_measured_stands_with_its_published_figures(whole, pipe_folder, real, tmp_path):
    table = open_table("procache-dit")
    here = open_projected(table, pipe_folder, real)
    with pytest.raises(fc.errors.InputError, match="Delta-DiT, N = 3 of procache-dit cannot be measured: its cache is"):
        reproduce(table, here, tmp_path, SMALL, rows=["Delta-DiT, N = 3"])
    table = replace(table, latency=None)
    lines = reproduce(table, here, tmp_path, SMALL, rows=["no cache"]).markdown()
    row = next(line for line in lines if line.startswith("| Delta-DiT, N = 3, published |"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["1.47x", "16.46"]
    assert "| 3.750 |" not in row
    assert "| 3.75 | 5.70 | 207.57 | 0.77 |" in row


def test_changes_are_those_of_pairs_with_the_same_noise(whole):
    """Against the spread of the differences of the resamples, by hand; bold where it is larger than that."""
    result = whole[1]
    none, fora = (result.measured[name]["figures"] for name in ("no cache", "FORA 50 %"))
    assert result.changes("no cache") == {}
    lines = result.changes_markdown()
    assert lines[0] == "| minus no cache | FID | sFID | IS | Prec. | Recall |"
    cells = next(line for line in lines if line.startswith("| FORA 50 % |")).split("|")[2:-1]
    for name, cell in zip(("fid", "sfid", "is", "precision", "recall"), cells, strict=True):
        draws = np.array(fora[name].draws) - np.array(none[name].draws)
        value, half = fora[name].value - none[name].value, 1.96 * draws.std(ddof=1)
        assert cell.strip().strip("*") == f"{value:+.3f} ± {half:.3f}"
        assert cell.strip().startswith("**") == (abs(value) > half)
    assert lines[2] in result.markdown()


def test_the_picture_draws_every_row(whole, tmp_path, monkeypatch):
    drawn = []
    import matplotlib.axes

    errorbar_of = matplotlib.axes.Axes.errorbar
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "errorbar",
        lambda self, x, y, **more: drawn.append((x, y)) or errorbar_of(self, x, y, **more),
    )
    figures_module.draw_reproduction(whole[1], tmp_path / "x.png")
    measured = whole[1].measured
    shown = [measured[name] for name in ROWS]
    expected = [(100 / row["macs_ratio"], row["figures"][key].value) for key in ("fid", "psnr") for row in shown]
    assert drawn == expected
