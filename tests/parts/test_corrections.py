"""EOC: what it adds to an estimate, on numbers that can be followed by hand, and against its rule written out."""

import copy
import hashlib
import itertools
import json
import random
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from support import reference
from support.small import generate, labels, noise
from support.statistics import measured
from support.traces import everything

import forecache as fc
from forecache.parts.corrections import Drift
from forecache.parts.grid import Cell
from forecache.zoo import Digits

T = 20
SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(3) for kind in ("attn", "mlp"))
"""The branches of the small model."""

STATS = replace(measured(fc.Grid(T, SITES), tokens=16, width=16))
BY_BRANCH = {(site.depth, site.kind): mean for site, mean in zip(SITES, STATS.means, strict=True)}
PER_CHANNEL = {branch: mean.mean(1) for branch, mean in BY_BRANCH.items()}
COMPUTED = {25: set(range(T)) - {1, 3, 5, 7, 9}, 50: set(range(0, T, 2)), 75: {0, 4, 8, 12, 16}}
LISTED = {25: [3, 9], 50: [1, 7, 15], 75: [2, 3, 9, 11, 17]}


# ---- on one number --------------------------------------------------------------------------------------------------


class One(torch.nn.Module):
    """A model that is its only site: what the site gives out can be seen."""

    def __init__(self):
        super().__init__()
        self.f = torch.nn.Identity()

    def forward(self, x, timestep=None):
        return self.f(x)


def series(*averages):
    """Statistics of `One` with these averages in every token and channel, and its grid."""
    grid = fc.grid(One(), len(averages), sites=["f"])
    stats = measured(grid, tokens=2, width=3)
    stats.means[0][:] = torch.tensor(averages)[:, None, None]
    return stats, grid


def test_a_computed_step_ends_a_correction_even_if_the_old_feature_is_read_again():
    """Step 3 reads step 0, past the feature computed at 2: its gain is that of its own trend, 1 -> 4, alone.

    No forecast of ours reads so, and for the others nothing depends on it: the decision is pinned here.
    """
    stats, grid = series(0.0, 2.0, 1.0, 4.0)
    corrector = Drift(stats, 0.5, judge="all").corrector(grid.sites[0], grid)
    cells = [Cell(), Cell(((0, 1.0),)), Cell(), Cell(((0, 1.0),))]
    gains = [corrector.correct(step, cell).gain for step, cell in enumerate(cells)]
    assert [gain is not None for gain in gains] == [False, True, False, True]
    assert corrector.constants[gains[1]].unique().tolist() == [1.0]  # 1 + 0.5 * (2 - 0) = 1 + gain
    assert corrector.constants[gains[3]].unique().tolist() == [1.5]  # not (1 + 1) * (1 + 1.5) - 1


def emitted(method, grid, inputs):
    """What the site gives out at every step, its input being these numbers."""
    model = One()
    with fc.apply(model, method.plan(grid)):
        return [model(torch.full((1, 2, 3), number), timestep=9 - c)[0, 0, 0].item() for c, number in enumerate(inputs)]


AVERAGES = (1.0, 2.0, 4.0, 3.0)
INPUTS = (10.0, 99.0, 99.0, 99.0)


def eoc4(stats, theta, **options):
    """The first step of four is computed."""
    return fc.eoc(fc.fora(4), stats, theta, **options)


def test_the_relative_form_compounds_in_a_gap():
    """The trend is 1, 2, -1: the factors are 1.1, 1.2 and 0.9, and each acts on what the last one left."""
    stats, grid = series(*AVERAGES)
    found = emitted(eoc4(stats, 0.1, judge="all"), grid, INPUTS)
    assert found == pytest.approx([10, 10 * 1.1, 10 * 1.1 * 1.2, 10 * 1.1 * 1.2 * 0.9])


