"""Gates: in which skipped cells the forecast applies (~); elsewhere the feature is reused (.)."""

import pytest

import forecache as fc
from forecache.parts import gates

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(3) for kind in ("attn", "mlp"))


def pictures(gate, num_steps=6, schedule=None):
    """The row of every site, by name, of a gradient on every second step."""
    method = fc.Method("gated", schedule or fc.parts.schedules.every(2), fc.parts.forecasts.Gradient(1.0), gate)
    plan = method.plan(fc.Grid(num_steps, SITES))
    return {site.name: "".join(cell.sign for cell in row) for site, row in zip(plan.grid.sites, plan.rows, strict=True)}


def test_always_forecasts_wherever_two_features_are_there():
    assert set(pictures(gates.always).values()) == {"#.#~#~"}


def test_listed_steps_alone_are_forecast():
    assert set(pictures(gates.on_steps((3,))).values()) == {"#.#~#."}
    assert set(pictures(gates.on_steps((5,))).values()) == {"#.#.#~"}


def test_at_depth_forecasts_in_these_blocks_alone():
    drawn = pictures(gates.at_depth(1, 2))
    assert {name for name, row in drawn.items() if "~" in row} == {"blocks.1.attn", "blocks.1.mlp"}
    assert drawn["blocks.1.attn"] == "#.#~#~"
    assert drawn["blocks.2.attn"] == "#.#.#."


def test_where_forecasts_at_these_sites_alone():
    drawn = pictures(gates.where(fc.parts.schedules.kind("mlp")))
    assert {name for name, row in drawn.items() if "~" in row} == {f"blocks.{i}.mlp" for i in range(3)}


def test_gates_compose():
    drawn = pictures(gates.at_depth(0, 2, gates.where(fc.parts.schedules.kind("attn"), gates.on_steps((5,)))))
    assert {name: row for name, row in drawn.items() if "~" in row} == dict.fromkeys(
        ("blocks.0.attn", "blocks.1.attn"), "#.#.#~"
    )


def test_any_function_is_a_gate():
    drawn = pictures(lambda step, site, grid: step == grid.num_steps - 1 and site.depth == 2)
    assert drawn["blocks.2.mlp"] == "#.#.#~"
    assert drawn["blocks.1.mlp"] == "#.#.#."


@pytest.mark.parametrize("step", [-1, 6])
def test_listed_steps_outside_the_run_are_refused(step):
    with pytest.raises(fc.errors.PlanError, match=rf"Steps \[{step}\] lie outside a run of 6 steps \(0 to 5\)"):
        pictures(gates.on_steps((3, step)))


def test_a_listed_step_that_is_computed_is_refused():
    with pytest.raises(
        fc.errors.PlanError, match=r"correct steps \[4\], but its schedule computes them.*list skipped steps"
    ):
        pictures(gates.on_steps((3, 4)))


def test_a_gate_that_opens_nowhere_is_refused():
    with pytest.raises(fc.errors.PlanError, match="closed in every skipped cell, so its forecast does nothing"):
        pictures(gates.at_depth(7, 9))


def test_a_gate_on_a_plan_without_skipped_steps_has_nothing_to_open():
    assert set(pictures(gates.at_depth(7, 9), schedule=fc.parts.schedules.every(1)).values()) == {"######"}


def test_a_narrowed_gate_still_checks_its_listed_steps():
    gate = gates.at_depth(0, 9, gates.on_steps((2, 3)))
    with pytest.raises(fc.errors.PlanError, match=r"correct steps \[2\]"):
        fc.goc(fc.fora(2), 0.8, gate=gate).plan(fc.Grid(6, (fc.parts.Site("blocks.0.mlp", 0, "mlp"),)))


class Shares:
    """Statistics whose gradients are inverse in these shares of the branches, step by step, and that change so fast."""

    def __init__(self, *shares, changes=(), counts=()):
        self.inverse_shares, self.mean_changes, self.inverse_counts = shares, changes, counts

    def check(self, grid):
        pass


def opened(gate, num_steps=3):
    """``~`` where a gate is open, one sign a step."""
    grid = fc.Grid(num_steps, SITES)
    return "".join("~" if gate(step, SITES[0], grid) else "." for step in range(num_steps))


