"""One line: a method or a speedup on a pipeline, planned for the calls that each run makes."""

import logging
from types import SimpleNamespace

import diffusers
import pytest
import torch
from support.pipelines import EDITS, MASKED, PAIR, PIPELINES, SQUARE, edit_pipeline, pipeline
from support.tiny import TINY

import forecache as fc
from forecache.methods import recommended
from forecache.runtime.plan_source import chosen
from forecache.zoo import load_digits

METHOD = fc.goc(fc.fora(2), 0.8)
FAMILIES = ("FLUX.1", "SD3", "Wan 2.1", "PixArt", "Qwen-Image")


def new_pipe(name):
    """A tiny pipeline of a family, and what it is called with."""
    if name == "PixArt":
        masks = {key: torch.ones(1, 5) for key in ("prompt_attention_mask", "negative_prompt_attention_mask")}
        how = PAIR | masks | SQUARE | {"negative_prompt": None, "use_resolution_binning": False}
        return pipeline("PixArtAlphaPipeline", TINY[name].model(), diffusers.DPMSolverMultistepScheduler()), how
    kind, how = PIPELINES[name]
    return pipeline(kind, TINY[name].model()), how


def sample(pipe, how, steps, **more):
    how = how | {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    return pipe(**how, **more)[0]


def by_hand(pipe, how, method, steps, calls=None, **more):
    """The samples under a plan that was made for exactly this number of calls."""
    with fc.apply(pipe, method.plan(fc.grid(pipe, calls or steps))):
        return sample(pipe, how, steps, **more)


# ---- three lines on the pipelines that people have ------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("given", [{}, {"speedup": 3}, {"plan": METHOD}], ids=["default", "3x", "a method"])
def test_eight_steps_then_twelve_then_from_an_image_are_plans_made_by_hand(name, given):
    pipe, how = new_pipe(name)
    bare = sample(pipe, how, 8)

    def method(calls):
        return given.get("plan") or recommended.method(given.get("speedup", 2), calls)

    expected = [by_hand(pipe, how, method(steps), steps) for steps in (8, 12)]
    assert not torch.equal(bare, expected[0])

    session = fc.enable(pipe, **given)
    found = [sample(pipe, how, 8), sample(pipe, how, 12)]
    fc.disable(pipe)

    for image, wanted in zip(found, expected, strict=True):
        assert torch.equal(image, wanted)
    assert session.stats.generations == 2
    assert session.plan.num_steps == 12
    assert session.method.name == method(12).name
    assert torch.equal(sample(pipe, how, 8), bare)
    if name not in EDITS:
        return
    edit, how = edit_pipeline(name, pipe.transformer)
    expected = by_hand(edit, how, method(7), 10, calls=7, strength=0.7)
    fc.enable(edit, **given)
    found = sample(edit, how, 10, strength=0.7)
    fc.disable(edit)
    assert torch.equal(found, expected)


def test_one_session_goes_from_one_length_to_another_and_back():
    pipe, how = new_pipe("SD3")
    with fc.apply(pipe, METHOD) as session:
        found = [sample(pipe, how, steps) for steps in (8, 12, 8)]
    assert torch.equal(found[0], found[2])
    assert session.stats.calls == 28
    assert session.plan.num_steps == 8


@pytest.mark.parametrize("given", [{}, {"plan": METHOD}], ids=["default", "a method"])
def test_two_transformers_take_parts_of_one_plan(given):
    """Wan 2.2: the second transformer's first step is computed, as under a plan."""
    parts = TINY["Wan 2.1"].model(), TINY["Wan 2.1"].model()
    pipe = pipeline("WanPipeline", parts[0], transformer_2=parts[1], boundary_ratio=0.5)
    how = PIPELINES["Wan 2.1"][1]
    expected = [by_hand(pipe, how, given.get("plan") or recommended.method(2, steps), steps) for steps in (8, 12)]
    with fc.apply(pipe, **given) as session:
        found = [sample(pipe, how, steps) for steps in (8, 12)]
    for image, wanted in zip(found, expected, strict=True):
        assert torch.equal(image, wanted)
    assert session.stats.calls == 20
    assert len(session.stats.last.picture) == 12


@pytest.mark.parametrize(
    ("name", "kind", "how", "lanes"),
    [
        ("Wan 2.1", "WanPipeline", PAIR | {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 4.0}, ()),
        ("Lumina 2", "Lumina2Pipeline", MASKED | SQUARE | {"guidance_scale": 4.0}, ("cond", "uncond")),
    ],
    ids=["named by the pipeline", "named by lanes="],
)
def test_lanes_of_guidance(name, kind, how, lanes):
    pipe = pipeline(kind, TINY[name].model())
    expected = []
    for steps in (6, 8):
        with fc.apply(pipe, METHOD.plan(fc.grid(pipe, steps)), lanes=lanes):
            expected.append(sample(pipe, how, steps))
    session = fc.enable(pipe, METHOD, lanes=lanes)
    found = [sample(pipe, how, steps) for steps in (6, 8)]
    fc.disable(pipe)
    for image, wanted in zip(found, expected, strict=True):
        assert torch.equal(image, wanted)
    assert str(session.stats.last).startswith("last: #.#~#~#~ in each of 2 lanes\n")


def test_a_decorated_function_samples_by_the_method():
    pipe, how = new_pipe("SD3")
    expected = by_hand(pipe, how, METHOD, 8)

    @fc.apply(pipe, METHOD)
    def images():
        return sample(pipe, how, 8)

    assert torch.equal(images(), expected)
    assert torch.equal(images(), expected)
    assert not torch.equal(sample(pipe, how, 8), expected)


# ---- loops of one's own ---------------------------------------------------------------------------------------------


def test_a_loop_of_its_own_says_how_many_calls_it_makes():
    tiny = TINY["DiT"]
    model = tiny.model()
    with fc.apply(model, METHOD.plan(fc.grid(model, 8))):
        expected = tiny.generate(model)
    with fc.apply(model, METHOD, num_steps=8) as session:
        assert torch.equal(tiny.generate(model), expected)
    assert session.plan == METHOD.plan(fc.grid(model, 8))
    with fc.apply(model, METHOD), pytest.raises(fc.errors.StepCountError, match=r"no scheduler has announced it: give"):
        tiny.generate(model)
    with fc.apply(model), pytest.raises(fc.errors.StepCountError, match=r"num_steps=20"):
        tiny.generate(model)


def test_a_loop_whose_scheduler_announces_needs_no_number():
    tiny = TINY["DiT"]
    loop = SimpleNamespace(transformer=tiny.model(), scheduler=diffusers.DDIMScheduler())

    def run(steps):
        loop.scheduler.set_timesteps(steps)
        return tiny.generate(loop.transformer, [int(time) for time in loop.scheduler.timesteps])

    expected = []
    for steps in (8, 12):
        with fc.apply(loop, METHOD.plan(fc.grid(loop, steps))):
            expected.append(run(steps))
    with fc.apply(loop, METHOD) as session:
        found = [run(steps) for steps in (8, 12)]
    for x, wanted in zip(found, expected, strict=True):
        assert torch.equal(x, wanted)
    assert session.stats.generations == 2


# ---- what is chosen -------------------------------------------------------------------------------------------------


def messages(caplog, level=logging.INFO):
    return [record.getMessage() for record in caplog.records if record.name == "forecache" and record.levelno == level]


def test_what_was_chosen_is_one_line_a_length(caplog):
    pipe, how = new_pipe("SD3")
    with caplog.at_level(logging.INFO, "forecache"), fc.apply(pipe, speedup=2.5) as session:
        for _ in range(3):
            sample(pipe, how, 8)
        choice = session.choice
        sample(pipe, how, 10)
    first, second = messages(caplog)
    assert first == choice
    assert first.startswith("SD3Transformer2DModel, 8 model calls: ")
    assert session.method.name in second
    assert "(4 of 10 computed)" in second
    assert "the recipe on record for 2.5x fewer MACs" in second
    assert "\n" not in first


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_run_that_is_too_short_is_computed_and_the_log_says_why_once(calls, caplog):
    pipe, how = new_pipe("SD3")
    bare = sample(pipe, how, calls)
    with caplog.at_level(logging.INFO, "forecache"), fc.apply(pipe) as session:
        assert torch.equal(sample(pipe, how, calls), bare)
        sample(pipe, how, calls)
    assert session.stats.skipped == 0
    said = messages(caplog)
    assert len(said) == (calls > 1)
    assert all("everything is computed, because fewer than 6 calls gain too little" in text for text in said)


def test_a_speedup_that_is_asked_for_does_what_it_can_on_short_runs():
    pipe, how = new_pipe("SD3")
    with fc.apply(pipe, speedup=2) as session:
        sample(pipe, how, 4)
    assert session.stats.skipped == session.stats.computed > 0


def saved(folder, pipe, method, steps, name="plan.json"):
    plan = method.plan(fc.grid(pipe, steps))
    folder.mkdir(exist_ok=True)
    plan.save(folder / name)
    return plan


@pytest.mark.parametrize("way", ["folder", "file", "list of plans", "list of folders"])
def test_a_plan_made_for_the_run_is_taken_from_the_plans(way, tmp_path, caplog):
    pipe, how = new_pipe("SD3")
    folder = tmp_path / "plans"
    plan = saved(folder, pipe, fc.taylorseer(fc.explicit(compute=[0, 1, 3, 6]), 1), 8)
    (folder / "config.json").write_text("{}")
    plans = {
        "folder": folder, "file": folder / "plan.json", "list of plans": [plan], "list of folders": [str(folder)]
    }[way]  # fmt: skip
    with fc.apply(pipe, plan):
        expected = sample(pipe, how, 8)
    with caplog.at_level(logging.INFO, "forecache"), fc.apply(pipe, plans=plans) as session:
        assert torch.equal(sample(pipe, how, 8), expected)
        assert session.plan == plan
        assert session.method is None
        sample(pipe, how, 12)
        assert session.method.name == recommended.method(2, 12).name
    first, second = messages(caplog)
    assert plan.provenance["method"] in first
    assert "made for this run" in first
    assert "no plan in plans= is for this run" in second


def test_a_plan_of_another_speedup_scheduler_or_model_is_not_taken(tmp_path):
    pipe, how = new_pipe("SD3")
    saved(tmp_path, pipe, fc.fora(2), 8)
    for speedup, taken in ((2, True), (2.2, True), (3, False)):
        with fc.apply(pipe, speedup=speedup, plans=tmp_path) as session:
            sample(pipe, how, 8)
        assert (session.method is None) == taken
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with fc.apply(pipe, plans=tmp_path) as session:
        sample(pipe, how, 8)
    assert session.method is not None
    other, how = new_pipe("SD3")
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.mul_(1.5)
    with fc.apply(other, plans=tmp_path) as session:
        sample(other, how, 8)
    assert session.method is not None


def test_a_scheduler_that_is_exchanged_inside_the_block_is_seen(tmp_path):
    pipe, how = new_pipe("SD3")
    saved(tmp_path, pipe, fc.fora(2), 8)
    with fc.apply(pipe, plans=tmp_path) as session:
        sample(pipe, how, 8)
        assert session.method is None
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        sample(pipe, how, 8)
        assert session.method is not None


def test_plans_of_a_hub_repository(tmp_path, monkeypatch):
    pipe, how = new_pipe("SD3")
    plan = saved(tmp_path, pipe, fc.fora(2), 8)
    fetched = []

    def snapshot_download(repo, allow_patterns, ignore_patterns):
        fetched.append((repo, allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with fc.apply(pipe, plans="somebody/plans") as session:
        sample(pipe, how, 8)
    assert session.plan == plan
    assert fetched == [("somebody/plans", ["*.json", "*.constants.safetensors"], ["*/*"])]


def test_plans_that_ship_with_the_library_are_found():
    digits = load_digits()
    grid = fc.grid(digits, 20)
    plan, method, why = chosen(grid)
    assert plan == fc.Plan.load(fc.zoo.record("digits").tuned_path(10))
    assert method is None
    assert "plan-10-of-20.json" in why
    plan, method, _ = chosen(grid, 3)
    assert plan == fc.Plan.load(fc.zoo.record("digits").tuned_path(7))
    assert chosen(fc.grid(digits, 21))[1].name == recommended.method(2).name


# ---- methods that have no plan for a run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            fc.methods.fora_paper(50),
            r"fora_paper\(level=50\) has no plan for this run of 8 model calls: .* is a published schedule",
        ),
        (fc.explicit(compute=[0, 12]), r"has no plan for this run of 8 model calls: Steps \[12\] lie outside"),
        (fc.goc(fc.fora(2), 0.8, steps=[3, 4]), r"8 model calls: goc.* is asked to correct steps \[4\]"),
    ],
    ids=["a published length", "a list of steps", "listed corrections"],
)
def test_a_method_for_one_length_says_so_before_the_first_call(method, sentence):
    pipe, how = new_pipe("SD3")
    calls = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    with fc.apply(pipe, method), pytest.raises(fc.errors.PlanError, match=sentence):
        sample(pipe, how, 8)
    hook.remove()
    assert not calls


def test_a_calibrated_method_names_the_length_that_it_was_calibrated_for():
    digits = load_digits()
    stats = fc.Statistics.load(fc.zoo.record("digits").statistics_path(20))
    method = fc.smoothcache(stats, 0.3)
    with pytest.raises(fc.errors.StatisticsError, match=r"12 model calls: .* of 20 steps, and the plan is for 12"):
        fc.apply(digits, method, num_steps=12)
