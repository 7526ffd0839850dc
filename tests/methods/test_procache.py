"""Chosen tokens by default: the shares of the methods, and the age and the bonus of ToCa."""

import pytest

import forecache as fc

SITES = tuple(fc.parts.Site(f"blocks.{depth}.{kind}", depth, kind) for depth in range(4) for kind in ("attn", "mlp"))


def tokens_of(method, site="blocks.3.mlp", step=2):
    """What a partial cell says of its tokens: share, importance, age and bonus."""
    plan = method.plan(fc.Grid(8, SITES))
    tokens = plan.rows[[site.name for site in plan.grid.sites].index(site)][step].tokens
    return tokens.share, tokens.importance, tokens.age, tokens.bonus


CHOSEN = {
    "toca": (fc.toca(fc.fora(4)), (0.25, "attention", 0.0625, 1.6)),
    "toca by norm": (fc.toca(fc.fora(4), 0.5, importance="attn_norm"), (0.5, "attn_norm", 0.0625, 1.6)),
    "selective": (fc.selective(fc.fora(4)), (0.25, "attn_norm", 0.0, 1.0)),
    "procache": (fc.procache(fc.fora(4), importance="attention"), (0.25, "attention", 0.0, 1.0)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_shares_ages_and_bonuses_by_default(name):
    """ToCa's: a quarter of a quarter a call, 1.6 for the best of a patch; ProCache's paper has neither."""
    method, expected = CHOSEN[name]
    assert tokens_of(method) == expected


def test_the_released_ranking_has_a_share_of_its_own():
    """7 %, rising: of block 3 of 4 at step 2 of 8 it is 0.07 * 1.2 * (3 - 4 * 5 / 8) * 2.5 = 0.105."""
    assert tokens_of(fc.selective(fc.fora(4), importance="released")) == (
        pytest.approx(0.105),
        "attention",
        0.0625,
        1.6,
    )
    with pytest.raises(fc.errors.PlanError, match="give its base, a number"):
        fc.selective(fc.fora(4), 0.5, lambda step, site, grid: 0.1, "released")