def test_the_relative_form_moves_a_negative_element_against_the_trend():
    """It is the paper's form, taken at its word: the average goes from -1 up to 0, and the estimate down."""
    stats, grid = series(-1.0, 0.0)
    assert emitted(eoc4(stats, 0.1, judge="all"), grid, (-10.0, 99.0)) == pytest.approx([-10, -11])


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_the_additive_form_adds_a_share_of_the_drift_since_the_computed_step(theta):
    stats, grid = series(*AVERAGES)
    found = emitted(eoc4(stats, theta, form="additive", judge="all"), grid, INPUTS)
    assert found == pytest.approx([10, 10 + theta * 1, 10 + theta * 3, 10 + theta * 2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # a step that is not listed gives out what the last correction left in the cache
        ({"theta": 0.1, "judge": [2]}, [10, 10, 12, 12]),
        ({"theta": 0.1, "judge": [1, 3]}, [10, 11, 11, 11 * 0.9]),
        ({"theta": 0.5, "form": "additive", "judge": [2]}, [10, 10, 10 + 0.5 * 3, 10 + 0.5 * 3]),
        ({"theta": 0.5, "form": "additive", "judge": [1, 3]}, [10, 10.5, 10.5, 10.5 + 0.5 * (3 - 2)]),
        # on the averages: 1 -> 1.1 (truth 2), 1.1 -> 1.32 (truth 4), but 1.32 -> 1.188 is farther from 3
        ({"theta": 0.1, "judge": "prior"}, [10, 11, 13.2, 13.2]),
        # 1 -> 2.8 (truth 2), 2.8 -> 6.4 is farther from 4, 2.8 -> 4.6 is farther from 3
        ({"theta": 1.8, "form": "additive", "judge": "prior"}, [10, 11.8, 11.8, 11.8]),
    ],
)
def test_the_judge_says_which_steps_are_corrected(options, expected):
    stats, grid = series(*AVERAGES)
    assert emitted(eoc4(stats, **options), grid, INPUTS) == pytest.approx(expected)


def test_a_correction_that_is_exactly_as_good_is_not_made():
    """Additive, theta 2: the average was 1 too low and is then 1 too high."""
    stats, grid = series(1.0, 2.0)
    with pytest.raises(fc.errors.PlanError, match="corrects nothing: by its judgment plain reuse is closer everywhere"):
        eoc4(stats, 2.0, form="additive").plan(grid)


def test_each_site_is_judged_by_its_own_averages():
    stats, grid = measured(fc.Grid(2, SITES[:2])), fc.Grid(2, SITES[:2])
    stats.means[0][:], stats.means[1][:] = (
        torch.tensor([1.0, 2.0]).reshape(2, 1, 1),
        torch.tensor([-1.0, -2.0]).reshape(2, 1, 1),
    )
    rows = fc.eoc(fc.fora(2), stats, 0.1).plan(grid).rows
    assert ["".join(cell.sign for cell in row) for row in rows] == ["#+", "#."]


def test_a_new_computed_step_starts_the_cache_anew():
    stats, grid = series(*AVERAGES, *AVERAGES)
    found = emitted(eoc4(stats, 0.1, judge="all"), grid, INPUTS + INPUTS)
    assert found[4:] == pytest.approx(found[:4])


def test_a_plan_made_by_hand_can_have_a_gain_and_a_shift():
    """(1 + gain) * (weighted sum) + shift, of which one has a value a token and the other a value a channel."""
    grid = fc.grid(One(), 3, sites=["f"])
    row = (fc.parts.Cell(), fc.parts.Cell(), fc.parts.Cell(((1, 2.0), (0, -1.0)), "twice", "plus"))
    constants = {"twice": torch.full((2, 3), 1.0), "plus": torch.tensor([5.0, 6.0, 7.0])}
    model, plan = One(), fc.Plan(grid, (row,), constants=type(PLAN.constants)(constants))
    with fc.apply(model, plan):
        found = [model(torch.full((1, 2, 3), number), timestep=9 - c) for c, number in enumerate((10.0, 13.0, 99.0))]
    assert torch.equal(found[2], 2 * 16 + constants["plus"].expand(1, 2, 3))


def test_a_small_gain_is_not_lost_in_bfloat16():
    """100 * 1.0035 is 100.5 in bfloat16, whose numbers next to 100 are half apart; 1.0035 itself would become 1."""
    grid = fc.grid(One(), 2, sites=["f"])
    constants = type(PLAN.constants)({"gain": torch.full((2, 3), 0.0035)})
    plan = fc.Plan(grid, ((fc.parts.Cell(), fc.parts.Cell(((0, 1.0),), "gain")),), constants=constants)
    model, x = One(), torch.full((1, 2, 3), 100.0, dtype=torch.bfloat16)
    with fc.apply(model, plan):
        assert torch.equal(model(x, timestep=9), x)
        assert model(x, timestep=8).tolist() == torch.full((1, 2, 3), 100.5).tolist()


