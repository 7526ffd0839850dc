"""Latencies of a table's rows beside the published ones."""

from dataclasses import replace

from support.reproductions import SMALL, Counting, open_projected

from forecache.reproduce import latency
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.table import open_table


def test_latencies_are_timed_in_turn_and_stand_beside_the_published_ones(pipe_folder, real, tmp_path, monkeypatch):
    """Seconds by a clock of our own: mean, deviation over the rounds, and the ratio to the base round by round."""
    table = open_table("goc-table-5")
    here = open_projected(table, pipe_folder, real)
    rows = ["FORA 50 %", "FORA 50 % + GOC, eta 1.2"]
    readings = {"no cache": [4.0] * 5, rows[0]: [2.0, 2.0, 2.0, 2.0, 4.0], rows[1]: [2.2, 2.2, 2.2, 2.2, 4.4]}
    warm_ups = [9.0, 9.0, 9.0]
    clock = iter(warm_ups + [seconds for turn in zip(*readings.values(), strict=True) for seconds in turn])
    sizes = []

    def seconds_of(generation):
        generation()
        return next(clock)

    monkeypatch.setattr(latency, "seconds_of", seconds_of)
    counting = Counting(here.source)
    generate = counting.generate
    counting.generate = lambda labels, *more: sizes.append(len(labels)) or generate(labels, *more)
    result = reproduce(table, replace(here, source=counting), tmp_path, SMALL, rows=rows)
    assert sizes[-18:] == [8] * 18, "eight images, a round to warm up and five that count"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.markdown()[:7]]
    columns = [lines[0].index(title) for title in ("latency, s", "of its base")]
    cells = {line[0]: [line[column] for column in columns] for line in lines if line[0] != "published"}
    assert cells["FORA 50 %"] == ["2.400 ± 0.894", ""]  # standard deviation of 2, 2, 2, 2, 4
    assert cells["FORA 50 % + GOC, eta 1.2"] == ["2.640 ± 0.984", "1.100"]
    published = [[line[column] for column in columns] for line in lines if line[0] == "published"]
    assert published == [["1.789 ± 0.046", ""], ["1.824 ± 0.029", "1.020"]]
    assert "latency of 8 images, mean and standard deviation of 5 rounds in turn" in result.legend()
    again = reproduce(table, replace(here, source=counting), tmp_path, SMALL, rows=rows)
    assert next(clock, None) is None
    assert again.latencies == result.latencies
    (tmp_path / "latency.json").write_text("{}")
    assert latency.read(tmp_path / "latency.json", table.latency) == ({}, {})
