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
    """Statistics of one site whose gradient points the wrong way in these shares of the sites, step by step."""

    def __init__(self, *shares):
        self.inverse_shares = shares

    def check(self, grid):
        pass


def opened(gate, num_steps=3):
    """``~`` where a gate is open, one sign a step."""
    grid = fc.Grid(num_steps, SITES)
    return "".join("~" if gate(step, SITES[0], grid) else "." for step in range(num_steps))


def test_god_weighs_position_and_share_equally_and_closes_from_six_tenths_on():
    """B = (position + N) / 2 by default, at positions 0, 0.5 and 1. Open below 0.6: the paper prints neither value."""
    assert opened(gates.god(Shares(1.0, 0.69, 0.19))) == "~~~"
    assert opened(gates.god(Shares(1.0, 0.71, 0.21))) == "~.."
    assert opened(gates.god(Shares(0, 0.25, 0.5), threshold=0.375)) == "~.."  # B = 0, 0.375, 0.75: closed at B itself
    assert gates.god(Shares(0, 0, 0)).show(fc.Grid(3, SITES)).startswith("gate god(gamma=0.5, threshold=0.6): ")