def test_steps_that_are_listed_and_computed_are_refused_on_a_base_that_skips_nothing():
    stats, grid = series(*AVERAGES)
    with pytest.raises(fc.errors.PlanError, match=r"asked to correct steps \[1\], but skips \[\]"):
        fc.eoc(fc.fora(1), stats, judge=[1]).plan(grid)


def test_the_additive_form_on_a_straight_line_forecast_adds_what_the_line_misses():
    """Averages 0, 1, 4, 9, computed at 0 and 1: the line says 2 and 3, so 2 and 6 are missing. Features 5, 7: 9, 11."""
    stats, grid = series(0.0, 1.0, 4.0, 9.0)
    base = fc.taylorseer(fc.explicit(compute=[0, 1]), 1)
    for theta in (1.0, 0.5):
        found = emitted(fc.eoc(base, stats, theta, form="additive", judge="all"), grid, (5.0, 7.0, 99.0, 99.0))
        assert found == pytest.approx([5, 7, 9 + theta * 2, 11 + theta * 6])


def test_the_emitted_queue_of_goc_holds_the_corrected_estimate():
    """eta 0.5, theta 0.5. Step 1: 5 + 0.5 (2 - 1) = 5.5, and 1.5 on the averages. Step 3: the queue is (5.5, 8), the
    estimate 8 + 0.5 * 2.5 = 9.25; on the averages (1.5, 4) gives 5.25 for 6, so that 0.375 is added.
    """
    stats, grid = series(1.0, 2.0, 4.0, 6.0)
    method = fc.eoc(fc.goc(fc.fora(2), 0.5), stats, 0.5, form="additive", judge="all")
    assert emitted(method, grid, (5.0, 99.0, 8.0, 99.0)) == pytest.approx([5, 5.5, 8, 9.625])


# ---- against the rule written out -----------------------------------------------------------------------------------

CASES = {
    f"{form}, {level} %, {judge}, per {per}": (
        fc.eoc(fc.methods.fora_paper(level), STATS, theta, form=form, judge=judged, per=per),
        reference.eoc(COMPUTED[level], averages, theta, form, judged),
    )
    for level in (25, 50, 75)
    for form, theta in (("relative", 0.2), ("additive", 0.3))
    for per, averages in (("token", BY_BRANCH), ("channel", PER_CHANNEL))
    for judge, judged in (("all", "all"), ("prior", "prior"), ("listed", LISTED[level]))
}
# where less than a whole step is taken the averages always come closer; here they overshoot, at some steps too far
CASES["additive, 75 %, prior, too much"] = (
    fc.eoc(fc.methods.fora_paper(75), STATS, 1.9, form="additive", per="token"),
    reference.eoc(COMPUTED[75], BY_BRANCH, 1.9, "additive", "prior"),
)
ON_FORECASTS = {
    **{
        f"taylor {order}, {n}, theta {theta}": (
            fc.eoc(fc.taylorseer(fc.fora(n), order), STATS, theta, form="additive", judge="all"),
            reference.eoc_on(
                reference.taylorseer(reference.front(T, n), order), reference.front(T, n), BY_BRANCH, theta
            ),
        )
        for order, n in ((1, 2), (2, 3))
        for theta in (1.0, 0.4)
    },
    **{
        f"goc emitted, 50 %, theta {theta}": (
            fc.eoc(fc.goc(fc.fora(2), 0.8), STATS, theta, form="additive", judge="all"),
            reference.eoc_on(
                reference.goc_emitted(reference.front(T, 2), 0.8), reference.front(T, 2), BY_BRANCH, theta, emitted=True
            ),
        )
        for theta in (1.0, 0.4)
    },
    "goc emitted, listed steps": (
        fc.eoc(fc.goc(fc.fora(2), 0.8, steps=(3, 9)), STATS, 0.4, form="additive", judge="all"),
        reference.eoc_on(
            reference.goc_emitted(reference.front(T, 2), 0.8, corrected={3, 9}),
            reference.front(T, 2),
            BY_BRANCH,
            0.4,
            emitted=True,
        ),
    ),
    "goc emitted, 75 %, theta 0.4": (
        fc.eoc(fc.goc(fc.methods.fora_paper(75), 0.8), STATS, 0.4, form="additive", judge="all"),
        reference.eoc_on_goc_frozen(COMPUTED[75], BY_BRANCH, 0.4, 0.8),
    ),
    "goc computed, 3, theta 1": (
        fc.eoc(fc.goc(fc.fora(3), 0.8, history="computed"), STATS, 1.0, form="additive", judge="all"),
        reference.eoc_on(reference.goc_computed(reference.front(T, 3), 0.8), reference.front(T, 3), BY_BRANCH, 1.0),
    ),
}
EVERY = CASES | ON_FORECASTS


