"""Table files: the figures that the papers print, the plans that they ask for, and files that are none."""

import tomllib
from pathlib import Path

import pytest
import torch
from support.costs import CALL
from support.reproductions import DIT, TABLES

import forecache as fc
from forecache import zoo
from forecache.reproduce import testbed as testbeds
from forecache.reproduce.recipes import Ingredients, method_of, needs_statistics
from forecache.reproduce.table import open_table, read
from forecache.reproduce.worker import Protocol, Worker
from forecache.sampling import sources
from forecache.zoo import load_digits
from forecache.zoo.open import open_source

DIGITS = zoo.record("digits")
PUBLISHED_ROWS = {
    ("goc-table-1", "goc.table-1", "is fid sfid precision recall"): {
        "no cache": "none", "FORA 50 %": "fora", "FORA 50 % + GC": "fora-gc", "FORA 50 % + GOC, eta 1.2": "fora-goc",
    },
    ("goc-table-3", "goc.table-3", "is fid sfid precision recall flops speed"): {
        "no cache": "none", "FORA 50 %": "fora-50", "FORA 50 % + GOC, eta 1.2": "fora-goc-50", "FORA 25 %": "fora-25",
        "FORA 25 % + GOC, eta 1.7": "fora-goc-25", "L2C 22 %": "l2c-22", "L2C 22 % + GOC, eta 1.0": "l2c-goc-22",
    },
    ("goc-table-4", "goc.table-4", "fid"): {
        "no cache": "none", "FORA 25 %": "fora-25", "FORA 25 % + GOC, eta 1.7": "fora-goc-25",
    },
    ("goc-table-5", "goc.table-5", "fid latency deviation"): {
        "FORA 50 %": "fora-50", "FORA 50 % + GOC, eta 1.2": "fora-goc-50", "FORA 25 %": "fora-25",
        "FORA 25 % + GOC, eta 1.7": "fora-goc-25", "L2C 22 %": "l2c-22", "L2C 22 % + GOC, eta 1.0": "l2c-goc-22",
    },
    ("procache-dit", "procache.dit-table", "latency flops speed fid sfid precision is"): {
        "no cache": "none", "Delta-DiT, N = 3": "delta-dit-3", "FORA N = 3": "fora-3", "ToCa, N = 3": "toca-3",
        "ProCache": "procache",
    },
    ("procache-ablation", "procache.dit-ablation", "speed fid sfid"): {
        "uniform": "uniform", "pattern alone": "pattern", "uniform, selective": "selective",
        "both (ProCache)": "both",
    },
    ("procache-pixart", "procache.pixart-table", "latency speed fid clip"): {
        "no cache": "none", "FORA N = 3": "fora-3", "ToCa": "toca", "ProCache": "procache",
    },
}  # fmt: skip
"""(table, section of published.toml, its columns): row of the table -> row of the section."""
PRINTED = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
"""Every figure that the papers print."""


def section(name):
    rows = PRINTED
    for key in name.split("."):
        rows = rows[key]
    return rows


def published_of(table):
    """Row -> its published figures as numbers; rows without any are left out."""
    rows = open_table(table).rows
    return {row.name: {key: float(text) for key, text in row.published.items()} for row in rows if row.published}


@pytest.mark.parametrize(("table", "name", "columns"), PUBLISHED_ROWS, ids=[table for table, *_ in PUBLISHED_ROWS])
def test_published_figures_are_the_papers_and_none_is_missing(table, name, columns):
    rows, printed = PUBLISHED_ROWS[table, name, columns], section(name)
    assert set(rows.values()) == {key for key, row in printed.items() if key != "level"}
    expected = {}
    for row, key in rows.items():
        figures = printed[key] if isinstance(printed[key], list) else [printed[key]]
        expected[row] = dict(zip(columns.split(), figures, strict=True))
    assert published_of(table) == expected


def test_every_eta_of_the_second_table_has_its_five_figures():
    expected = {}
    for base, rows in section("goc.table-2").items():
        schedule, level = base.removesuffix(" %").split(" + GOC, ")
        for eta, figures in rows.items():
            columns = ("is", "fid", "sfid", "precision", "recall")
            expected[f"{schedule} {level} % + GOC, eta {eta}"] = dict(zip(columns, figures, strict=True))
    assert len(expected) == 15
    assert published_of("goc-table-2") == expected
    for row in open_table("goc-table-2").rows[1:]:
        assert row.recipe["eta"] == float(row.name.split()[-1])
        level = int(row.name.split()[1])
        assert row.recipe["base"]["level"] == level
        listed = {50: [3, 5, 7, 9, 11, 13, 15, 19], 25: [3, 5, 7, 9], 22: None}[level]
        assert row.recipe.get("steps") == listed


def test_eoc_prints_pairs():
    expected = {}
    for key, (without, with_eoc) in PRINTED["eoc"].items():
        schedule, level = key.split("-")
        expected[f"{schedule.upper()} {level} %"] = {"fid": without}
        expected[f"{schedule.upper()} {level} % + EOC"] = {"fid": with_eoc}
    assert published_of("eoc") == expected


