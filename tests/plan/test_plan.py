"""Plans: what a method filled in, as a picture, as a file, and what a damaged file is answered with."""

import json
import random

import pytest
from hypothesis import given
from support.plans import methods, plans
from support.tiny import TINY

import forecache as fc

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
GRID = fc.Grid(6, SITES, "SmallDiT")
PLAN = fc.goc(fc.fora(2), 1.2).plan(GRID)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    return path


def mixed_plan():
    schedule = fc.parts.schedules.at(
        fc.parts.schedules.kind("mlp"), fc.parts.schedules.every(3), fc.parts.schedules.every(2)
    )
    method = fc.goc(fc.Method("mixed", schedule), 1.0, gate=fc.parts.gates.at_depth(1, 2), whole_blocks=False)
    return method.plan(GRID)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_show_prints_one_line_a_site_and_one_sign_a_step():
    assert mixed_plan().show() == "\n".join(
        [
            "goc(mixed, eta=1, whole_blocks=False, gate=custom): 6 steps x 4 sites, 41.7% computed",
            "blocks.0.attn  #.#.#.",
            "blocks.0.mlp   #..#..",
            "blocks.1.attn  #.#~#~",
            "blocks.1.mlp   #..#~~",
            "# computed   . reused   ~ forecast   + corrected   o some tokens computed",
        ]
    )


def test_picture_draws_each_distinct_row_once_the_most_frequent_first():
    assert PLAN.picture() == "#.#~#~"
    one_of_four = fc.parts.schedules.at(
        lambda site: site.name == "blocks.0.attn", fc.parts.schedules.every(1), fc.parts.schedules.every(3)
    )
    assert fc.Method("mostly", one_of_four).plan(GRID).picture() == "#..#..\n######"


def test_computed_share_counts_cells():
    assert PLAN.computed_share == 0.5
    assert mixed_plan().computed_share == pytest.approx(10 / 24)


def test_a_plan_without_provenance_can_be_shown():
    assert fc.Plan(GRID, PLAN.rows).show().startswith("plan: 6 steps x 4 sites, 50.0% computed\n")