def by_hand(model, rule):
    return reference.ddim(reference.cached(reference.diffusers_dit, model, labels(), rule), noise(), T)


@pytest.mark.parametrize("name", EVERY)
def test_samples_equal_the_reference(dit, name):
    method, rule = EVERY[name]
    plan = method.plan(fc.grid(dit, T))
    with fc.apply(dit, plan):
        ours = generate(dit, T)
    torch.testing.assert_close(ours, by_hand(dit, rule), rtol=0, atol=1e-5)


def test_the_small_model_tells_the_corrections_apart(dit):
    """Where less than the whole drift is added the judge of the additive form finds every step better: that is all."""
    rules = {name: rule for name, (_, rule) in EVERY.items() if not ("additive" in name and "prior" in name)}
    samples = {name: by_hand(dit, rule) for name, rule in rules.items()}
    samples |= {f"fora {level}": by_hand(dit, reference.fora(COMPUTED[level])) for level in COMPUTED}
    samples["too much"] = by_hand(dit, EVERY["additive, 75 %, prior, too much"][1])
    for (a, first), (b, second) in itertools.combinations(samples.items(), 2):
        assert (first - second).abs().max() > 1e-3, f"{a} and {b} cannot be told apart"


@pytest.mark.parametrize("level", [25, 50, 75])
def test_the_priors_judgment_is_neither_all_nor_nothing(level):
    """Of the relative form, on random averages, or else the cases above would prove little."""
    plan = fc.eoc(fc.methods.fora_paper(level), STATS, 0.1).plan(fc.Grid(T, SITES))
    computed_or_not = [name.split("/")[1] for name in plan.constants]
    assert 0 < len(computed_or_not) < len(SITES) * (T - len(COMPUTED[level]))


def test_priors_that_were_measured_equal_the_reference(dit):
    """The paper's form and theta on the model's own averages, from calibration to samples."""
    digits = Digits(dit, DDIMScheduler())
    stats = fc.calibrate(digits, range(8), num_steps=T, batch=8)
    averages = {(site.depth, site.kind): mean for site, mean in zip(stats.sites, stats.means, strict=True)}
    with fc.apply(dit, fc.eoc(fc.methods.fora_paper(75), stats).plan(fc.grid(digits, T))):
        ours = generate(dit, T)
    hand = by_hand(dit, reference.eoc(COMPUTED[75], averages, 0.01, "relative", "prior"))
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["relative", "additive"])
def test_the_plan_says_which_cells_are_corrected(form):
    shown = fc.eoc(fc.methods.fora_paper(75), STATS, form=form, judge="all").plan(fc.Grid(T, SITES)).show()
    assert shown.startswith("eoc(fora_paper(level=75), stats=")
    assert ("form='additive'" in shown.splitlines()[0]) == (form == "additive")
    assert [line.split()[-1] for line in shown.splitlines()[1:7]] == ["#+++" * 5] * 6
    assert "+ corrected" in shown


def test_compact_statistics_correct_per_channel(dit):
    """Kept in half precision, and used in single."""
    grid, small = fc.grid(dit, T), STATS.compact()
    exact = fc.eoc(fc.fora(2), STATS, form="additive", judge="all", per="channel").plan(grid)
    plan = fc.eoc(fc.fora(2), small, form="additive", judge="all", per="channel").plan(grid)
    assert plan.rows == exact.rows
    for name, constant in plan.constants.items():
        assert (constant.shape, constant.dtype) == ((16,), torch.float32)
        torch.testing.assert_close(constant, exact.constants[name], rtol=0, atol=4e-3)
    with pytest.raises(fc.errors.StatisticsError, match="one mean per channel, and a mean per token was asked for"):
        fc.eoc(fc.fora(2), small, per="token").plan(grid)