def test_every_section_has_a_table():
    """Besides the speed-ups of the abstract, which stand in ProCache's tables as well."""
    names = {f"{paper}.{name}" for paper, rows in PRINTED.items() for name in rows if isinstance(rows[name], dict)}
    assert names == {name for _, name, _ in PUBLISHED_ROWS} | {"goc.table-2"}
    assert (PRINTED["procache"]["dit"], PRINTED["procache"]["pixart-alpha"]) == (
        published_of("procache-dit")["ProCache"]["speed"],
        published_of("procache-pixart")["ProCache"]["speed"],
    )


def test_a_row_that_stands_in_several_tables_has_one_plan():
    """And the same figures, but for FORA's IS, which the paper prints as 190.056 and as 190.046."""
    rows = {}
    for name in TABLES:
        table = open_table(name)
        for row in table.rows[1:]:
            recipe, published = rows.setdefault((table.paper, table.model, row.name), (row.recipe, {}))
            assert row.recipe == recipe
            for key, figure in row.published.items():
                if (row.name, key) != ("FORA 50 %", "is"):
                    assert published.setdefault(key, figure) == figure


def test_the_papers_accounts_of_flops_are_those_of_their_schedules():
    """Calls of DiT-XL/2: GOC's column is MACs of 50 of them, ProCache's FLOPs of 50; FORA has 18 of 50 by its own."""
    for name, flops in (("goc-table-3", 11.868), ("procache-dit", 23.74)):
        table = open_table(name)
        counted = 2 * CALL * table.flops.steps * table.flops.per_mac / 1e12
        assert counted == pytest.approx(flops, rel=5e-4)
        assert table.rows[0].published["flops"] == str(flops)
    digits = fc.grid(load_digits(), 50)
    rows = [row for name in ("procache-dit", "procache-ablation") for row in open_table(name).rows]
    recipes = [next(row.recipe for row in rows if row.name == name) for name in ("FORA N = 3", "uniform")]
    computed = [method_of(recipe, Ingredients()).plan(digits).picture().count("#") for recipe in recipes]
    assert computed == [18, 17]
    assert [50 / count for count in computed] == pytest.approx([2.76, 2.93], rel=0.01)


def test_the_tables_ask_for_the_papers_schedules():
    digits = load_digits()
    grid = fc.grid(digits, 20)
    three = {
        row.name: row.recipe for name in ("goc-table-1", "goc-table-3") for row in open_table(name).rows if row.recipe
    }
    ingredients = Ingredients(
        {22: fc.Router.load(DIGITS.router_path(22))},
        fc.Statistics.load(DIGITS.statistics_path(20)),
    )
    pictures = {name: method_of(recipe, ingredients).plan(grid).picture() for name, recipe in three.items()}
    assert pictures["FORA 50 %"] == "#.#.#.#.#.#.#.#.#.#."
    assert pictures["FORA 25 %"] == "#.#.#.#.#.##########"
    assert pictures["FORA 50 % + GC"] == "#.#~#~#~#~#~#~#~#~#~"
    assert pictures["FORA 50 % + GOC, eta 1.2"] == "#.#~#~#~#~#~#~#~#.#~"  # 17 is not in the list
    assert pictures["FORA 25 % + GOC, eta 1.7"] == "#.#~#~#~#~##########"
    fora75 = next(row.recipe for row in open_table("eoc").rows if row.name == "FORA 75 %")
    assert method_of(fora75, ingredients).plan(grid).picture() == "#...#...#...#...#..."
    weights = method_of(three["FORA 50 % + GOC, eta 1.2"], ingredients).plan(grid).rows[0][5].reads
    assert dict(weights) == pytest.approx({4: 2.2, 3: -1.2})
    patterns = {row.name: row.recipe for row in open_table("procache-dit").rows if row.recipe}
    computed = {0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 38, 40, 42, 44, 46, 48}
    row = method_of(patterns["ProCache"], ingredients).plan(fc.grid(digits, 50)).rows[0]
    assert {step for step, cell in enumerate(row) if cell.computed} == computed


@pytest.mark.parametrize("name", TABLES)
def test_every_bundled_table_can_be_planned(name, pipe, pixart_folder):
    table = open_table(name)
    source = sources.as_source(pipe) if name in DIT else open_source(str(pixart_folder), "cpu")
    grid = fc.grid(source.target, table.steps)
    names = tuple(site.name for site in grid.sites if site.kind != "cross")
    logits = torch.zeros(table.steps, len(names))
    logits[1] = -5
    ingredients = Ingredients({22: fc.Router(logits, names, (1,))}, None)
    assert table.rows[0].recipe is None
    for row in table.rows[1:]:
        if not row.absent and not needs_statistics(row.recipe):
            plan = method_of(row.recipe, ingredients).plan(grid)
            assert plan.num_steps == table.steps
            assert plan.computed_share < 1


