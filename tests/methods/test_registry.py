"""One function is the only place of a method: its options, table words, controls, recipe and docs come from it."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Annotated

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.routers import published

import forecache as fc
from forecache.compare.selection import Selection, controls, corrections
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.fit.tuning.gram import Gram
from forecache.methods import Range, flags, registry
from forecache.methods.flags import Expression
from forecache.methods.replan import part_of
from forecache.parts import schedules
from forecache.parts.statistics import Origin, inverse_table
from forecache.reproduce.recipes import Ingredients, method_of
from forecache.reproduce.recipes import read as read_recipe

T = 20
SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(3) for kind in ("attn", "mlp"))
GRID = fc.Grid(T, SITES)
LONG = replace(GRID, num_steps=50)


def statistics(steps=T, seed=0):
    draw = torch.Generator().manual_seed(seed)
    means = tuple(torch.randn(steps, 4, 8, generator=draw).cumsum(0) for _ in SITES)
    changes = torch.rand(steps, len(SITES), 3, generator=draw)
    origin = Origin("", "", "", 1.5, 0, False, "first", 1, (0,), "")
    counts = torch.ones(steps, len(SITES), dtype=torch.int64)
    return fc.Statistics(SITES, means, changes, inverse_table(means), counts, origin)


def router(seed=3):
    logits = torch.randn(T, len(SITES), generator=torch.Generator().manual_seed(seed)) * 3 - 3
    return fc.Router(logits, tuple(site.name for site in SITES), tuple(range(1, T, 2)))


STATS, ROUTER = statistics(), router()


@pytest.fixture(scope="module")
def schedule_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("schedule") / "smooth.json"
    path.write_text(json.dumps({"attn1": [1, 0] * 10, "ff": [1, 0, 0, 1] * 5}))
    return path


# ---- every method with every base -----------------------------------------------------------------------------------

VALUES = {
    "whole": st.integers(1, 4),
    "number": st.floats(0, 1).map(lambda value: round(value, 3)),
    "block": st.sampled_from([0, 1, 0.5]),
    "switch": st.booleans(),
    "steps": st.just([3, 5, 9]),
    "pattern": st.just("#..." * 5),
    "words": st.just(["mlp"]),
    "numbers": st.just([1.0, 0.9]),
}


@st.composite
def expressions(draw, path):
    """A recipe of any base, under any correction, with any of their parameters; ingredients stand in it as data."""

    def part(entry):
        values = {"method": entry.name}
        for parameter in entry.in_forms:
            ingredients = {"statistics": STATS, "router": ROUTER, "file": path}
            if parameter.is_ingredient:
                if parameter.required:
                    values[parameter.name] = ingredients[parameter.kind]
            elif parameter.required or (draw(st.booleans()) and not parameter.range.needs):
                choices = st.sampled_from(parameter.choices) if parameter.choices else None
                values[parameter.name] = draw(choices if parameter.kind == "choice" else VALUES[parameter.kind])
        if entry.name == "explicit":  # one of the three
            name = draw(st.sampled_from(["skip", "compute", "pattern"]))
            values = {"method": "explicit", name: {"skip": [1, 3, 5, 9], "compute": [0, 4, 8]}.get(name, "#..." * 5)}
        return values

    recipe = part(registry.registered(draw(st.sampled_from(flags.bases()))))
    if draw(st.booleans()):
        recipe = part(registry.registered(draw(st.sampled_from(flags.corrections())))) | {"base": recipe}
    return recipe


@given(st.data())
def test_plan_file_recipe_and_plan_again_are_equal(tmp_path_factory, schedule_file, data):
    recipe = data.draw(expressions(schedule_file))
    try:
        method = registry.build(recipe)
        plan = method.plan(LONG if recipe.get("method") == "procache_paper" else GRID)
    except fc.errors.ForecacheError:
        return  # a combination that has no plan, such as a list of steps that the base computes
    assert plan.recipe == method.recipe is not None
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(path)
    loaded = fc.Plan.load(path)
    assert loaded == plan
    again = registry.build(loaded.recipe, [STATS, ROUTER, schedule_file])
    assert again.plan(plan.grid).rows == plan.rows
    assert registry.check(loaded.recipe) == loaded.recipe


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_makes_a_plan_with_a_recipe(name, schedule_file):
    """The property above is not empty: by its usual values, every method has a plan."""
    entry = registry.registered(name)
    given = {"stats": STATS, "router": ROUTER, "path": schedule_file, "level": 50, "steps": 4}
    own = {parameter.name: given.get(parameter.name, parameter.range.usual) for parameter in entry.parameters
           if parameter.required and parameter.kind != "base"}  # fmt: skip
    own |= {"pattern": "#..." * 5} if name in ("explicit", "adaptive") else {}
    own |= {"squares": [0.1] * (T * (T + 1) // 2)} if name == "adaptive" else {}
    own |= {"ratios": [1.0]} if name == "magcache" else {}
    base = {"base": fc.fora(4)} if entry.takes_base else {}
    method = entry.function(**own, **base)
    plan = method.plan(LONG if name == "procache_paper" else GRID)
    assert plan.recipe["method"] == name
    assert method.name.startswith(f"{name}(")
    assert plan.provenance["method"] == method.name
    assert 0 < plan.computed_share < 1


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_the_recipe_of_an_expression():
    plan = fc.goc(fc.fora(2), 0.8).plan(GRID)
    assert plan.recipe == {"method": "goc", "eta": 0.8, "base": {"method": "fora", "interval": 2}}


def test_none_in_the_place_of_another_default_is_held():
    """A rule that is not bounded stays so when its plan is planned again."""
    method = fc.seacache(0.3, max_gap=None)
    assert "max_gap=None" in method.name
    assert method.recipe["max_gap"] is None
    assert registry.build(method.recipe).plan(GRID).online == method.plan(GRID).online
    assert method.plan(GRID).online.bounds.max_gap is None
    assert fc.seacache(0.3).plan(GRID).online.bounds.max_gap == 2


@pytest.mark.parametrize(
    "method",
    [
        fc.Method("mine", schedules.every(2)),
        fc.goc(fc.Method("mine", schedules.every(2)), 0.8),
        fc.goc(fc.fora(2), 0.8, gate=lambda step, site, grid: True),
        replace(fc.fora(2), schedule=schedules.every(3)),
    ],
    ids=["by hand", "a base by hand", "a function", "another schedule"],
)
def test_a_method_that_is_no_expression_has_no_recipe(method):
    plan = method.plan(GRID)
    assert plan.recipe is None
    with pytest.raises(fc.errors.PlanError, match="has no recipe"):
        fc.methods.replan(plan, replace(GRID, num_steps=30))


def test_an_edited_plan_has_no_recipe():
    plan = fc.fora(2).plan(GRID)
    assert replace(plan, provenance={}).recipe is None


def test_the_paper_s_gate_is_its_parameters():
    gate = fc.parts.gates.god(STATS, gamma=0.4, threshold=0.5)
    by_gate, flat = fc.goc(fc.fora(2), 0.8, gate=gate), fc.goc(fc.fora(2), 0.8, stats=STATS, gamma=0.4, threshold=0.5)
    assert by_gate.recipe == flat.recipe
    assert by_gate.plan(GRID) == flat.plan(GRID)


def test_ingredients_are_found_by_their_digest(tmp_path):
    STATS.save(tmp_path / "mine.safetensors")
    method = fc.eoc(fc.l2c(ROUTER), tmp_path / "mine.safetensors")
    assert method.recipe["stats"]["file"] == "mine.safetensors"
    assert "stats='mine.safetensors'" in method.name
    again = fc.methods.build(method.recipe, [statistics(seed=9), ROUTER, STATS])
    assert again.plan(GRID).rows == method.plan(GRID).rows
    with pytest.raises(fc.errors.PlanError, match=r"stats of eoc is statistics 'mine.safetensors' .* give Statistics"):
        fc.methods.build(method.recipe, [statistics(seed=9), ROUTER])
    with pytest.raises(fc.errors.PlanError, match=r"router of l2c is a router with the digest .* Router\.read"):
        fc.methods.build(method.recipe, [STATS])


def test_a_published_router_and_ours_are_one_ingredient(tmp_path):
    torch.save(published(), tmp_path / "router.pt")
    fc.Router.read(tmp_path / "router.pt").save(tmp_path / "router.safetensors")
    digests = [fc.l2c(tmp_path / name).recipe["router"]["sha256"] for name in ("router.pt", "router.safetensors")]
    assert digests[0] == digests[1]


BAD = [
    ({"method": "nothing"}, "method is one of adaptive, .* not 'nothing'"),
    ({"interval": 2}, "names no method"),
    ({"method": "fora"}, "fora lacks interval"),
    ({"method": "fora", "interval": 0}, "interval of fora is at least 1; not 0"),
    ({"method": "fora", "interval": True}, "interval of fora is a whole number"),
    ({"method": "fora", "interval": 2, "phase": 1}, r"unknown keys \['phase'\]; it knows anchor, interval"),
    ({"method": "goc", "eta": 1}, "goc takes a base, and has none"),
    ({"method": "fora", "interval": 2, "base": {"method": "fora", "interval": 2}}, "fora takes no base"),
    ({"method": "l2c", "router": {"sha256": 5}}, "router of l2c refers to an ingredient by file and sha256"),
    ({"method": "goc", "eta": 1, "gamma": 0.4, "base": {"method": "fora", "interval": 2}}, "gamma of goc needs stats"),
    ({"method": "explicit", "pattern": "abc"}, "pattern of explicit is written with"),
]


@pytest.mark.parametrize(("recipe", "words"), BAD, ids=[words for _, words in BAD])
def test_a_recipe_that_no_method_fits_is_refused(recipe, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        fc.methods.build(recipe)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (5, "must be an object that names its method"),
        ({"base": {}}, "must be an object that names its method"),
        ({"method": "goc", "eta": None}, "must hold numbers, strings"),
        ({"method": "goc", "steps": [0] * 5000}, "a list of 5000 entries"),
    ],
)
def test_a_file_with_a_strange_recipe_is_refused(tmp_path, recipe, words):
    fc.fora(2).plan(GRID).save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(document | {"recipe": recipe}))
    with pytest.raises(fc.errors.PlanFileError, match=words):
        fc.Plan.load(tmp_path / "plan.json")


def test_a_plan_that_ranks_tokens_by_a_function_is_not_saved_at_all(tmp_path):
    method = fc.eoc(fc.toca(fc.fora(4), importance=lambda x: x.norm(dim=-1)), STATS, 0.1, form="additive", judge="all")
    plan = method.plan(GRID)
    with pytest.raises(fc.errors.PlanError, match="cannot be saved: it ranks tokens by a function"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())


# ---- another length, another model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        fc.warmup(fc.fora(3), 4),
        fc.feedback(fc.fora(3, anchor="end"), 1, 0.8),
        fc.selective(fc.fora(4), 0.5, importance="random"),
        fc.goc(fc.fora(2), 0.8, history="computed", whole_blocks=False),
    ],
    ids=lambda method: method.name,
)
def test_another_length_is_planned_by_the_method_itself(method):
    plan = fc.methods.resampled(method.plan(GRID), 33)
    assert plan.rows == method.plan(replace(GRID, num_steps=33)).rows
    assert plan.recipe == method.recipe
    assert plan.provenance["resampled"] == "from 20 to 33 steps"


def test_another_model_is_planned_by_the_method_itself():
    more = fc.Grid(30, tuple(fc.parts.Site(f"blocks.{i}.mlp", i, "mlp") for i in range(7)), "Other")
    method = fc.feedback(fc.fora(3))
    assert fc.methods.replan(method.plan(GRID), more) == method.plan(more)
    other = statistics(30, seed=5)
    grid = replace(GRID, num_steps=30)
    with pytest.raises(fc.errors.PlanError, match="not among the ingredients"):
        fc.methods.replan(fc.smoothcache(STATS, 0.5).plan(GRID), grid)
    again = fc.methods.replan(fc.smoothcache(STATS, 0.5).plan(GRID), grid, stats=other)
    assert again == fc.smoothcache(other, 0.5).plan(grid)


@pytest.mark.parametrize(
    "method",
    [fc.eoc(fc.fora(2), STATS), fc.l2c(ROUTER), fc.smoothcache(STATS, 0.5), fc.goc(fc.fora(2), 0.8, stats=STATS)],
    ids=["eoc", "l2c", "smoothcache", "god"],
)
def test_calibrated_plans_are_not_stretched(method):
    with pytest.raises(fc.errors.PlanError, match="were calibrated for 20 steps and cannot be stretched to 30"):
        fc.methods.resampled(method.plan(GRID), 30)


@pytest.mark.parametrize("correct", [lambda base: fc.goc(base, 0.8), lambda base: fc.feedback(base, 2, 0.7)])
def test_a_method_of_one_length_keeps_its_forecast_when_it_is_stretched(correct):
    """The even pattern written out becomes the even pattern of the other length, under the forecast of the recipe."""
    plan = correct(fc.explicit(pattern="#." * 10)).plan(GRID)
    longer = fc.methods.resampled(plan, 40)
    assert longer.rows == correct(fc.fora(2)).plan(replace(GRID, num_steps=40)).rows
    assert longer.recipe is None


@pytest.mark.parametrize("text", ["taylor 2", "taylor 2, feedback 0.5", "goc 0.8", "reuse"])
def test_a_tuned_plan_of_a_known_forecast_has_its_recipe(text):
    """So it can be stretched, and served from the middle of a run; with fitted weights it cannot."""
    pattern = "#.#..#...#" * 2
    method = ForecastSpec.parse(text).method(pattern, Gram((), T))
    plan = method.plan(GRID)
    assert method.name == f"tuned({pattern!r}, {text!r})"
    assert fc.methods.build(plan.recipe).plan(GRID).rows == plan.rows
    assert fc.methods.resampled(plan, 40).num_steps == 40
    assert part_of(plan, range(6, T)).rows[0][0].computed


def test_an_edited_recipe_does_not_make_another_plan():
    """A recipe counts where it makes exactly the plan; else the plan is stretched by what its cells show."""
    plan = fc.fora(2).plan(GRID).with_recipe({"method": "fora", "interval": 5})
    assert fc.methods.resampled(plan, 40).rows == fc.fora(2).plan(replace(GRID, num_steps=40)).rows


# ---- a method of one's own ------------------------------------------------------------------------------------------

TOY = '''
from typing import Annotated

from forecache.methods import Range, register
from forecache.parts.forecasts import Gradient
from forecache.plan import Method


@register
def toy(
    base: Method, pull: Annotated[float, Range(least=0, most=1, slider=(0, 1, 0.1))] = 0.5, *, interval: int = 2
) -> Method:
    """Reuse, pulled back a little (a toy).

    base: the schedule
    pull: share of the way back
    interval: a name that fora has, too
    """
    return base.with_forecast("toy", Gradient(-pull))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_method

    yield toy_method.toy
    registry.unregister("toy")
    del sys.modules["toy_method"]


def test_a_method_of_one_s_own_is_everywhere(toy):
    assert fc.methods.toy is toy
    plan = toy(fc.fora(3), 0.3).plan(GRID)
    assert plan.recipe == {"method": "toy", "pull": 0.3, "base": {"method": "fora", "interval": 3}}
    assert fc.methods.build(plan.recipe).plan(GRID) == plan
    assert fc.methods.resampled(plan, 40).rows == toy(fc.fora(3), 0.3).plan(replace(GRID, num_steps=40)).rows
    in_table = read_recipe({"method": "toy", "pull": 0.3, "base": {"method": "fora", "interval": 3}}, "")
    assert method_of(in_table, Ingredients()).plan(GRID) == plan
    with pytest.raises(ValueError, match="pull of toy of row 'x' lies between 0 and 1; not 2.0"):
        read_recipe({"method": "toy", "pull": 2, "base": {"method": "fora", "interval": 3}}, " of row 'x'")
    assert corrections("digits")["toy"] == "toy: Reuse, pulled back a little"
    assert set(controls("toy")) == {"pull", "toy_interval"}
    picked = Selection(correction="toy", values={"interval": 3, "pull": 0.3})
    assert picked.method().plan(GRID) == plan
    assert "`toy`" in registry.table()
    assert "| `pull` | 0 to 1 | `0.5` | share of the way back |" in registry.parameter_table("toy")


def test_a_method_of_one_s_own_on_the_command_line(toy, tmp_path):
    """As an entry point has it, or an import before: here the program imports the file, then runs the command."""
    program = "import sys, toy_method; from forecache.cli import main; main()"

    def run(*words):
        command = [sys.executable, "-c", program, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    out = tmp_path / "plan.json"
    done = run("plan", "toy", "--pull", 0.3, "--interval", 3, "--model", "tiny", "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert fc.Plan.load(out).recipe == {"method": "toy", "pull": 0.3, "base": {"method": "fora", "interval": 3}}
    text = " ".join(run("plan", "--help").stdout.split())
    assert "Options of toy" in text
    assert "--pull" in text
    assert "--toy-interval" in text


def test_a_name_is_given_once(toy):
    def fora(interval: int) -> fc.Method:
        """Another one."""

    with pytest.raises(fc.errors.InputError, match="There is a method fora already"):
        registry.register(fora)


def test_an_annotation_that_no_form_can_be_made_of_is_refused():
    def odd(base: fc.Method, thing: object) -> fc.Method:
        """Odd."""

    def bare(base: fc.Method, thing) -> fc.Method:
        """Bare."""

    with pytest.raises(fc.errors.InputError, match="thing of odd is annotated"):
        registry.register(odd)
    with pytest.raises(fc.errors.InputError, match="thing of bare needs an annotation"):
        registry.register(bare)
    assert not {"odd", "bare"} & set(registry.methods())


# ---- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", registry.methods().values(), ids=lambda entry: entry.name)
def test_every_parameter_is_documented_and_has_a_flag(entry):
    assert all(parameter.help for parameter in entry.parameters)
    assert set(flags.names_of(entry)) == {parameter.name for parameter in entry.in_forms}


def test_flags_do_not_mean_two_things():
    for name, flag in flags.flags().items():
        kinds = {(parameter.kind, parameter.choices) for parameter in flag.owners.values()}
        assert len(kinds) == 1, name
        assert name not in flags.RESERVED


def test_the_base_is_the_one_that_a_flag_belongs_to():
    def name(**given):
        return Expression("feedback", None, given).chain()[-1].name

    assert name() == "fora"
    assert name(skip="1,3") == "explicit"
    assert name(router="r") == "l2c"
    assert name(caching_level=50) == "fora_paper"
    assert name(strength=0.3) == "fora"


def test_a_flag_of_another_method_is_refused():
    with pytest.raises(fc.errors.InputError, match=r"--eta belongs to --method goc, and --method fora does not"):
        Expression("fora", None, {"eta": 1.0}).build()


def test_ranges_are_checked():
    def number(value: Annotated[float, Range(least=0)] = 1.0) -> fc.Method:
        """One.

        value: a number
        """

    (parameter,) = registry.parameters_of(number)
    assert parameter.canonical(3) == 3.0
    for value in (-1, float("nan"), float("inf"), "3", True, None):
        with pytest.raises(ValueError, match="value"):
            parameter.canonical(value)