# ---- what it costs, and what it leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [25, 50, 75])
@pytest.mark.parametrize("form", ["relative", "additive"])
def test_a_correction_keeps_no_more_features_than_its_base(dit, form, level):
    grid = fc.grid(dit, T)
    base = fc.methods.fora_paper(level).plan(grid)
    plan = fc.eoc(fc.methods.fora_paper(level), STATS, form=form, judge="all").plan(grid)
    plain, cost = base.cost(dit, 2), plan.cost(dit, 2)
    assert replace(cost, constant_bytes=0) == plain
    with fc.apply(dit, plan) as session:
        generate(dit, T)
    assert session.stats.peak_cache_bytes == cost.cache_bytes > 0
    assert session.stats.computed == 6 * len(COMPUTED[level])


@pytest.mark.parametrize(("per", "size"), [("token", 16 * 16), ("channel", 16)])
def test_the_cost_counts_the_corrections_bytes(dit, per, size):
    plan = fc.eoc(fc.fora(2), STATS, judge="all", per=per).plan(fc.grid(dit, T))
    cost = plan.cost(dit)
    assert cost.constant_bytes == plan.constants.nbytes == 10 * 6 * size * 4
    assert str(cost).endswith(f"{10 * 6 * size * 4 / 2**20:.1f} MiB of corrections")
    assert fc.fora(2).plan(fc.grid(dit, T)).cost(dit).constant_bytes == 0


def test_after_the_block_the_model_is_as_before(dit):
    bare, before = generate(dit, T), everything(dit)
    plan = fc.eoc(fc.fora(2), STATS, judge="all").plan(fc.grid(dit, T))
    constants = copy.deepcopy(dict(plan.constants))
    with fc.apply(dit, plan):
        first = generate(dit, T)
        assert torch.equal(generate(dit, T), first)
    assert everything(dit) == before
    assert torch.equal(generate(dit, T), bare)
    assert all(torch.equal(plan.constants[name], tensor) for name, tensor in constants.items())


def test_a_base_that_skips_nothing_changes_no_bit(dit, tmp_path):
    plan = fc.eoc(fc.fora(1), STATS, judge="all").plan(fc.grid(dit, T))
    assert plan.picture() == "#" * T
    assert not plan.constants
    bare = generate(dit, T)
    with fc.apply(dit, plan):
        assert torch.equal(generate(dit, T), bare)
    plan.save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_features_in_double_precision_are_corrected_in_it(dit):
    """Nothing is lost but the rounding of the constants, which are in single precision."""
    method, rule = CASES["additive, 75 %, all, per token"]
    dit.double()
    with fc.apply(dit, method.plan(fc.grid(dit, T))):
        ours = generate(dit, T)
    hand = reference.cached(reference.diffusers_dit, dit, labels(), rule)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, reference.ddim(hand, noise().double(), T), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_keep_their_dtype(dtype):
    """And lose no more than it does, the constant and the product rounded once each."""
    stats, grid = series(*AVERAGES)
    model = One()
    with fc.apply(model, eoc4(stats, 0.1, judge="all").plan(grid)):
        found = [model(torch.full((1, 2, 3), number, dtype=dtype), timestep=9 - c) for c, number in enumerate(INPUTS)]
    assert {output.dtype for output in found} == {dtype}
    expected = [10, 11, 13.2, 11.88]
    assert [output[0, 0, 0].item() for output in found] == pytest.approx(expected, rel=torch.finfo(dtype).eps)


def test_features_of_another_size_are_refused_per_token_and_corrected_per_channel():
    stats, grid = series(*AVERAGES)
    model, x = One(), torch.full((1, 5, 3), 10.0)
    with fc.apply(model, eoc4(stats, 0.1, judge="all").plan(grid)) as session:
        model(x, timestep=9)
        words = r"correction f/1/gain is for features of shape \(2, 3\), the model gives \(5, 3\): calibrate at this"
        with pytest.raises(fc.errors.RunError, match=words):
            model(x, timestep=8)
        session.new_run()
    with fc.apply(model, eoc4(stats, 0.1, judge="all", per="channel").plan(grid)):
        found = [model(x, timestep=9 - c)[0, 4, 2].item() for c in range(4)]
    assert found == pytest.approx([10, 11, 13.2, 11.88])


# ---- what is no correction ------------------------------------------------------------------------------------------