def test_god_weighs_position_against_share_and_closes_at_the_threshold_itself():
    """B = (position + N) / 2 at gamma 0.5, at positions 0, 0.5 and 1."""
    assert opened(gates.god(Shares(1.0, 0.69, 0.19), 0.5, 0.6)) == "~~~"
    assert opened(gates.god(Shares(1.0, 0.71, 0.21), 0.5, 0.6)) == "~.."
    assert opened(gates.god(Shares(0, 0.25, 0.5), 0.5, 0.375)) == "~.."  # B = 0, 0.375, 0.75
    assert opened(gates.god(Shares(0, 0.25, 0.5), 0.25, 0.375)) == "~~."  # B = 0, 0.3125, 0.625
    assert (
        gates.god(Shares(0, 0, 0), 0.5, 0.6).show(fc.Grid(3, SITES)).startswith("gate god(gamma=0.5, threshold=0.6): ")
    )


@pytest.mark.parametrize("position", ["printed", "falling"])
def test_a_position_that_is_not_known_is_refused(position):
    with pytest.raises(fc.errors.PlanError, match=f"{position}.*only 'growing'.*its Eq. 8 .* was not available to us"):
        gates.god(Shares(0, 0, 0), 0.5, 0.6, position=position)


def test_god_counts_blocks_as_the_paper_does():
    """N = 0, 4 and 1 blocks; B = 0, 2.25 and 1 at gamma 0.5."""
    gate = gates.god(Shares(1, 1, 1, counts=(0, 4, 1)), 0.5, 1.5, "blocks")
    assert opened(gate) == "~.~"
    assert gate.show(fc.Grid(3, SITES)).splitlines()[:2] == [
        "gate god(gamma=0.5, threshold=1.5, N counts blocks): ~ where B is below the threshold", "  N     ▁█▃"
    ]  # fmt: skip


CALM = (0.0, *[0.1] * 19)
"""Changes of 20 steps of which none is faster than those before."""


def rising(*last):
    """Changes of 20 steps that end with these."""
    return CALM[: -len(last)] + last


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (CALM, 20),
        (rising(0.151), 19),  # 1.5 times the mean of the four before is 0.15
        (rising(0.149), 20),
        (rising(0.16, 0.18), 18),  # the mean before the last is 0.115, times 1.5 0.1725
        (rising(0.16, 0.17), 20),  # only the end counts: the last is not fast enough
        (rising(0.2, 0.1, 0.2), 19),
    ],
)
def test_the_proposed_gate_closes_where_the_end_of_a_run_changes_fast(changes, first):
    """With no inverse gradient the position alone decides."""
    gate = gates.proposed(Shares(*[0] * 20, changes=changes))
    assert opened(gate, 20) == "~" * first + "." * (20 - first)
    alone = gates.proposed(Shares(*[1] * 20, changes=changes), gamma=1)
    assert opened(alone, 20) == "~" * first + "." * (20 - first), "N weighs nothing"


def test_the_proposed_gate_closes_where_half_of_the_branches_are_inverse_and_trades_in_between():
    """p = 18.5 / 19 and n = 0.5: open while position / p + N / n < 1."""
    shares = [0.49, 0.51, *[0.0] * 7, 0.25, 0.27, *[0.0] * 6, 0.05, 0.0, 0.0]
    gate = gates.proposed(Shares(*shares, changes=rising(0.2)))
    expected = "".join("~" if (step / 19) / (18.5 / 19) + share / 0.5 < 1 else "." for step, share in enumerate(shares))
    assert opened(gate, 20) == expected == "~.~~~~~~~~.~~~~~~.~."
    assert opened(gates.proposed(Shares(*shares, changes=rising(0.2)), gamma=0), 20) == "~." + "~" * 18


def test_thresholds_of_a_list_of_steps():
    """The authors' list has 19 and not 17: N(17) must exceed N(19) by more than the position gains."""
    listed = (3, 5, 7, 9, 11, 13, 15, 19)
    none = Shares(*[0] * 20)
    assert gates.thresholds(none, 0.5, listed, (17,)) is None
    inverse = Shares(*[0] * 17, 0.5, 0, 0)
    low, high = gates.thresholds(inverse, 0.5, listed, (17,))
    assert (low, high) == pytest.approx((0.5, 0.5 * 17 / 19 + 0.25))
    assert opened(gates.god(inverse, 0.5, high), 20) == "~" * 17 + ".~~"
    assert gates.thresholds(inverse, 0.9, listed, (17,)) is None, "0.5 is less than 9 * 2 / 19"
