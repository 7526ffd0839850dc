"""Tuning over samplers and steps: the rows are those of sampling by hand, and the plan brings its sampler with it."""

from dataclasses import replace

import diffusers
import pytest
import torch

import forecache as fc
from forecache.fit.tuning import across, effort, plan_search, proposals, refine, samplers, trial_runner
from forecache.models.fingerprint import describe_scheduler
from forecache.plan.sampler import Sampler
from forecache.sampling import fine
from forecache.sampling.fine import rescheduled
from forecache.sampling.sources import Sampling, as_source

LABELS = [1, 2]
NAMES = ("own", "dpmsolver++", "unipc leading", "euler", "heun")


@pytest.fixture(scope="module")
def pipe(pipe_folder):
    """A small random DiTPipeline whose model predicts the noise of normal data well enough to converge."""
    pipe = diffusers.DiTPipeline.from_pretrained(pipe_folder)
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tuned(pipe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine, "LEAST_STEPS", 8)
        patch.setattr(fine, "MOST_STEPS", 16)
        patch.setattr(trial_runner, "NOISES", 1)
        patch.setattr(plan_search, "FINALISTS", 2)
        patch.setattr(across, "SCREENED", 2)
        patch.setattr(across, "KEPT", 1)
        patch.setattr(across, "FEW", 2)
        before, announced, calls, cost = pipe.scheduler, [], [], []
        tuned = fc.tune(
            pipe, LABELS, num_steps=5, samplers=NAMES, steps=(4, 5), budget=[fc.fit.Calls(3), 0.4],
            held_out=[3], number=3, longest=4, forecasts=["taylor 1"], correcting=False, refining=False,
            on_start=announced.append, on_step=calls.append, on_cost=cost.append,
        )  # fmt: skip
        assert pipe.scheduler is before
        assert 0 < len(calls) <= announced[0]
        assert 2 * tuned.fine.num_steps / 5 < tuned.images <= cost[0] < 3 * tuned.images
        return tuned


def images(pipe, scheduler, labels, steps, seed):
    with rescheduled(as_source(pipe), scheduler) as source:
        return source.generate(labels, Sampling(steps, 1.5, seed))


FINEST = {}


def finest(pipe, labels, steps, seed):
    if (key := (*labels, seed)) not in FINEST:
        FINEST[key] = images(pipe, fine.fine_solver(pipe.scheduler), labels, steps, seed)
    return FINEST[key]


def decibels(pipe, scheduler, labels, steps, seeds, tuned):
    """The mean PSNR of a scheduler's samples to those of DPM-Solver++ in the steps that the result names."""
    pairs = [
        (images(pipe, scheduler, labels, steps, seed), finest(pipe, labels, tuned.fine.num_steps, seed))
        for seed in seeds
    ]
    return sum(fc.evaluate.psnr(*pair).mean().item() for pair in pairs) / len(pairs)


@pytest.mark.slow
def test_every_sampler_without_a_cache_stands_beside_it(pipe, tuned):
    """At the same calls, to the same converged samples, by hand; Heun's method makes two calls a step."""
    config = {"beta_start": 0.0001, "beta_end": 0.02}
    by_hand = {
        "own": (pipe.scheduler, 3),
        "dpmsolver++": (diffusers.DPMSolverMultistepScheduler(
            **config, timestep_spacing="trailing", final_sigmas_type="zero"), 3),
        "unipc leading": (diffusers.UniPCMultistepScheduler(**config, timestep_spacing="leading"), 3),
        "euler": (diffusers.EulerDiscreteScheduler(**config, timestep_spacing="trailing"), 3),
        "heun": (diffusers.HeunDiscreteScheduler(**config, timestep_spacing="trailing"), 2),
    }  # fmt: skip
    rows = {row.sampler: row for row in tuned.uncached[0]}
    assert tuple(rows) == NAMES
    assert [row.calls for row in rows.values()] == [3, 3, 3, 3, 3]
    for name, (scheduler, steps) in by_hand.items():
        assert rows[name].num_steps == steps
        assert rows[name].psnr == pytest.approx(decibels(pipe, scheduler, LABELS, steps, (1000, 1001), tuned), abs=0.01)
        assert rows[name].held_out == pytest.approx(decibels(pipe, scheduler, [3], steps, (2000,), tuned), abs=0.01)