GRID = fc.Grid(T, SITES)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fc.eoc(fc.fora(2), STATS, form="multiplicative"), "form must be 'relative' or 'additive', not 'multi"),
        (lambda: fc.eoc(fc.fora(2), STATS, judge="paper"), "judge must be 'prior', 'all' or the steps.*, not 'paper'"),
        (lambda: fc.eoc(fc.fora(2), STATS, per="head"), "per must be 'token' or 'channel', not 'head'"),
        (lambda: fc.eoc(fc.fora(2), STATS, float("nan")), "theta must be a finite number, not nan"),
        (lambda: fc.eoc(fc.fora(2), STATS, float("inf"), form="additive"), "theta must be a finite number, not inf"),
        (lambda: fc.eoc(fc.fora(2), STATS, 0.0).plan(GRID), "corrects nothing.*Use judge='all', another theta, or the"),
        (
            lambda: fc.eoc(fc.fora(2), STATS, judge=[3, 4]).plan(GRID),
            r"asked to correct steps \[4\], but skips \[1, 3,",
        ),
        (lambda: fc.eoc(fc.fora(2), STATS, judge=[-1]).plan(GRID), r"asked to correct steps \[-1\]"),
        (lambda: fc.eoc(fc.fora(2), STATS, judge=[T + 1]).plan(GRID), r"asked to correct steps \[21\]"),
        (lambda: fc.eoc(fc.eoc(fc.fora(2), STATS), STATS), "is corrected already: eoc.. takes a base without another"),
        (
            lambda: fc.eoc(fc.goc(fc.eoc(fc.fora(2), STATS), 0.8), STATS),
            "is corrected already: eoc.. takes a base without another",
        ),
        (
            lambda: fc.eoc(fc.goc(fc.fora(2), 0.8), STATS).plan(GRID),
            "relative form of EOC corrects a reused feature, and step 3 of blocks.0.attn is a forecast: use",
        ),
        (
            lambda: fc.goc(fc.eoc(fc.fora(2), STATS), 0.8).plan(GRID),
            "relative form of EOC corrects a reused feature, and step 3",
        ),
        (lambda: fc.eoc(fc.taylorseer(fc.fora(3), 1), STATS).plan(GRID), "and step 4 of blocks.0.attn is a forecast"),
    ],
)
def test_what_cannot_be_a_correction_is_refused_with_a_sentence(make, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        make()


def test_a_forecast_on_a_corrected_base_is_the_correction_of_the_forecast():
    one = fc.eoc(fc.goc(fc.fora(2), 0.8), STATS, form="additive", judge="all").plan(GRID)
    other = fc.goc(fc.eoc(fc.fora(2), STATS, form="additive", judge="all"), 0.8).plan(GRID)
    assert (one.rows, one.constants) == (other.rows, other.constants)


# ---- files ----------------------------------------------------------------------------------------------------------

PLAN = fc.eoc(fc.methods.fora_paper(75), STATS, judge="all", per="channel").plan(GRID)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "plans" / "plan.json"
    PLAN.save(path)
    return path


@pytest.mark.parametrize("method", ["relative, 75 %, prior, per token", "additive, 50 %, listed, per channel"])
def test_a_corrected_plan_is_the_same_after_saving_and_loading(dit, tmp_path, method):
    plan = CASES[method][0].plan(fc.grid(dit, T))
    plan.save(tmp_path / "plan.json")
    again = fc.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.show() == plan.show()
    samples = []
    for applied in (plan, again):
        with fc.apply(dit, applied):
            samples.append(generate(dit, T))
    assert torch.equal(*samples)


def test_plans_with_other_corrections_are_not_equal(file):
    path = file.with_name("other.json")
    fc.eoc(fc.methods.fora_paper(75), STATS, 0.02, judge="all", per="channel").plan(GRID).save(path)
    other = fc.Plan.load(path)
    assert other.rows == PLAN.rows
    assert other != PLAN
    assert fc.Plan.load(file) == PLAN
    names = ["other.constants.safetensors", "other.json", "plan.constants.safetensors", "plan.json"]
    assert sorted(path.name for path in file.parent.iterdir()) == names


def test_the_two_files_can_be_moved_together(file, tmp_path):
    file.parent.rename(tmp_path / "elsewhere")
    assert fc.Plan.load(tmp_path / "elsewhere" / "plan.json") == PLAN


def beside(path):
    return path.with_name("plan.constants.safetensors")


def other_numbers(path):
    tensors = load_file(beside(path))
    next(iter(tensors.values())).add_(1)
    save_file(tensors, beside(path))


def one_byte(path):
    data = bytearray(beside(path).read_bytes())
    data[-1] ^= 1
    beside(path).write_bytes(data)


def folder(path):
    beside(path).unlink()
    beside(path).mkdir()


def edited(change):
    def make(path):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return make


def cell(change):
    """Step 1 of the first row is changed."""
    return edited(lambda d: change(d["rows"][0]["cells"], d["rows"][0]["cells"][1]))


DAMAGED = {
    "missing": (lambda path: beside(path).unlink(), r"constants are not at .*: keep the two files together"),
    "replaced": (other_numbers, "is not the file that the plan was saved with: save the plan again"),
    "a byte changed": (one_byte, "is not the file that the plan was saved with"),
    "cut": (lambda path: beside(path).write_bytes(beside(path).read_bytes()[:-8]), "is not the file that the plan was"),
    "empty": (lambda path: beside(path).write_bytes(b""), "is not the file that the plan was saved with"),
    "a folder": (folder, "plan.constants.safetensors cannot be read"),
    "no constants": (edited(lambda d: d.update(constants=None)), "name its constants, no more and no less"),
    "constants without a digest": (edited(lambda d: d["constants"].pop("sha256")), "constants lacks sha256"),
    "constants with another key": (edited(lambda d: d["constants"].update(url="x")), "unknown keys"),
    "a digest in capitals": (
        edited(lambda d: d["constants"].update(sha256="A" * 64)),
        "a file beside the plan and its",
    ),
    "a name in numbers": (edited(lambda d: d["constants"].update(file=3)), "file must be a string"),
    "a constant that nobody names": (
        cell(lambda row, cell: row.__setitem__(1, cell["reads"])),
        "name its constants, no more and no less; .*/1/gain.* do not match",
    ),
    "a constant that is not there": (cell(lambda row, cell: cell.update(shift="x")), "no less; .*x.* do not match"),
    "a gain in numbers": (cell(lambda row, cell: cell.update(gain=2)), "the gain of step 1 must be a string"),
    "an unknown key of a cell": (cell(lambda row, cell: cell.update(power="x")), "step 1 must have reads, and a gain"),
    "a cell without a correction": (cell(lambda row, cell: cell.pop("gain")), "step 1 must have reads, and a gain"),
    "a cell without reads": (cell(lambda row, cell: cell.pop("reads")), "step 1 must have reads"),
    "a corrected cell that reads nothing": (cell(lambda row, cell: cell.update(reads=[])), "Step 1 must read earlier"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_pair_of_files_is_refused_with_a_sentence(file, damage):
    change, words = DAMAGED[damage]
    change(file)
    with pytest.raises(fc.errors.PlanFileError, match=words) as caught:
        fc.Plan.load(file)
    assert str(file.parent) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../plan.safetensors", "{}/plan.safetensors", "in/plan.safetensors", "..", ".", "", "a\\b", "a\0b", "x/.."]
)
def test_a_plan_names_no_file_but_one_beside_it(file, tmp_path, name):
    """Not even one that is there and has the right digest."""
    for place in (tmp_path, file.parent / "in"):
        place.mkdir(exist_ok=True)
        (place / "plan.safetensors").write_bytes(beside(file).read_bytes())
    edited(lambda d: d["constants"].update(file=name.format(tmp_path)))(file)
    with pytest.raises(fc.errors.PlanFileError, match="constants must name a file beside the plan and its digest, not"):
        fc.Plan.load(file)


def test_a_tensor_file_that_is_no_safetensors_is_refused_though_its_digest_is_right(file):
    beside(file).write_bytes(b"PK\x03\x04" + bytes(99))
    digest = hashlib.sha256(beside(file).read_bytes()).hexdigest()
    edited(lambda d: d["constants"].update(sha256=digest))(file)
    with pytest.raises(fc.errors.PlanFileError, match="is not a readable safetensors file"):
        fc.Plan.load(file)


@pytest.mark.parametrize("seed", range(2))
def test_a_corrected_plan_with_one_changed_byte_is_a_plan_or_refused(file, seed):
    generator, whole = random.Random(seed), file.read_bytes()
    for _ in range(60):
        mutant = bytearray(whole)
        place = generator.randrange(len(mutant))
        mutant[place : place + generator.randrange(2)] = bytes([generator.randrange(256)])
        file.write_bytes(mutant)
        try:
            plan = fc.Plan.load(file)
        except fc.errors.PlanFileError:
            continue
        assert plan.show()
        assert plan.constants == PLAN.constants
