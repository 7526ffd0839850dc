"""The most natural mistakes of a first hour, each with its sentence; docs/enable.md lists them."""

import gc
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.pipelines import PIPELINES, pipeline
from support.tiny import TINY

import forecache as fc
from forecache.methods import registry

PAGE = Path(__file__).parents[2] / "docs" / "enable.md"
METHOD = fc.fora(2)
PLAN_STEPS = 8


@pytest.fixture(scope="module")
def bare():
    return pipeline("StableDiffusion3Pipeline", TINY["SD3"].model())


@pytest.fixture
def pipe(bare):
    yield bare
    if not torch.is_inference_mode_enabled() and any(bare is target for target, _ in enabled()):
        fc.disable(bare)


def enabled():
    return list(fc.runtime.apply.__globals__["_ENABLED"].values())


def sample(pipe, steps=PLAN_STEPS):
    how = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    return pipe(**PIPELINES["SD3"][1], **how)[0]


def plan(pipe, steps=PLAN_STEPS):
    return METHOD.plan(fc.grid(pipe, steps))


def other_model(pipe):
    return METHOD.plan(fc.grid(TINY["DiT"].model(), PLAN_STEPS))


def twice(pipe):
    fc.enable(pipe)
    fc.enable(pipe, speedup=3)


def another_length(pipe):
    with fc.apply(pipe, plan(pipe)):
        sample(pipe, PLAN_STEPS + 2)


def a_block_around_enable(pipe):
    with fc.enable(pipe):
        pass


def one_session_in_itself(pipe):
    with fc.apply(pipe) as session, session:
        pass


def a_block_that_only_calls_the_transformer(pipe):
    with fc.apply(pipe, plan(pipe)):
        TINY["SD3"].generate(pipe.transformer)


def too_few_lanes(pipe):
    lumina = pipeline("Lumina2Pipeline", TINY["Lumina 2"].model())
    how = PIPELINES["Lumina 2"][1] | {"guidance_scale": 4.0, "num_inference_steps": 6, "output_type": "latent"}
    with fc.apply(lumina, METHOD, lanes=["cond"]):
        lumina(**how)


def a_loop_that_announces_nothing(pipe):
    with fc.apply(pipe.transformer):
        TINY["SD3"].generate(pipe.transformer)


UNET = type("StableDiffusionPipeline", (), {"unet": torch.nn.Linear(1, 1), "__call__": lambda self: None})()