@pytest.mark.slow
def test_the_best_is_no_worse_than_a_sampler_without_a_cache(tuned):
    for best, rows, plan, name in zip(tuned.best, tuned.uncached, tuned.plans, tuned.samplers, strict=True):
        rest = max(row.psnr for row in rows)
        assert best.psnr >= rest
        assert ("." in best.pattern) == (best.psnr > rest)
        assert best.pattern.count("#") == plan.computed_share * plan.num_steps <= 3
        assert (plan.sampler is None) == (name == "own")
    assert "calls, no cache: " in tuned.show()


def test_where_no_plan_is_nearer_the_sampler_without_a_cache_is_the_result(pipe, monkeypatch):
    """Trials that are all made out to be bad."""
    monkeypatch.setattr(fine, "LEAST_STEPS", 8)
    monkeypatch.setattr(fine, "MOST_STEPS", 16)
    monkeypatch.setattr(trial_runner, "NOISES", 0)
    run = trial_runner.TrialRunner.run
    monkeypatch.setattr(trial_runner.TrialRunner, "run", lambda *a: replace(run(*a), psnr=-3.0))
    result = fc.tune(
        pipe, LABELS, num_steps=4, samplers=("dpmsolver++",), budget=fc.fit.Calls(3), number=1, longest=4,
        forecasts=["reuse"], correcting=False, refining=False,
    )  # fmt: skip
    assert (result.num_steps, result.plan.computed_share) == (3, 1)
    assert result.plan.sampler == Sampler(result.plan.grid.scheduler, 3)
    assert "no plan was nearer to the converged samples" in result.show()
    with fc.apply(pipe, result):
        cached = as_source(pipe).generate(LABELS, Sampling(3, 1.5, 5))
    assert torch.equal(cached, images(pipe, result.scheduler, LABELS, 3, 5))


