"""The error tree: as drawn in the docstring, as imported by users."""

import inspect
import re
from pathlib import Path

import pytest

import forecache as fc
from forecache import errors

CLASSES = {name: each for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}


def drawn():
    """{name: (parent, built-in parent or None)} as the docstring draws it; four columns are one level."""
    tree, path = {}, []
    for line in inspect.getdoc(errors).splitlines():
        if found := re.match(r"^([ │├└─]*)(\w+Error)\b(?: \((\w+)\))?", line):
            level = len(found[1]) // 4
            path[level:] = [found[2]]
            tree[found[2]] = (path[level - 1] if len(path) > 1 else None, found[3])
    return tree


def test_every_error_is_drawn_and_no_other():
    assert set(drawn()) == set(CLASSES)
    assert len(CLASSES) > 10


def test_every_error_is_public():
    assert set(CLASSES) <= set(fc.__all__)
    assert all(getattr(fc, name) is each for name, each in CLASSES.items())


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "ForecacheError"])
def test_every_error_stands_below_its_parents(name):
    parent, builtin = drawn()[name]
    bases = [base.__name__ for base in CLASSES[name].__bases__]
    assert bases == ([parent, builtin] if builtin else [parent])


def test_every_error_says_what_it_is():
    assert all(each.__doc__ and each.__doc__.strip().endswith(".") for each in CLASSES.values())


def test_a_missing_extra_names_the_package_and_how_to_install_it():
    error = fc.errors.MissingExtraError("typer", "cli", "The command line")
    assert isinstance(error, ImportError)
    assert "'typer', which is not installed: pip install 'forecache[cli]'" in str(error)


def test_all_names_are_there():
    assert all(hasattr(fc, name) for name in fc.__all__)
    assert len(set(fc.__all__)) == len(fc.__all__)


def test_the_docs_list_every_error_with_its_parent_and_a_cause():
    page = Path(__file__).parent.parent / "docs" / "errors.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): (row[1].strip("`"), row[2], row[3].strip(" |")) for row in rows}
    assert list(listed) == list(drawn())
    for name, (parent, cause, cure) in listed.items():
        above, builtin = drawn()[name]
        assert parent == (builtin or above or "Exception")
        assert cause
        assert cure or name == "ForecacheError"


REFUSED = {
    "a path for a plan": (
        lambda dit: fc.apply(dit, "plan.json"),
        fc.errors.PlanError,
        "not a str: forecache.Plan.load",
    ),
    "a method for a plan": (lambda dit: fc.apply(dit, fc.fora(2)), fc.errors.PlanError, "not a Method"),
    "the name of a dtype": (
        lambda dit: fc.apply(dit, plan(dit), cache_dtype="bf16"),
        fc.errors.PlanError,
        "not 'bf16'",
    ),
    "bytes below none": (lambda dit: fc.apply(dit, plan(dit), max_cache_bytes=-5), fc.errors.PlanError, "-5 was given"),
    "half a step": (lambda dit: fc.grid(dit, 2.5), fc.errors.PlanError, "num_steps=2.5 was asked for"),
    "a truth for steps": (lambda dit: fc.grid(dit, True), fc.errors.PlanError, "num_steps=True was asked for"),
    "no image": (lambda dit: plan(dit).cost(dit, batch_size=0), fc.errors.InputError, "batch_size=0 was given"),
    "half an image": (
        lambda dit: plan(dit).cost(dit, batch_size=2.5),
        fc.errors.InputError,
        "batch_size=2.5 was given",
    ),
    "warm-up below none": (lambda dit: fc.warmup(fc.fora(2), -1), fc.errors.PlanError, "give a number from 0 on"),
}


def plan(dit):
    return fc.fora(2).plan(fc.grid(dit, 4))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_argument_is_refused_with_a_sentence(dit, name):
    call, error, said = REFUSED[name]
    with pytest.raises(error, match=re.escape(said)):
        call(dit)


def test_a_plan_that_cannot_be_written_leaves_nothing(dit, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        plan(dit).save(tmp_path / "folder")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