def written(path, **changes):
    """A small table, with some of its lines changed; None leaves one out."""
    lines = {
        "format": '"forecache-table"', "version": "1", "title": '"mine"', "paper": '"2503.05156"', "model": '"digits"',
        "sampler": '"DDIM"', "steps": "4", "guidance": "1.5", "samples": "10", "batch": "5",
        "conditions": '"classes in turn"', "metrics": '["psnr"]',
        "rows": '[{name = "none"}, {name = "FORA", plan = {method = "fora", interval = 2}}]',
    } | changes  # fmt: skip
    path.write_text("\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None))
    return path


def plan(text):
    return {"rows": f'[{{name = "none"}}, {{name = "x", plan = {text}}}]'}


BAD = [
    ({"format": '"other"'}, "its format is 'other', not 'forecache-table'"),
    ({"version": "2"}, "its version is 2; this forecache reads version 1"),
    ({"steps": None}, "the file lacks steps"),
    ({"colour": '"red"'}, r"unknown keys \['colour'\]"),
    ({"steps": '"4"'}, "steps of the file is of type int, not '4'"),
    ({"samples": "0"}, "samples is at least 1, not 0"),
    ({"sampler": '"Euler"'}, "sampler is one of DDIM, DPM-Solver"),
    ({"conditions": '"all"'}, "conditions is one of random classes"),
    ({"metrics": '["beauty"]'}, "metrics is one of fid, .* not 'beauty'"),
    ({"metrics": "[]"}, "names no metric"),
    ({"paper": '"GOC"'}, "an arXiv number such as 2503.05156, not 'GOC'"),
    ({"notes": "[1]"}, "notes are texts, not 1"),
    ({"calibration": "{samples = 4}"}, "calibration lacks guidance, shared_noise, seed"),
    ({"flops": "{steps = 0, per_mac = 1}"}, "steps of flops is at least 1, not 0"),
    ({"flops": "{steps = 50}"}, "flops lacks per_mac"),
    ({"latency": "{images = 8, rounds = 0}"}, "rounds of latency is at least 1, not 0"),
    ({"vae": "3"}, "vae of the file is of type str, not 3"),
    (
        {"rows": '[{name = "a"}, {name = "x", absent = "no", plan = {method = "fora", interval = 2}}]'},
        "row 'x' has a plan, and says why it is absent",
    ),
    ({"rows": '[{name = "a", absent = "no"}]'}, "the first row, and no other, has no plan"),
    ({"rows": "[]"}, "the first row, and no other, has no plan"),
    ({"rows": '[{name = "a"}, {name = "b"}]'}, "the first row, and no other, has no plan"),
    ({"rows": '[{name = "A b"}, {name = "a-b", plan = {method = "fora", interval = 2}}]'}, "names of their own"),
    ({"rows": '[{name = "../x", published = {fid = 3.5}}]'}, "fid of row '../x' is a number in quotes"),
    ({"rows": '[{name = "x", published = {beauty = "1"}}]'}, "published of row 'x' is one of fid"),
    (plan('"fora"'), "plan of a row is of type dict"),
    (plan("{interval = 2}"), "plan of row 'x' names no method"),
    (plan('{method = "os.system"}'), "method of row 'x' is one of adaptive, .* not 'os.system'"),
    (plan('{method = "fora"}'), "fora of row 'x' lacks interval"),
    (plan('{method = "fora", interval = 2, anchor = "middle"}'), "anchor of fora of row 'x' is one of start, end"),
    (plan('{method = "goc", eta = 1}'), "goc of row 'x' takes a base, and has none"),
    (plan('{method = "fora", interval = 2, base = {method = "fora"}}'), "fora of row 'x' takes no base"),
    (plan('{method = "goc", eta = 1, base = {method = "fora"}}'), "fora of row 'x' lacks interval"),
    (plan('{method = "explicit", skip = ["1"]}'), "skip of explicit of row 'x' lists steps"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words for _, words in BAD])
def test_a_table_that_is_none(tmp_path, changes, words):
    with pytest.raises(fc.errors.TableError, match=words) as refusal:
        read(written(tmp_path / "mine.toml", **changes))
    assert "mine.toml" in str(refusal.value)


def test_other_files_and_names(tmp_path):
    table = read(written(tmp_path / "mine.toml"))
    assert (table.name, table.source, table.guidance) == ("mine", "arXiv 2503.05156", 1.5)
    assert table.rows[1].recipe == {"method": "fora", "interval": 2}
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe = [")
    for name, words in (("a", "no table 'a'; there are eoc, goc-table-1"), ("b.toml", "is not a readable table")):
        with pytest.raises(fc.errors.TableError, match=words):
            open_table(str(tmp_path / name) if "." in name else name)
    with pytest.raises(fc.errors.TableError, match="There is no table at"):
        open_table(str(tmp_path / "nowhere.toml"))


def test_a_table_of_few_samples_is_measured_with_few(tmp_path):
    """The papers' 50,000 become 320 on a bundled model; a table of one's own that asks for less gets less."""
    few = read(written(tmp_path / "mine.toml", samples="2"))
    for table, count in ((few, 2), (open_table("goc-table-1"), 320)):
        testbed = testbeds.open_testbed(table, "digits", testbeds.TestbedOptions(metrics="psnr"), "cpu", judges=False)
        assert Worker(table, testbed, tmp_path, Protocol(), lambda *_: None).samples == count