# ---- the cost of a search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
def test_the_cost_in_images_is_what_the_model_computed(pipe, monkeypatch, quick):
    """Counted by the rows that go through the first attention, two a sample and computed step."""
    for module, name, value in [
        (fine, "LEAST_STEPS", 4), (fine, "MOST_STEPS", 8), (trial_runner, "NOISES", 1), (plan_search, "FINALISTS", 3),
        (proposals, "LAST", 0), (refine, "ROUNDS", 1), (refine, "SCHEDULES", 1), (effort, "QUICK_IMAGES", 50),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    announced, rows = [], []
    attention = pipe.transformer.transformer_blocks[0].attn1
    hook = attention.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    try:
        tuned = fc.tune(
            pipe, [1, 2, 3, 4], num_steps=4, budget=[fc.fit.Calls(2), fc.fit.Calls(3)], number=1, longest=4,
            forecasts=["taylor 1"], correcting=False, quick=quick, batch=3, on_cost=announced.append,
        )  # fmt: skip
    finally:
        hook.remove()
    assert tuned.images == pytest.approx(sum(rows) / 2 / 4)
    assert tuned.images <= announced[0]
    if quick:
        assert announced[0] <= 50
        assert not any(trial.forecast.is_refined or trial.noise for trial in tuned.best)
        best = max(trial.psnr for trial in tuned.trials if trial.computed == 2)
        assert tuned.best[0].psnr == best
    monkeypatch.setattr(effort, "QUICK_IMAGES", 10)
    with pytest.raises(fc.errors.InputError, match=r"leaves 0 trials for each of 1 searches, .* give fewer budgets"):
        fc.tune(pipe, [1, 2, 3], num_steps=4, budget=fc.fit.Calls(2), longest=4, quick=True)


@pytest.fixture
def small_search(monkeypatch):
    """A search with little to sample."""
    for module, name, value in [
        (fine, "LEAST_STEPS", 4), (fine, "MOST_STEPS", 8), (trial_runner, "NOISES", 0), (plan_search, "FINALISTS", 2),
        (proposals, "LAST", 0), (across, "SCREENED", 1), (across, "KEPT", 1),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return monkeypatch


HOW = {"num_steps": 4, "longest": 4, "forecasts": ["taylor 1"], "correcting": False, "refining": False}


def test_a_quick_search_over_samplers_keeps_to_its_images(pipe, small_search):
    small_search.setattr(effort, "QUICK_IMAGES", 60)
    rows, announced = [], []
    attention = pipe.transformer.transformer_blocks[0].attn1
    hook = attention.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    try:
        tuned = fc.tune(
            pipe, [1, 2], samplers=("own", "dpmsolver++"), steps=(4, 5), budget=fc.fit.Calls(2), quick=True, **HOW,
            on_cost=announced.append,
        )  # fmt: skip
    finally:
        hook.remove()
    assert tuned.images == pytest.approx(sum(rows) / 2 / 4)
    assert tuned.images <= announced[0] <= 60
    assert [row.sampler for row in tuned.uncached[0]] == ["own", "dpmsolver++"]
    small_search.setattr(effort, "QUICK_IMAGES", 10)
    with pytest.raises(fc.errors.InputError, match="give fewer budgets, samplers or numbers of steps"):
        fc.tune(pipe, [1, 2], samplers=("own", "unipc"), budget=fc.fit.Calls(2), quick=True, **HOW)


def test_at_least_so_many_decibels_take_the_fewest_calls_of_any_sampler(pipe, small_search):
    """The PSNR of the best for every number of calls, each tuned for alone, says which are enough."""
    small_search.setattr(across, "FEW", 0)
    how = {"samplers": ("own", "dpmsolver++"), "number": 1, **HOW}
    best = [fc.tune(pipe, [1], budget=fc.fit.Calls(count), **how).best[0] for count in (1, 2, 3)]
    assert best[0].psnr < best[1].psnr < best[2].psnr
    for goal, trial in [(best[1].psnr - 0.01, best[1]), (best[1].psnr + 0.01, best[2])]:
        tuned = fc.tune(pipe, [1], budget=fc.fit.tuning.AtLeast(goal), **how)
        assert (tuned.best[0].pattern, tuned.best[0].psnr) == (trial.pattern, pytest.approx(trial.psnr))
        assert {row.calls for row in tuned.uncached[0]} == {trial.computed}
    with pytest.raises(fc.errors.InputError, match=r"At least 99 dB were asked for.*Ask for less, or give more steps"):
        fc.tune(pipe, [1], budget=fc.fit.tuning.AtLeast(99), **how)


@pytest.mark.parametrize("grid", ["karras", "exponential", "linspace"])
def test_at_few_calls_the_timesteps_move_too(pipe, small_search, grid):
    """The rows are those of diffusers' own settings; elsewhere only the grids that were asked for are there."""
    small_search.setattr(across, "FEW", 2)
    tuned = fc.tune(pipe, [1], samplers=("dpmsolver++",), budget=[fc.fit.Calls(2), fc.fit.Calls(3)], number=1, **HOW)
    few, more = ({row.sampler: row for row in rows} for rows in tuned.uncached)
    assert set(more) == {"dpmsolver++"}
    assert set(few) == {"dpmsolver++", *(f"dpmsolver++ {name}" for name in samplers.GRIDS[1:])}
    moved = {"timestep_spacing": grid} if grid in samplers.SPACINGS else {f"use_{grid}_sigmas": True}
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.0001, beta_end=0.02, **{"timestep_spacing": "trailing", "final_sigmas_type": "zero", **moved}
    )
    by_hand = decibels(pipe, scheduler, [1], 2, (1000,), tuned)
    assert few[f"dpmsolver++ {grid}"].psnr == pytest.approx(by_hand, abs=0.01)
    flow = type(
        "Source", (), {"target": type("Pipe", (), {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})}
    )()
    assert samplers.on_other_grids(flow, {"unipc": None}) == {}
    with pytest.raises(fc.errors.InputError, match="whose grid is its shift: give 'unipc'"):
        samplers.schedulers(flow, ["unipc karras"])


# ---- a plan that brings its sampler ----------------------------------------------------------------------------------


def brought(target, steps=6):
    """FORA on DPM-Solver++, which the plan brings with it."""
    scheduler = samplers.schedulers(as_source(target), ["dpmsolver++"])["dpmsolver++"]
    with rescheduled(as_source(target), scheduler) as source:
        plan = fc.fora(2).plan(fc.grid(source.target, steps))
    return replace(plan, sampler=Sampler(plan.grid.scheduler, steps)), scheduler


def test_the_sampler_is_set_and_the_pipelines_own_comes_back(pipe, tmp_path):
    plan, scheduler = brought(pipe)
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json") == plan
    own, source = pipe.scheduler, as_source(pipe)
    bare = source.generate(LABELS, Sampling(6, 1.5, 0))
    with rescheduled(source, scheduler) as other, fc.apply(pipe, replace(plan, sampler=None)):
        wanted = other.generate(LABELS, Sampling(6, 1.5, 0))
    fc.enable(pipe, fc.Plan.load(tmp_path / "plan.json"))
    assert describe_scheduler(pipe.scheduler) == describe_scheduler(scheduler)
    assert torch.equal(source.generate(LABELS, Sampling(6, 1.5, 0)), wanted)
    with pytest.raises(fc.errors.StepCountError, match=r"6 steps of DPMSolver.*: give it num_inference_steps=6"):
        source.generate(LABELS, Sampling(5, 1.5, 0))
    fc.disable(pipe)
    assert pipe.scheduler is own
    with pytest.raises(ZeroDivisionError), fc.apply(pipe, plan):
        raise ZeroDivisionError
    assert pipe.scheduler is own
    assert torch.equal(source.generate(LABELS, Sampling(6, 1.5, 0)), bare)
    with fc.apply(pipe, plan):
        pipe.scheduler = scheduler  # set by somebody else
    assert pipe.scheduler is scheduler
    pipe.scheduler = own


def test_a_bundled_model_gets_the_sampler_too(pipe):
    digits = fc.zoo.load_digits()
    plan, scheduler = brought(digits, 2)
    own = digits.scheduler
    with fc.apply(digits, plan):
        images = digits.generate([3], Sampling(2, 1.0, 0))
    assert digits.scheduler is own
    with fc.apply(other := replace(digits, scheduler=scheduler), replace(plan, sampler=None)):
        assert torch.equal(images, other.generate([3], Sampling(2, 1.0, 0)))


def test_a_model_without_a_scheduler_and_a_strange_one_are_refused(pipe, tmp_path):
    plan, _ = brought(pipe)
    with pytest.raises(fc.errors.PlanError, match="no scheduler that it could take the place of: apply the plan to"):
        fc.apply(pipe.transformer, plan)
    with pytest.raises(fc.errors.PlanError, match="other calls than those of requests would sample by it: set"):
        fc.apply(pipe, plan, only_requests=True)
    strange = Sampler('{"class": "Strange"}', 6)
    with pytest.raises(fc.errors.PlanError, match="plans bring one of DDIMScheduler.*: set pipe.scheduler yourself"):
        fc.apply(pipe, replace(plan, sampler=strange))
    replace(plan, sampler=strange).save(tmp_path / "plan.json")
    with pytest.raises(fc.errors.PlanFileError, match="the scheduler of the sampler must be one of DDIMScheduler"):
        fc.Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("name", "kind", "flow"),
    [("euler", "EulerDiscreteScheduler", False), ("unipc", "UniPCMultistepScheduler", False),
     ("unipc", "UniPCMultistepScheduler", True),
     ("dpmsolver++", "DPMSolverMultistepScheduler", True), ("heun", "FlowMatchHeunDiscreteScheduler", True)],
)  # fmt: skip
def test_a_solver_of_the_same_process_has_its_settings(name, kind, flow):
    """Flow matching's shift becomes that of the solver's sigmas; its timesteps start at the same end."""
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if flow else diffusers.DDIMScheduler(beta_end=0.01)
    source = type("Source", (), {"target": type("Pipe", (), {"scheduler": own})})()
    scheduler = samplers.schedulers(source, [name])[name]
    assert type(scheduler).__name__ == kind
    if not flow:
        assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod)
    elif name != "heun":
        scheduler.set_timesteps(20)
        own.set_timesteps(20)
        assert scheduler.sigmas[:12].tolist() == pytest.approx(own.sigmas[:12].tolist(), abs=0.05)
    else:
        assert scheduler.config.shift == 3.0
    again = Sampler(describe_scheduler(scheduler), 4).instead_of(own)
    assert describe_scheduler(again) == describe_scheduler(scheduler)
    samples = []
    for one in (scheduler, again):
        one.set_timesteps(4)
        x = torch.ones(1, 4, 2, 2)
        for t in one.timesteps:
            x = one.step(x.sin(), t, x, return_dict=False)[0]
        samples.append(x)
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samplers": ("magic",)}, "There is no sampler 'magic'; there are: own, dpmsolver"),
        ({"samplers": ()}, "Tuning needs a sampler"),
        ({"steps": (6, 0)}, "numbers of steps from 1 on"),
        ({"steps": (6, 8), "reference": "own"}, "leave out reference='own'"),
        ({"steps": (6, 8), "budget": fc.fit.tuning.AtLeast(-1)}, "decibels are a number over 0"),
        ({"steps": (6, 8), "budget": fc.fit.Calls(8)}, r"Calls\(value=8\) comes to 8 model calls, and no plan of 6, 8"),
        ({"steps": (6, 8), "budget": fc.fit.Calls(0)}, "is less than one model call: ask for more"),
        ({"budget": fc.fit.Calls(6)}, "6 computed calls were asked for; of 6 steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(pipe, asked, message):
    with pytest.raises(fc.errors.InputError, match=message):
        fc.tune(pipe, LABELS, num_steps=6, **asked)