MISTAKES = {
    "fc.enable(pipe, 2.0)": (
        lambda pipe: fc.enable(pipe, 2.0),
        fc.errors.PlanError,
        "2.0 is no plan and no method. If it is the speedup, name it: forecache.enable(pipe, speedup=2.0)",
    ),
    "fc.enable(pipe, 20)": (
        lambda pipe: fc.enable(pipe, 20),
        fc.errors.PlanError,
        "if it is a number of steps, forecache.apply(pipe, method, num_steps=20).",
    ),
    "fc.enable(pipe, speedup=50)": (
        lambda pipe: fc.enable(pipe, speedup=50),
        fc.errors.PlanError,
        "speedup= is the times fewer MACs, a number from 1.3 to 5, for which recipes are on record; 50 was asked for.",
    ),
    "fc.enable(pipe, fc.goc)": (
        lambda pipe: fc.enable(pipe, fc.goc),
        fc.errors.PlanError,
        "goc makes a method when it is called, and it was not: forecache.goc(base, eta).",
    ),
    "fc.enable(pipe, fc.Method)": (
        lambda pipe: fc.enable(pipe, fc.Method),
        fc.errors.PlanError,
        "Method is a class, and a plan or a method of it is needed",
    ),
    "fc.enable(plan, pipe)": (
        lambda pipe: fc.enable(plan(pipe), pipe),
        fc.errors.PlanError,
        "The pipeline comes first and the plan second: forecache.apply(pipe, plan).",
    ),
    "fc.enable(pipe, pipe)": (
        lambda pipe: fc.enable(pipe, pipe),
        fc.errors.PlanError,
        "A plan or a method goes second, and a StableDiffusion3Pipeline was given",
    ),
    'fc.enable(pipe, "plan.json")': (
        lambda pipe: fc.enable(pipe, "plan.json"),
        fc.errors.PlanError,
        "'plan.json' is no plan: forecache.Plan.load reads one from a file",
    ),
    "fc.enable(pipe, plan, speedup=2)": (
        lambda pipe: fc.enable(pipe, plan(pipe), speedup=2),
        fc.errors.PlanError,
        "speedup= chooses a method, and a plan was given as well: leave one of them out.",
    ),
    'fc.enable(pipe, plans="nowhere")': (
        lambda pipe: fc.enable(pipe, plans="nowhere"),
        fc.errors.PlanFileError,
        "There is no folder or plan file 'nowhere', and it is no hub repository owner/name.",
    ),
    "fc.enable(pipe, fc.fora(2), resample=True)": (
        lambda pipe: fc.enable(pipe, METHOD, resample=True),
        fc.errors.PlanError,
        "resample= is for a plan; a method is planned for every number of calls: leave it out.",
    ),
    'fc.enable(pipe, lanes="cond")': (
        lambda pipe: fc.enable(pipe, lanes="cond"),
        fc.errors.PlanError,
        'lanes= names the model calls of one step, as a list such as ["cond", "uncond"]; \'cond\' was given.',
    ),
    "too few names in lanes=": (
        too_few_lanes,
        fc.errors.RunError,
        "and lanes names 1 calls of a step (cond): give as many names as there are calls.",
    ),
    "enabling twice": (
        twice,
        fc.errors.AlreadyAppliedError,
        "or call forecache.disable, before applying another.",
    ),
    "`with fc.enable(pipe):`": (
        a_block_around_enable,
        fc.errors.AlreadyAppliedError,
        "This session is open already, as after forecache.enable, which needs no `with`",
    ),
    "a session entered inside itself": (
        one_session_in_itself,
        fc.errors.AlreadyAppliedError,
        "This session is open already",
    ),
    "disabling what is not enabled": (
        fc.disable,
        fc.errors.RunError,
        "This StableDiffusion3Pipeline is not enabled, so there is nothing to disable: give what forecache.enable",
    ),
    "a plan of another model": (
        lambda pipe: fc.enable(pipe, other_model(pipe)),
        fc.errors.PlanMismatchError,
        "make a plan for this model, on forecache.grid(model, num_steps).",
    ),
    "a plan of another number of steps": (
        another_length,
        fc.errors.StepCountError,
        "The plan has 8 steps, but the pipeline is going to call the model 10 times",
    ),
    "a pipeline with a UNet": (
        lambda pipe: fc.enable(UNET),
        fc.errors.ModelError,
        "This StableDiffusionPipeline samples with a UNet, and forecache knows diffusion transformers",
    ),
    "no pipeline at all": (
        lambda pipe: fc.enable("FLUX.1-dev"),
        fc.errors.ModelError,
        "str is neither a torch module nor a pipeline with a `transformer`",
    ),
    "calling only `pipe.transformer` in the block": (
        a_block_that_only_calls_the_transformer,
        fc.errors.RunError,
        "but never by that pipeline, so the plan did nothing",
    ),
    "a loop of your own that announces nothing": (
        a_loop_that_announces_nothing,
        fc.errors.StepCountError,
        "no scheduler has announced it: give it, forecache.apply(model, method, num_steps=20)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_its_sentence_and_leaves_nothing(mistake, pipe):
    make, error, sentence = MISTAKES[mistake]
    before = sample(pipe, 2)
    names = set(vars(pipe.transformer))
    with pytest.raises(error, match=re.escape(sentence)):
        make(pipe)
    if any(pipe is target for target, _ in enabled()):  # the first of two
        fc.disable(pipe)
    gc.collect()
    assert set(vars(pipe.transformer)) == names
    assert torch.equal(sample(pipe, 2), before)


def listed():
    """The mistakes and sentences of the table in the docs."""
    text = PAGE.read_text(encoding="utf-8").partition("## Mistakes, and what is said")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows[1:]}


def test_the_docs_list_every_mistake_with_its_sentence():
    rows = listed()
    for mistake, (_, error, sentence) in MISTAKES.items():
        name = f"`{mistake}`" if mistake.startswith("fc.") else mistake
        assert name in rows
        assert rows[name].startswith(f"`{error.__name__}`: ")
        assert sentence in rows[name]
    assert "`fc.apply(pipe)` without `with`" in rows


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_that_was_not_called_says_how_it_is(name, bare):
    function = registry.registered(name).function
    with pytest.raises(fc.errors.PlanError, match=rf"{name} makes a method when it is called.* forecache\.{name}\("):
        fc.apply(bare, function)


@pytest.mark.parametrize("speedup", [1.0, 1.29, 5.01, 0, -2, float("nan"), float("inf"), True, "2", [2]])
def test_what_is_no_speedup_is_refused(speedup, bare):
    with pytest.raises(fc.errors.PlanError, match=r"a number from 1\.3 to 5, for which recipes are on record"):
        fc.apply(bare, speedup=speedup)


# ---- a session that was never entered --------------------------------------------------------------------------------


def collected(make):
    """The warnings of a session that is made and dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
        gc.collect()
    return [warning for warning in caught if warning.category is ResourceWarning]


def test_a_session_that_was_never_entered_warns_with_the_line_that_made_it(bare, caplog):
    def forgotten():
        fc.apply(bare)

    (warning,) = collected(forgotten)
    assert warning.filename == __file__
    assert "fc.apply(bare)" in Path(__file__).read_text().splitlines()[warning.lineno - 1]
    assert "A session on SD3Transformer2DModel was never entered, so it did nothing" in str(warning.message)
    (record,) = [record for record in caplog.records if record.name == "forecache"]
    assert f"{__file__}:{warning.lineno}" in record.getMessage()


def test_del_of_a_session_warns_as_well(bare):
    def deleted():
        session = fc.apply(bare, METHOD)
        del session

    assert len(collected(deleted)) == 1


def test_a_session_that_was_used_does_not_warn(bare):
    def block():
        with fc.apply(bare, METHOD):
            pass

    def decorator():
        @fc.apply(bare, METHOD)
        def images():
            pass

        images()

    def server():
        fc.enable(bare)
        fc.disable(bare)

    def refused():
        with fc.apply(bare), pytest.raises(fc.errors.AlreadyAppliedError):
            fc.apply(bare).__enter__()

    assert [collected(use) for use in (block, decorator, server, refused)] == [[], [], [], []]


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from support.tiny import TINY
import forecache as fc
model = TINY["DiT"].model()
session = fc.apply(model, fc.fora(2))
TINY["DiT"].generate(model)
"""


@pytest.mark.slow
def test_a_script_without_with_says_so_at_its_end():
    """As users run it: no warning filters, no logging."""
    paths = [str(Path(__file__).parents[1]), str(Path(fc.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(paths=paths)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "was never entered, so it did nothing: write `with forecache.apply(pipe, ...):`" in done.stderr


# ---- what objects say of themselves ----------------------------------------------------------------------------------


def test_plans_grids_and_methods_are_one_line(bare):
    made = fc.goc(METHOD, 0.8).plan(fc.grid(bare, 28))
    assert repr(made) == (
        "<Plan goc(fora(interval=2), eta=0.8): 28 steps x 8 sites of SD3Transformer2DModel, 50.0% computed>"
    )
    assert repr(made.grid) == "<Grid 28 steps x 8 sites of SD3Transformer2DModel>"
    assert repr(fc.taylorseer(METHOD, 2)) == "taylorseer(fora(interval=2), order=2)"


def test_dir_shows_what_is_public():
    names = dir(fc)
    packages = set(names) - set(fc.__all__)
    assert packages == {
        "errors", "evaluate", "fit", "methods", "models", "parts", "plan", "runtime", "sampling", "zoo"
    }  # fmt: skip
    assert all(hasattr(fc, name) for name in names)
    assert set(fc.__all__) <= set(names)


# ---- compiled models -------------------------------------------------------------------------------------------------


def test_compiling_without_graph_breaks_after_enable_says_the_order(bare):
    fc.enable(bare, METHOD)
    try:
        compiled = torch.compile(bare.transformer, fullgraph=True, backend="eager")
        own, bare.transformer = bare.transformer, compiled
        with pytest.raises(Exception, match=r"call torch\.compile\(model, fullgraph=True\) before forecache\.apply"):
            sample(bare)
        bare.transformer = own
    finally:
        fc.disable(bare)
        torch.compiler.reset()


# ---- another way to ask ----------------------------------------------------------------------------------------------


def test_a_tuned_result_is_told_apart_from_its_plan(bare):
    with pytest.raises(fc.errors.PlanError, match=r"is no plan, it has one: give its \.plan"):
        fc.apply(bare, SimpleNamespace(plan=plan(bare)))
