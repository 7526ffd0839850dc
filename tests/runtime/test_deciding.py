"""Plans that decide while they run: replay, bounds, lanes, threads, exceptions, cost; on a small random DiT."""

import threading
from dataclasses import replace

import pytest
import torch
from support.small import small_dit

import forecache as fc
from forecache.parts.bounds import Bounds, Decision
from forecache.parts.forecasts import Feedback, Gradient, Reuse, Taylor
from forecache.plan.online import Program, decided_rows, extreme_runs

STEPS = 15
TIMES = tuple(range(990, 0, -66))
LABELS = torch.tensor([1, 2])


@pytest.fixture(scope="module")
def model():
    return small_dit(3)


def noise(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sampled(model, seed=0, labels=LABELS, scale=0.1):
    x = noise(seed)
    for time in TIMES:
        x = x - scale * model(x, timestep=torch.full((2,), time), class_labels=labels).sample[:, :4]
    return x


def pattern(session):
    return session.decided().provenance["decided"]


FORECASTS = {
    "reuse": lambda base: base,
    "taylor": lambda base: fc.taylorseer(base, 2),
    "goc": lambda base: fc.goc(base, 0.8),
    "paper's queue": lambda base: fc.goc(base, 0.8, gaps="paper"),
    "feedback": lambda base: fc.feedback(base, 2),
    "a closed gate": lambda base: fc.goc(base, 0.8, gate=lambda step, site, grid: site.depth == 1 and step > 5),
}


# ---- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "level", "forecast"),
    [
        (fc.easycache(0.12, first=2), "branches", "goc"),
        (fc.easycache(0.12, first=2), "branches", "a closed gate"),
        (fc.fbcache(0.25), "stack", "feedback"),
        *((fc.teacache(0.3), "blocks", name) for name in FORECASTS),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_was_decided_repeats_the_run_bit_for_bit(model, base, level, forecast, tmp_path):
    """Also from a file, and a static plan of the same cells gives the same samples within rounding."""
    method = FORECASTS[forecast](base)
    with fc.apply(model, method, num_steps=STEPS, level=level) as session:
        sample = sampled(model)
    plan = session.decided()
    assert {"#", "."} == set(pattern(session))
    assert not plan.is_undecided
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan
    with fc.apply(model, plan) as again:
        assert torch.equal(sampled(model), sample)
    assert again.stats.counts() == session.stats.counts()
    assert again.decided() is plan
    with fc.apply(model, fc.Plan(plan.grid, plan.rows)):
        torch.testing.assert_close(sampled(model), sample, atol=1e-5, rtol=0)
    cost = method.plan(plan.grid).cost(model, 1, guidance=True)
    assert cost.least.macs <= plan.cost(model, 1, guidance=True).macs <= cost.macs
    assert session.stats.peak_cache_bytes <= cost.cache_bytes
    assert session.stats.peak_cache_bytes == plan.cost(model, 1, guidance=True).cache_bytes


def test_a_plan_that_is_undecided_shows_it_and_is_kept_in_a_file(model, tmp_path):
    plan = fc.goc(fc.easycache(0.1, first=3, budget=8), 0.8).plan(fc.grid(model, STEPS))
    assert plan.picture() == "###" + "?" * 11 + "#"
    assert "53.3% to 53.3% computed" in plan.show()
    assert "? decided while it runs" in plan.show()
    assert "fewer), at most" in str(plan.cost(model))
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    assert '"version": 3' in text
    for good, bad, why in [
        ('"transformation_rate"', '"magic"', "a decider is named one of"),
        ('"threshold": 0.1', '"threshold": -1', "A threshold is a number from 0 on"),
        ('"at_most": 8', '"at_most": 2', "At most 2 of 15 steps"),
        ('"max_gap": null', '"max_gap": "x"', "max_gap is a whole number"),
        ('"eta": 0.8', '"eta": "x"', "eta must be of type float"),
        ('"version": 3', '"version": 4', "its version is 4"),
        ('"online": {', '"offline": {', "lacks online"),
    ]:
        assert good in text
        (tmp_path / "bad.json").write_text(text.replace(good, bad))
        with pytest.raises(fc.errors.PlanFileError, match=why):
            fc.Plan.load(tmp_path / "bad.json")
    with pytest.raises(fc.errors.PlanError, match="is undecided, and nothing decides"):
        replace(plan, online=None)


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.15, 9.0])
@pytest.mark.parametrize("budget", [5, 9])
def test_a_budget_is_exact_whatever_the_rule_says(model, threshold, budget):
    with fc.apply(model, fc.easycache(threshold, first=2, budget=budget), num_steps=STEPS) as session:
        sampled(model)
    assert pattern(session).count("#") == budget
    assert (pattern(session)[:2], pattern(session)[-1]) == ("##", "#")