# ---- what is not a plan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (lambda: fc.Grid(0, SITES), "at least one step; num_steps=0 was asked for"),
        (lambda: fc.Grid(4, ()), "at least one site"),
        (lambda: fc.Grid(4, (*SITES, SITES[1])), r"unique; blocks\.0\.mlp stands more than once"),
    ],
)
def test_a_grid_without_cells_is_refused(grid, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        grid()


@pytest.mark.parametrize("rows", [PLAN.rows[:3], (*PLAN.rows[:3], PLAN.rows[0][:5]), ()])
def test_rows_that_do_not_fit_the_grid_are_refused(rows):
    with pytest.raises(fc.errors.PlanError, match="one row per site with one cell per step"):
        fc.Plan(GRID, rows)


@pytest.mark.parametrize(
    "reads",
    [
        ((1, 1.0),),
        ((2, 1.0),),
        ((-1, 1.0),),
        ((0, 0.5), (0, 0.5)),
    ],
)
def test_a_cell_reads_earlier_steps_each_once(reads):
    row = (fc.parts.Cell(), fc.parts.Cell(reads), *[fc.parts.Cell()] * 4)
    with pytest.raises(fc.errors.PlanError, match="Step 1 must read earlier steps, each once"):
        fc.Plan(GRID, (row,) * 4)


@pytest.mark.parametrize("weights", [(float("nan"), 1.0), (float("inf"), -float("inf")), (1e8, -1e8)])
def test_weights_are_finite(weights):
    row = (fc.parts.Cell(), fc.parts.Cell(), fc.parts.Cell(((1, weights[0]), (0, weights[1]))), *[fc.parts.Cell()] * 3)
    with pytest.raises(fc.errors.PlanError, match="weights of step 2 must be finite, and not huge"):
        fc.Plan(GRID, (row,) * 4)


# ---- files ----------------------------------------------------------------------------------------------------------


@given(plans())
def test_any_plan_is_the_same_after_saving_and_loading(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(path)
    assert fc.Plan.load(path) == plan


@given(methods())
def test_the_plan_of_any_method_is_the_same_after_saving_and_loading(tmp_path_factory, method):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan = method.plan(GRID)
    plan.save(path)
    again = fc.Plan.load(path)
    assert again == plan
    assert again.show() == plan.show()


def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_file(file):
    before = file.read_bytes()
    fc.Plan.load(file).save(str(file))
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["plan.json"]


def test_a_saved_file_names_its_format_version_and_origin(file):
    document = json.loads(file.read_text())
    assert (document["format"], document["version"]) == ("forecache-plan", 2)
    assert document["provenance"] == {"method": "goc(fora(interval=2), eta=1.2)", "forecache": fc.__version__}


def test_sites_with_the_same_row_share_it(file):
    assert [row["sites"] for row in json.loads(file.read_text())["rows"]] == [[0, 1, 2, 3]]


def edited(change):
    """The bytes of the plan's file after ``change(document)``."""

    def make(text):
        document = json.loads(text)
        change(document)
        return json.dumps(document).encode()

    return make


def cell(value):
    """The file with ``value`` as the cell of step 3."""
    return edited(lambda d: d["rows"][0]["cells"].__setitem__(3, value))


def swap(text, before, after):
    assert before in text
    return text.replace(before, after).encode()


def chosen(**changes):
    """A partial cell, changed."""
    usual = {"share": 0.5, "importance": "random", "site": ""}
    if "site" in changes:
        usual["importance"] = "attn_norm"
    return {"reads": [[2, 1.0]], "tokens": usual | changes}


DAMAGED = {
    "empty": (lambda text: b"", "Expecting value"),
    "not JSON": (lambda text: b"\x89PNG\r\n", "not a readable plan file"),
    "not UTF-8": (lambda text: b'{"format": "\xff"}', "not a readable plan file"),
    "truncated": (lambda text: text[: len(text) // 2].encode(), "not a readable plan file"),
    "a list": (lambda text: b"[]", "its document must be an object"),
    "a null": (lambda text: b"null", "its document must be an object"),
    "another format": (edited(lambda d: d.update(format="onnx")), "format is 'onnx', not 'forecache-plan'"),
    "unknown version": (edited(lambda d: d.update(version=1)), "version is 1; this forecache reads version 2"),
    "version true": (edited(lambda d: d.update(version=True)), "version is True"),
    "unknown key": (edited(lambda d: d.update(pickle="x")), r"unknown keys \['pickle'\]"),
    "unknown key of a site": (edited(lambda d: d["sites"][0].update(cls="x")), r"a site has unknown keys \['cls'\]"),
    "unknown key of a row": (edited(lambda d: d["rows"][0].update(eta=1)), r"a row has unknown keys \['eta'\]"),
    "missing key": (edited(lambda d: d.pop("sites")), "lacks sites"),
    "no steps": (edited(lambda d: d.update(num_steps=0)), "at least one step"),
    "half a step": (edited(lambda d: d.update(num_steps=6.0)), "num_steps must be a whole number"),
    "more steps": (edited(lambda d: d.update(num_steps=7)), "a row has 6 cells for 7 steps"),
    "a short row": (edited(lambda d: d["rows"][0]["cells"].pop()), "a row has 5 cells for 6 steps"),
    "a site less": (edited(lambda d: d["sites"].pop()), "site 3 does not exist or has two rows"),
    "a site twice": (edited(lambda d: d["sites"].append(d["sites"][0])), "stands more than once"),
    "a site more": (
        edited(lambda d: d["sites"].append({"name": "new", "depth": 0, "kind": ""})),
        "new has no row",
    ),
    "two rows of a site": (edited(lambda d: d["rows"].append(d["rows"][0])), "does not exist or has two rows"),
    "site -1": (edited(lambda d: d["rows"][0].update(sites=[-1, 1, 2, 3])), "a site's index must be a whole number"),
    "no sites": (edited(lambda d: d.update(sites=[], rows=[])), "at least one site"),
    "a number for a name": (edited(lambda d: d["sites"][0].update(name=3)), "a site's name must be a string"),
    "a list for a provenance": (edited(lambda d: d.update(provenance=[])), "provenance must map names to strings"),
    "a later step": (cell([[4, 1.0]]), "Step 3 must read earlier steps"),
    "its own step": (cell([[3, 1.0]]), "Step 3 must read earlier steps"),
    "a step twice": (cell([[2, 0.5], [2, 0.5]]), "Step 3 must read earlier steps, each once"),
    "no reads": (cell([]), "Step 3 must read earlier steps"),
    "an unknown sign": (cell("."), "the cell of step 3 must be a list"),
    "tokens of another kind": (
        cell({"reads": [[2, 1.0]], "tokens": 0.5}),
        "tokens of step 3 must have share, importance",
    ),
    "tokens without a share": (cell(chosen(share=None)), "share of the tokens of step 3 must be a number, not None"),
    "a share of 2": (cell(chosen(share=2)), "between 0 and 1"),
    "an unknown importance": (cell(chosen(importance="eval")), "importance must be attn_norm"),
    "an importance that is a list": (
        cell(chosen(importance=["random"])),
        "importance of the tokens of step 3 must be a",
    ),
    "tokens with an unknown key": (cell(chosen(cls="x")), r"unknown keys \['cls'\]"),
    "tokens of a site that is not there": (cell(chosen(site="blocks.9.attn")), "which is no site before it"),
    "a grid of one side": (cell(chosen(token_grid=[3])), r"token_grid of step 3 must be \[rows, columns\]"),
    "an age in words": (cell(chosen(age="1")), "age of the tokens of step 3 must be a number"),
    "half a seed": (cell(chosen(seed=0.5)), "the seed of step 3 must be a whole number"),
    "halves that are neither": (cell(chosen(halves="none")), "'own' or 'shared'"),
    "a weight in words": (cell([[2, "1.0"]]), r"not a \[step, weight\] pair"),
    "a weight true": (cell([[2, True]]), r"not a \[step, weight\] pair"),
    "a bare number": (cell([2]), r"not a \[step, weight\] pair"),
    "weights that cancel": (cell([[2, 1e8], [1, -1e8]]), "finite, and not huge"),
    "NaN": (cell([[2, float("nan")]]), "NaN is not a number that it can hold"),
    "infinity": (cell([[2, float("inf")], [1, float("-inf")]]), "Infinity is not a number"),
    "1e999": (lambda text: swap(text, "2.2", "1e999"), "not a finite number"),
    "a huge step": (cell([[10**400, 1.0]]), "an integer of 401 digits"),
    "a huge weight": (cell([[2, 10**400]]), "an integer of 401 digits"),
    "more digits than Python reads": (lambda text: swap(text, "2.2", "9" * 5000), "not a readable plan file"),
    "a huge sum": (cell([[2, 1e308], [1, 1e308], [0, 1e308]]), "not a readable plan file"),
    "deep lists": (lambda text: b"[" * 200_000, "not a readable plan file"),
    "deep objects": (lambda text: b'{"format":' * 200_000, "not a readable plan file"),
    "a deep cell": (
        lambda text: swap(text, "[[2, 2.2], [0, -1.2]]", "[" * 900 + "]" * 900),
        "not a readable plan file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name_and_the_reason(file, damage):
    change, words = DAMAGED[damage]
    file.write_bytes(change(file.read_text()))
    with pytest.raises(fc.errors.PlanFileError, match=words) as caught:
        fc.Plan.load(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < len(str(file)) + 400, "an error is a sentence, not the file"


def test_a_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(fc.errors.PlanFileError, match=r"There is no plan file at .*nowhere\.json"):
        fc.Plan.load(tmp_path / "nowhere.json")


def test_a_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(fc.errors.PlanFileError, match=f"{tmp_path.name} cannot be read"):
        fc.Plan.load(tmp_path)


def test_a_file_of_a_size_that_no_plan_has_is_refused_unread(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(fc.errors.PlanFileError, match=r"huge\.json.*at most"):
        fc.Plan.load(path)


@pytest.mark.parametrize("seed", range(6))
def test_a_file_with_one_changed_byte_is_a_plan_or_refused(file, seed):
    """Nothing but a PlanFileError comes out; what is still a plan is one that can be printed and saved."""
    generator, whole = random.Random(seed), file.read_bytes()
    for _ in range(100):
        mutant = bytearray(whole)
        place = generator.randrange(len(mutant))
        mutant[place : place + generator.randrange(2)] = bytes([generator.randrange(256)])
        file.write_bytes(mutant)
        try:
            plan = fc.Plan.load(file)
        except fc.errors.PlanFileError:
            continue
        assert plan.show()
        plan.save(file)
        assert fc.Plan.load(file) == plan


def test_an_overview_has_a_line_for_all_sites_that_do_the_same():
    plan = fc.fora(2).plan(fc.grid(TINY["FLUX.1"].model(), 4))
    assert plan.overview().splitlines() == [
        "fora(interval=2): 4 steps x 9 sites, 50.0% computed",
        "2 attn, 2 mlp, 2 mlp_text, 3 parallel  #.#.",
        fc.parts.patterns.legend(),
    ]

    def first_computed(step, site, grid):
        return fc.parts.Action.SKIP if step % 2 and site.depth else fc.parts.Action.COMPUTE

    router = fc.Method("half", first_computed)
    lines = router.plan(fc.grid(TINY["SD3"].model(), 4)).overview().splitlines()
    assert lines[1:3] == ["1 attn, 1 mlp, 1 mlp_text  ####", "2 attn, 2 mlp, 1 mlp_text  #.#."]


@pytest.mark.parametrize("given", [20, TINY["SD3"]])
def test_a_method_is_planned_on_a_grid_alone(given):
    with pytest.raises(fc.errors.PlanError, match=r"planned on a grid.*was given: method\.plan\(forecache\.grid"):
        fc.fora(2).plan(given)


def test_the_size_of_a_grid_is_in_numbers_that_agree():
    site = fc.parts.Site("stack", 0, "stack")
    assert fc.Grid(1, (site,)).size == "1 step x 1 site"
    assert "3 steps x 2 sites" in repr(fc.Grid(3, (site, fc.parts.Site("b", 0, "b"))))
