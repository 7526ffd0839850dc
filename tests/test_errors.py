"""The error tree: as drawn in the docstring, as imported by users."""

import ast
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.architecture import MODULES, imported

import forecache as fc
from forecache import errors

CLASSES = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, Exception)}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


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


def test_every_error_is_reached_as_fc_errors_and_the_root_at_the_top():
    assert fc.errors is errors
    assert set(CLASSES) & set(fc.__all__) == {"ForecacheError"}
    assert fc.ForecacheError is errors.ForecacheError


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "ForecacheError"])
def test_every_error_stands_below_its_parents(name):
    parent, builtin = drawn()[name]
    bases = [base.__name__ for base in CLASSES[name].__bases__]
    assert bases == ([parent, builtin] if builtin else [parent])


def text(node):
    """The words of a message, with {} for every value in it; None for what is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def raised():
    """(module, line, name of the error, its first argument or None) for every `raise Error(...)` of the library."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).rsplit(".", 1)[-1]
                yield module, node.lineno, name, node.exc.args[0] if node.exc.args else None


def test_every_error_of_the_tree_is_raised_or_a_parent_of_one_that_is():
    """`refusing(path, ShardError, ...)` raises the error that it is given."""
    names = {name for _, _, name, _ in raised()}
    for tree in TREES.values():
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        names |= {
            ast.unparse(argument) for call in calls if "refusing" in ast.unparse(call.func) for argument in call.args
        }
    used = {base for name in names & set(CLASSES) for base in CLASSES[name].__mro__}
    assert set(CLASSES.values()) <= used


def test_every_message_says_what_was_found_or_what_to_do():
    """It has a value in it, or a remedy behind a colon or semicolon: "X is invalid." helps nobody."""
    silent = [
        f"{module}:{line}: {words}"
        for module, line, name, argument in raised()
        if name in CLASSES and name != "MissingExtraError" and (words := text(argument)) is not None
        if not re.search(r"\{\}|[:;] ", words)
    ]
    assert not silent


READ_BY_OTHERS = {
    "parts.signals",  # of a statistics file
    "evaluate.estimates", "fit.tuning.forecasts", "plan.recipe", "methods.parameters", "methods.registry",
    "plan.online", "reproduce.recipes",
}  # fmt: skip
"""Modules whose ValueErrors are met by `refusing` in the modules that read the files; by `methods.build`, which makes a
PlanError of them; or by `methods.flags.Expression`, which makes an InputError.
"""


def test_a_builtin_error_is_raised_only_where_a_file_is_read():
    """There, `refusing` turns it into one of the tree; anywhere else a user would meet it."""
    builtin = {"ValueError", "TypeError", "RuntimeError", "KeyError", "Exception", "NotImplementedError", "OSError"}
    readers = {name for name in TREES if "forecache.io.document.refusing" in imported(name)} | READ_BY_OTHERS
    strange = [f"{module}:{line}" for module, line, name, _ in raised() if name in builtin and module not in readers]
    assert [place for place in strange if not place.startswith("io.")] == []


def test_a_missing_extra_names_the_package_and_how_to_install_it():
    error = fc.errors.MissingExtraError("typer", "cli", "The command line")
    assert isinstance(error, ImportError)
    assert "'typer', which is not installed: pip install " in str(error)
    assert str(error).endswith("[cli]'")


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install 'forecache[cli]'"),  # from an index
        ({"url": "https://a.org/forecache.whl", "archive_info": {}}, "pip install 'forecache[cli]'"),
        ({"url": "file:///home/me/fore%20cache", "dir_info": {"editable": True}},
         "pip install --editable '/home/me/fore cache[cli]'"),
    ],
)  # fmt: skip
def test_an_extra_is_installed_from_where_the_package_was(monkeypatch, origin, expected):
    text = json.dumps(origin) if origin is not None else None
    monkeypatch.setattr(fc.errors.metadata, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    assert fc.errors.install_command("cli") == expected


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
        "'plan.json' is no plan: forecache.Plan.load",
    ),
    "a set for a plan": (lambda dit: fc.apply(dit, set()), fc.errors.PlanError, "not a set: forecache.Plan.load"),
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
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