def test_the_longest_gap_and_the_bounds_are_kept(model):
    with fc.apply(model, fc.teacache(9.0, max_gap=3, at_least=6), num_steps=STEPS) as session:
        sampled(model)
    assert max(map(len, pattern(session).split("#"))) == 3
    assert pattern(session).count("#") == 6


@pytest.mark.parametrize("bounds", [Bounds(2, 1, 3, at_most=6), Bounds(1, 0, None, 4, 4), Bounds(1, 2, 5, 7, 8)])
def test_bounds_are_kept_by_any_rule(bounds):
    """Every rule is a sequence of wishes: all of them for the free steps of a short run."""
    steps = 10
    fixed = bounds.ends(steps)
    for wishes in range(2**steps):
        made = []
        for step in range(steps):
            computed = [earlier for earlier, one in enumerate(made) if one is Decision.COMPUTE]
            wish = Decision.COMPUTE if wishes >> step & 1 else Decision.SKIP
            made.append(bounds.forced(step, computed, steps, fixed) or wish)
        count = made.count(Decision.COMPUTE)
        gaps = "".join(one.value for one in made).split("#")
        assert (bounds.at_least or 0) <= count <= (bounds.at_most or steps)
        assert all(made[step] is Decision.COMPUTE for step in fixed)
        assert max(map(len, gaps)) <= (steps if bounds.max_gap is None else bounds.max_gap)


# ---- the laws --------------------------------------------------------------------------------------------------------


def test_nothing_of_one_generation_decides_in_another(model):
    method = fc.goc(fc.easycache(0.15, first=2), 0.8)
    with fc.apply(model, method, num_steps=STEPS) as session:
        first, own = sampled(model, 0), pattern(session)
        other = sampled(model, 1, scale=0.4)
        assert pattern(session) != own
        assert torch.equal(sampled(model, 0), first)
        assert pattern(session) == own
    with fc.apply(model, method, num_steps=STEPS):
        assert torch.equal(sampled(model, 1, scale=0.4), other)


def test_the_first_lane_of_a_step_decides_for_the_others(model):
    """A wild second lane changes nothing in what is decided, and follows the first."""
    with fc.apply(model, fc.fbcache(0.25), num_steps=STEPS) as alone:
        sampled(model)
    x, y = noise(0), noise(1) * 50
    with fc.apply(model, fc.fbcache(0.25), num_steps=STEPS) as session, torch.no_grad():
        for time in TIMES:
            t = torch.full((2,), time)
            with session.lane("cond"):
                x = x - 0.1 * model(x, timestep=t, class_labels=LABELS).sample[:, :4]
            with session.lane("uncond"):
                y = y + 3 * model(y, timestep=t, class_labels=LABELS).sample[:, :4]
    assert pattern(session) == pattern(alone)
    assert {"#", "."} == set(pattern(session))
    first, second = session.stats.last.stretches
    assert first.plan.rows == second.plan.rows


def test_threads_decide_apart(model):
    """Also a rule that looks into a block that both threads run."""
    method, results = fc.teacache(0.3), {}
    with fc.apply(model, method, num_steps=STEPS):
        expected = {seed: sampled(model, seed, scale=0.1 + 0.3 * seed) for seed in (0, 1)}

        def run(seed):
            results[seed] = sampled(model, seed, scale=0.1 + 0.3 * seed)

        threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, sample in expected.items():
        assert torch.equal(results[seed], sample)


