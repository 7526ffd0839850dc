"""SmoothCache: schedules from measured changes, and published ones from their files."""

import json

import pytest
import torch

import forecache as fc
from forecache.parts.statistics import Origin

T = 6
SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
GRID = fc.Grid(T, SITES)


def statistics(changes):
    """Statistics with these changes {kind: [step][gap - 1]}, the same at both depths."""
    table = torch.zeros(T, len(SITES), 2)
    for index, site in enumerate(SITES):
        table[:, index] = torch.tensor(changes[site.kind])
    means = tuple(torch.zeros(T, 1, 1) for _ in SITES)
    counts = torch.ones(T, len(SITES), dtype=torch.int64)
    origin = Origin("", "", "", 1.5, 0, False, "all", 1, (0,), "")
    return fc.Statistics(SITES, means, table, torch.zeros(T, 4).bool(), counts, origin)


CHANGES = {
    "attn": [[0, 0], [0.1, 0], [0.1, 0.3], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]],
    "mlp": [[0, 0], [0.5, 0], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.15, 0.2]],
}


def test_a_step_is_reused_while_the_change_since_the_last_computed_one_is_small():
    """attn: 1 is close to 0; 2 changed by 0.3 since 0; 3 and 4 are close to 2; 5 is three steps away, not measured."""
    plan = fc.smoothcache(statistics(CHANGES), 0.2).plan(GRID)
    lines = {site.kind: "".join(cell.sign for cell in row) for site, row in zip(SITES, plan.rows, strict=True)}
    assert lines == {"attn": "#.#..#", "mlp": "##..#."}


def test_the_change_is_averaged_over_the_sites_of_a_kind():
    stats = statistics(CHANGES)
    stats.changes[1, 0, 0], stats.changes[1, 2, 0] = 0.39, 0.0  # attn at step 1: 0.195 on average
    assert fc.smoothcache(stats, 0.2).plan(GRID).picture().split("\n")[0][1] == "."
    stats.changes[1, 2, 0] = 0.02  # 0.205
    assert fc.smoothcache(stats, 0.2).plan(GRID).rows[0][1].computed


def test_nothing_is_reused_at_threshold_0_and_everything_measured_at_a_high_one():
    assert fc.smoothcache(statistics(CHANGES), 0.0).plan(GRID).picture() == "#" * T
    assert fc.smoothcache(statistics(CHANGES), 9.0).plan(GRID).picture() == "#..#.."


def test_a_change_of_exactly_the_threshold_is_computed():
    """A step is skipped below the threshold only: at 0 nothing is, not even features that do not change."""
    equal = {kind: [[0.25, 0.25]] * T for kind in ("attn", "mlp")}
    assert fc.smoothcache(statistics(equal), 0.25).plan(GRID).picture() == "#" * T
    assert fc.smoothcache(statistics(equal), 0.2500001).plan(GRID).picture() == "#..#.."
    still = {kind: [[0.0, 0.0]] * T for kind in ("attn", "mlp")}
    assert fc.smoothcache(statistics(still), 0.0).plan(GRID).picture() == "#" * T


def test_statistics_of_another_run_are_refused():
    method = fc.smoothcache(statistics(CHANGES), 0.2)
    with pytest.raises(fc.errors.StatisticsError, match="6 steps, and the plan is for 7"):
        method.plan(fc.Grid(7, SITES))
    with pytest.raises(fc.errors.StatisticsError, match="with 4 sites"):
        method.plan(fc.Grid(T, SITES[:2]))


def written(tmp_path, document):
    path = tmp_path / "schedule.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_published_schedule_is_read(tmp_path):
    path = written(tmp_path, {"attn1": [1, 0, 0, 1, 0, 1], "ff": [1, 1, 0, 1, 0, 0]})
    method = fc.methods.smoothcache_file(path)
    assert method.plan(GRID).picture().split("\n") == ["#..#.#", "##.#.."]
    assert method.name == "smoothcache_file(path='schedule.json')"


def test_kinds_that_a_schedule_does_not_name_are_computed(tmp_path):
    plan = fc.methods.smoothcache_file(written(tmp_path, {"mlp": [1, 0, 0, 1, 0, 1]})).plan(GRID)
    assert ["".join(cell.sign for cell in row) for row in plan.rows] == ["######", "#..#.#"] * 2


def test_a_schedule_of_another_length_is_refused(tmp_path):
    with pytest.raises(fc.errors.PlanError, match="pattern has 3 entries, the run 6 steps"):
        fc.methods.smoothcache_file(written(tmp_path, {"attn1": [1, 0, 1]})).plan(GRID)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 0]", "is not a SmoothCache schedule"),
        ("{}", "is not a SmoothCache schedule"),
        ({"attn1": []}, "lists of 0 and 1"),
        ({"attn1": [1, 2]}, "lists of 0 and 1"),
        ({"attn1": [1, [0]]}, "lists of 0 and 1"),
        ({"attn1": "10"}, "lists of 0 and 1"),
        ({"attn1": [1, 0], "norm": [1, 0]}, "it must map attn1"),
        ({"attn1": [1, 0], "attn": [1, 1]}, "names attn twice"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_with_a_sentence(tmp_path, document, words):
    with pytest.raises(fc.errors.PlanFileError, match=words):
        fc.methods.smoothcache_file(written(tmp_path, document))


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path):
    with pytest.raises(fc.errors.PlanFileError, match="cannot be read: No such file"):
        fc.methods.smoothcache_file(tmp_path / "nowhere.json")
    with pytest.raises(fc.errors.PlanFileError, match="1048578 bytes; such a file has at most"):
        fc.methods.smoothcache_file(written(tmp_path, " " * 2**20 + "{}"))
