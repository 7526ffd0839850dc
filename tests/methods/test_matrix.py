"""Any base with any correction: every cell of the matrix against sampling written out by hand, and against the laws."""

from dataclasses import replace

import pytest
import torch
from support import reference
from support.small import generate, labels, noise

import forecache as fc
from forecache.parts.statistics import Origin, inverse_table

T = 20
SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(3) for kind in ("attn", "mlp"))
BRANCHES = [(site.depth, site.kind) for site in SITES]
THRESHOLD = 0.5


def random_statistics():
    """Averages that drift like features do, and changes that fall below the threshold here and there."""
    draw = torch.Generator().manual_seed(7)
    means = tuple(torch.randn(T, 16, 16, generator=draw).cumsum(0) * 0.05 for _ in SITES)
    changes = torch.rand(T, len(SITES), 3, generator=draw)
    origin = Origin("", "", "", 1.5, 0, False, "first", 1, (0,), "")
    counts = torch.ones(T, len(SITES), dtype=torch.int64)
    return fc.Statistics(SITES, means, changes, inverse_table(means), counts, origin)


STATS = random_statistics()
AVERAGES = dict(zip(BRANCHES, STATS.means, strict=True))


def random_router():
    """Odd calls skip some branches, by a router that was never trained."""
    logits = torch.randn(T, len(SITES), generator=torch.Generator().manual_seed(3)) * 3 - 3
    return fc.Router(logits, tuple(site.name for site in SITES), tuple(range(1, T, 2)))


ROUTER = random_router()


def all_alike(computed):
    return {branch: set(computed) for branch in BRANCHES}


def by_router():
    """The cells whose probability is at most 0.1 are skipped, on odd calls."""
    return {
        branch: {c for c in range(T) if c % 2 == 0 or 1 / (1 + 2.718281828459045 ** -ROUTER.logits[c, i].item()) > 0.1}
        for i, branch in enumerate(BRANCHES)
    }


def by_change():
    """SmoothCache by hand: skipped while the change since the last computed step, mean over a kind, is below."""
    table = {}
    for depth, kind in BRANCHES:
        own = [i for i, (_, each) in enumerate(BRANCHES) if each == kind]
        computed = [0]
        for c in range(1, T):
            gap = c - computed[-1]
            if gap > 3 or sum(STATS.changes[c, i, gap - 1].item() for i in own) / len(own) >= THRESHOLD:
                computed.append(c)
        table[depth, kind] = set(computed)
    return table


BASES = {
    "FORA 25": (fc.methods.fora_paper(25), all_alike(set(range(T)) - {1, 3, 5, 7, 9})),
    "FORA 50": (fc.methods.fora_paper(50), all_alike(range(0, T, 2))),
    "FORA 75": (fc.methods.fora_paper(75), all_alike(range(0, T, 4))),
    "FORA N=3": (fc.fora(3), all_alike(reference.front(T, 3))),
    "FORA N=3 end": (fc.fora(3, anchor="end"), all_alike(reference.end(T, 3))),
    "L2C": (fc.l2c(ROUTER), by_router()),
    "list": (fc.explicit(skip=[2, 3, 7, 8, 9, 10, 15, 19]), all_alike(set(range(T)) - {2, 3, 7, 8, 9, 10, 15, 19})),
    "SmoothCache": (fc.smoothcache(STATS, THRESHOLD), by_change()),
}

GATE = fc.parts.gates.god(STATS, gamma=0.7, threshold=0.6)


def opened():
    """The steps at which the gate is open: 0.7 * position + 0.3 * share of inverse gradients is below 0.6."""
    inverse = [sum(STATS.inverse[c].tolist()) / len(SITES) for c in range(T)]
    return {c for c in range(T) if 0.7 * c / (T - 1) + 0.3 * inverse[c] < 0.6}


def listed(table):
    """Every second step at which a whole block is skipped."""
    whole = [c for c in range(T) if any(c not in table[i, "attn"] | table[i, "mlp"] for i in range(3))]
    return whole[1::2]


def each(table, rule):
    return reference.by_branch({branch: rule(computed) for branch, computed in table.items()})


CORRECTIONS = {
    "none": (lambda base, table: base, lambda table: each(table, reference.fora)),
    "GOC gated": (
        lambda base, table: fc.goc(base, 0.9, gate=GATE),
        lambda table: reference.goc_on(table, 0.9, opened()),
    ),
    "GOC listed": (
        lambda base, table: fc.goc(base, 0.9, steps=listed(table)),
        lambda table: reference.goc_on(table, 0.9, set(listed(table))),
    ),
    "EOC relative": (
        lambda base, table: fc.eoc(base, STATS, 0.05),
        lambda table: each(table, lambda computed: reference.eoc(computed, AVERAGES, 0.05, "relative", "prior")),
    ),
    "EOC additive": (
        lambda base, table: fc.eoc(base, STATS, 0.5, form="additive"),
        lambda table: each(table, lambda computed: reference.eoc(computed, AVERAGES, 0.5, "additive", "prior")),
    ),
    "Taylor 1": (
        lambda base, table: fc.taylorseer(base, 1),
        lambda table: each(table, lambda computed: reference.taylorseer(computed, 1)),
    ),
    "Taylor 2": (
        lambda base, table: fc.taylorseer(base, 2),
        lambda table: each(table, lambda computed: reference.taylorseer(computed, 2)),
    ),
}