@pytest.mark.parametrize("base", [fc.teacache(0.3), fc.fbcache(0.25), fc.easycache(0.1)], ids=lambda base: base.name)
def test_after_the_block_and_after_an_exception_nothing_is_left(model, base):
    bare, keys = sampled(model), list(model.state_dict())
    forwards = {name: vars(part).get("forward") for name, part in model.named_modules()}
    with fc.apply(model, base, num_steps=STEPS):
        sampled(model)
    assert torch.equal(sampled(model), bare)

    def stop(*_):
        raise ValueError("stopped")

    handle = model.transformer_blocks[0].attn1.register_forward_hook(stop)
    with pytest.raises(ValueError, match="stopped"), fc.apply(model, base, num_steps=STEPS):
        sampled(model)
    handle.remove()
    assert torch.equal(sampled(model), bare)
    assert list(model.state_dict()) == keys
    assert {name: vars(part).get("forward") for name, part in model.named_modules()} == forwards


def test_a_run_in_the_middle_has_no_decided_plan(model):
    with fc.apply(model, fc.easycache(0.1), num_steps=STEPS) as session:
        with pytest.raises(fc.errors.RunError, match="has made 0 model calls"):
            session.decided()
        with torch.no_grad():
            model(noise(), timestep=torch.full((2,), 990), class_labels=LABELS)
        with pytest.raises(fc.errors.RunError, match="has made 1 model calls"):
            session.decided()
        session.new_run()
        sampled(model)
        assert session.decided().num_steps == STEPS


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forecast", [Reuse(), Taylor(1), Taylor(3), Gradient(0.8), Gradient(0.7, gaps="paper"), Gradient(0.5, "computed"),
                 Feedback(2, 0.5), Feedback(0, 1.0)], ids=str,
)  # fmt: skip
def test_operations_give_what_the_cells_say_on_numbers(forecast):
    """Any decisions: a feature that is a number a step, its estimates by the cells and by slots."""
    draw = torch.Generator().manual_seed(3)
    site = fc.parts.Site("blocks.0.attn", 0, "attn")
    row = (fc.parts.Cell(), *(fc.parts.Cell(undecided=True, is_open=step != 7) for step in range(1, 12)))
    program = Program([site], [row], forecast)
    features = torch.randn(12, generator=draw, dtype=torch.float64).tolist()
    most = 0
    for _ in range(40):
        decisions = [Decision.COMPUTE] + [
            Decision.COMPUTE if one > 0.6 else Decision.SKIP for one in torch.rand(11, generator=draw).tolist()
        ]
        (cells,) = decided_rows([site], [row], forecast, decisions)
        emitted, slots = [], {}
        for step, (op, cell) in enumerate(zip(program.operations(decisions)[0], cells, strict=True)):
            own = features[step] if cell.computed else sum(weight * emitted[source] for source, weight in cell.reads)
            emitted.append(own)
            out = sum(weight * slots[slot] for slot, weight in op.reads) if op.reads else features[step]
            assert out == pytest.approx(own, rel=1e-9, abs=1e-9)
            values = {**slots, -1: out}
            kept = [(one.slot, values[one.base] + sum(w * values[s] for s, w in one.adds)) for one in op.keeps]
            for slot in op.frees:
                del slots[slot]
            assert not {slot for slot, _ in kept} & set(slots)
            slots |= dict(kept)
            most = max(most, len(slots))
    online = fc.plan.online.Online(fc.parts.decide.TransformationRate(0.1), Bounds(), forecast)
    bound = max(
        sum(len(op.keeps) - len(op.frees) for op in ops[: step + 1])
        for run in extreme_runs(online, [row])
        for ops in program.operations(run)
        for step in range(12)
    )
    assert most <= bound


@pytest.mark.slow
def test_a_compiled_model_decides_between_its_graphs():
    model = small_dit(3)
    method = fc.goc(fc.easycache(0.12, first=2), 0.8)
    with fc.apply(model, method, num_steps=STEPS) as session:
        expected, own = sampled(model), pattern(session)
    compiled = torch.compile(model, backend="eager")
    with fc.apply(compiled, method, num_steps=STEPS) as session:
        torch.testing.assert_close(sampled(compiled), expected, atol=1e-5, rtol=0)
        assert pattern(session) == own
    with (
        fc.apply(compiled, fc.fbcache(0.1), num_steps=STEPS),
        pytest.raises(fc.errors.RunError, match="compiled step is one graph"),
    ):
        sampled(compiled)