MATRIX = [(base, correction) for base in BASES for correction in CORRECTIONS]


def compiled(base, correction):
    method, table = BASES[base]
    made, rule = CORRECTIONS[correction]
    return made(method, table).plan(fc.Grid(T, SITES, "DiTTransformer2DModel")), rule(table), table


def by_hand(model, rule):
    return reference.ddim(reference.cached(reference.diffusers_dit, model, labels(), rule), noise(), T)


@pytest.mark.parametrize(("base", "correction"), MATRIX)
def test_samples_equal_the_reference(dit, base, correction):
    plan, rule, _ = compiled(base, correction)
    with fc.apply(dit, plan):
        ours = generate(dit, T)
    torch.testing.assert_close(ours, by_hand(dit, rule), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("base", "correction"), MATRIX)
def test_the_picture_shows_what_is_computed_and_what_is_corrected(base, correction):
    plan, _, table = compiled(base, correction)
    for site, row, line in zip(SITES, plan.rows, plan.show().splitlines()[1:], strict=False):
        signs = line.split()[-1]
        assert {c for c in range(T) if signs[c] == "#"} == table[site.depth, site.kind]
        assert set(signs) <= set({"EOC": "#.+", "GOC": "#.~", "Tay": "#.~", "non": "#."}[correction[:3]])
        assert signs == "".join(cell.sign for cell in row)
    corrected = set("".join(plan.picture().split())) - {"#", "."}
    assert bool(corrected) == (correction != "none")


@pytest.mark.parametrize(("base", "correction"), MATRIX)
def test_every_cell_obeys_the_laws(dit, tmp_path, base, correction):
    """Equal after save and load; the predicted bytes are what a run keeps; nothing is left on the model."""
    plan, _, _ = compiled(base, correction)
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan
    bare = generate(dit, T)
    with fc.apply(dit, plan) as session:
        first, second = generate(dit, T), generate(dit, T)
    assert torch.equal(first, second)  # nothing of the first generation is reused in the second
    assert session.stats.peak_cache_bytes == plan.cost(dit, batch_size=2).cache_bytes
    assert torch.equal(generate(dit, T), bare)


def test_the_bases_differ_from_branch_to_branch_where_they_should():
    """Or else the matrix would not tell whole blocks from single branches."""
    assert len({frozenset(steps) for steps in BASES["L2C"][1].values()}) == 6
    assert len({frozenset(steps) for steps in BASES["SmoothCache"][1].values()}) == 2
    whole = set(listed(BASES["L2C"][1]))
    assert len(whole) > 2
    assert set(opened()) & whole
    assert whole - set(opened())


def test_the_emitted_queue_is_stable_on_long_gaps(dit):
    """Frozen within a gap, an error grows by eta from gap to gap; taken literally, within the gap too."""
    bare = generate(dit, T)
    table = all_alike(reference.front(T, 4))
    literal = by_hand(dit, each(table, lambda computed: reference.goc_emitted(computed, 1.0)))
    with fc.apply(dit, fc.goc(fc.fora(4), 1.0).plan(fc.grid(dit, T))):
        ours = generate(dit, T)
    assert (ours - bare).abs().mean() < (literal - bare).abs().mean()


@pytest.mark.parametrize("correction", ["none", "GOC gated", "Taylor 1", "Taylor 2"])
@pytest.mark.parametrize("base", BASES)
def test_selective_computation_on_any_base_and_forecast_equals_the_reference(dit, tmp_path, base, correction):
    method, table = BASES[base]
    made, rule = CORRECTIONS[correction]
    plan = fc.selective(made(method, table), 0, 0.5, every=1).plan(fc.Grid(T, SITES, "DiTTransformer2DModel"))
    with fc.apply(dit, plan) as session:
        ours = generate(dit, T)
    torch.testing.assert_close(ours, by_hand(dit, reference.amended(rule(table), table, 0.5)), rtol=0, atol=2e-5)
    assert session.stats.peak_cache_bytes == plan.cost(dit, 2).cache_bytes
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("form", ["relative", "additive"])
def test_eoc_corrects_the_tokens_that_are_not_computed(dit, form):
    """With a share of 0 it is EOC alone, though every cell is partial; with all tokens nothing is left to correct."""
    base = fc.eoc(fc.methods.fora_paper(75), STATS, 0.05 if form == "relative" else 0.5, form=form, judge="all")
    grid = fc.Grid(T, SITES, "DiTTransformer2DModel")

    def sampled(method):
        with fc.apply(dit, method.plan(grid)):
            return generate(dit, T)

    alone, none = sampled(base), sampled(fc.selective(base, 0, 0.0, every=1))
    torch.testing.assert_close(none, alone, rtol=0, atol=1e-5)
    assert not torch.equal(sampled(fc.methods.fora_paper(75)), alone)
    kind, every = fc.parts.schedules.kind, fc.parts.schedules.every
    attentions = fc.parts.schedules.at(kind("mlp"), every(1), fc.methods.fora_paper(75).schedule)
    all_of_them = sampled(fc.selective(base, 0, 1.0, every=1))
    torch.testing.assert_close(all_of_them, sampled(replace(base, schedule=attentions)), rtol=0, atol=1e-5)
    some = sampled(fc.selective(base, 0, 0.5, every=1))
    assert not torch.equal(some, sampled(fc.selective(fc.methods.fora_paper(75), 0, 0.5, every=1)))
    assert not torch.equal(some, all_of_them)
