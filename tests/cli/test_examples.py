"""What all commands have in common: options, examples, JSON, silence, exit codes, bad input, completion."""

import inspect
import io
import json
import re
import shlex

import pytest
import torch
from rich.console import Console
from support import routers
from support.commands import COMMANDS

from forecache.cli import terminal

HAS = {
    "models": {"json"},
    "methods": {"json"},
    "plan": {"json", "out"},
    "show": {"json", "out"},
    "export": {"json", "out"},
    "sample": {"json", "out"},
    "report": {"json", "out"},
    "evaluate": {"json", "out"},
    "tabulate": {"json"},
    "demo": {"json", "out"},
    "calibrate": {"json", "out"},
    "import-router": {"json", "out"},
    "train-router": {"json", "out"},
    "search": {"json", "out"},
    "tune": {"json", "out"},
    "bench": {"json", "out"},
    "reproduce": {"json", "out"},
    "compare-methods": {"json", "out"},
    "compare": set(),
}
"""Every command, in an order in which its example finds what it needs. compare is a server: compare/test_page.py."""

QUICK = {
    "demo": ["--samples", "2", "--repeats", "1"],
    "sample": ["--labels", "3,1", "--steps", "4"],
    "calibrate": ["--samples", "2", "--steps", "4"],
    "tune": ["--samples", "1", "--held-out", "1", "--schedules", "2", "--steps", "6", "--speedup", "2"],
    "search": ["--samples", "1", "--steps", "6", "--budget", "3"],
    "compare-methods": ["--labels", "3", "--steps", "4", "--rounds", "1"],
    "bench": ["--steps", "2", "--rounds", "1", "--threads", "1"],
    "train-router": ["--iterations", "1", "--batch", "1", "--steps", "4", "--threads", "1"],
}
"""What makes an example quick; the last one of an option counts."""


def examples(name):
    """The examples of a command's help, as words."""
    text = " ".join(inspect.getdoc(COMMANDS[name].callback).split())
    return [shlex.split(each)[1:] for each in re.findall(r"Example: `(forecache [^`]*)`", text)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the examples run one after the other."""
    folder = tmp_path_factory.mktemp("examples")
    torch.save(routers.published(num_steps=4, blocks=2), folder / "ddim20_router.pt")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_like_the_others(name):
    assert name in HAS, f"say in HAS what `forecache {name}` has, where its example can run"
    options = {spelling: each for each in COMMANDS[name].params for spelling in each.opts if spelling.startswith("-")}
    assert {"-q", "--quiet"} <= set(options)
    assert ("--json" in options) == ("json" in HAS[name])
    for spelling in ("-o", "--out"):
        assert (spelling in options) == ("out" in HAS[name])
    for spelling, each in options.items():
        assert re.fullmatch(r"-[a-z]|--[a-z]+(-[a-z]+)*", spelling), spelling
        assert each.help, f"{spelling} has no help"
    first, *_ = inspect.getdoc(COMMANDS[name].callback).splitlines()
    assert first.endswith((".", ":"))
    assert examples(name), "its help has no example"
    assert all(words[0] == name for words in examples(name))


@pytest.mark.parametrize("name", [name for name in HAS if name != "compare"])
@pytest.mark.usefixtures("short_tuning")
def test_the_example_runs_and_talks_json_or_not_at_all(forecache, workplace, monkeypatch, name):
    monkeypatch.chdir(workplace)
    words = [*examples(name)[0], *QUICK.get(name, [])]
    if name not in (
        "demo",
        "bench",
    ):  # ten seconds each; tests/cli/test_commands.py and tests/bench/test_timing.py read their tables
        code, out, err = forecache(*words)
        assert (code, err) == (0, "")
        assert out.strip()
        code, out, err = forecache(*words, "--quiet")
        assert (code, out, err) == (0, "", "")
    code, out, err = forecache(*words, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)
    if "out" in HAS[name] and "--out" in words:
        assert (workplace / words[words.index("--out") + 1]).exists()


@pytest.mark.parametrize("name", [name for name in HAS if "out" in HAS[name]])
def test_an_out_that_cannot_be_written_is_refused_before_any_work(forecache, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    words = examples(name)[0]
    files = name in ("plan", "show", "export", "report", "evaluate", "calibrate", "import-router", "train-router")
    for out, sentence in [("file/below/x", "nothing can be created in"), ("folder" if files else "file", None)]:
        code, said, err = forecache(*words, "-o", out)
        assert (code, said) == (1, "")
        assert err.startswith(f"Error: {out}")
        assert sentence is None or sentence in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


BAD = {
    "a report of no result": (["report", "README.md"], "README.md cannot be read"),
    "a report of nothing": (["report", "nowhere"], "nowhere cannot be read"),
    "an option of another method": (["plan", "goc", "--order", "2"], "--order belongs to --method taylorseer"),
    "no such table": (["reproduce", "nothing"], "There is no table 'nothing'"),
    "no such row": (["reproduce", "goc-table-3", "--on", "digits", "--row", "nothing"], "has no row 'nothing'"),
    "a row without a table": (["reproduce", "--row", "nothing"], "need the name of a table"),
    "labels for texts": (["sample", "--model", "digits-text", "--labels", "3"], "--prompt"),
    "no such model": (["sample", "--model", "nothing"], "There is no model 'nothing'"),
    "no model to compare": (["compare", "--model", "nothing", "--no-open"], "There is no model 'nothing'"),
    "no such preset": (["bench", "--preset", "nothing"], "There is no preset 'nothing'"),
    "no plan": (["bench", "--plan", "README.md"], "is not a readable plan file"),
    "no evaluation": (["tabulate", "README.md"], "is not what `forecache evaluate --out` writes"),
    "no images": (["evaluate", "README.md"], "neither a folder of images nor an .npz"),
    "no router": (["import-router", "README.md", "--out", "r"], "is not a readable published router"),
    "nothing to show": (["show", "nowhere.json"], "There is no plan file at nowhere.json"),
    "too many steps to compute": (["search", "--budget", "50"], "take a budget of 5 to 10"),
    "no texts": (["calibrate", "--model", "digits-text", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
}


@pytest.mark.parametrize(("words", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(forecache, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# no result")
    code, _, err = forecache(*words)
    assert code == 1
    assert err.startswith("Error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["README.md"]


@pytest.mark.parametrize("words", [["nothing"], ["plan"], ["plan", "goc", "--steps", "0"], ["models", "--nothing"]])
def test_wrong_usage_is_exit_code_2(forecache, words):
    code, out, err = forecache(*words)
    assert (code, out) == (2, "")
    assert "Usage: forecache" in err


def test_a_disk_that_fails_is_a_sentence(forecache, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device", "plan.json")

    monkeypatch.setattr("forecache.plan.Plan.save", fails)
    code, out, err = forecache("plan", "fora", "-o", tmp_path / "plan.json")
    assert (code, out, err) == (1, "", "Error: plan.json: No space left on device.\n")


def test_progress_is_drawn_on_a_terminal_and_not_when_quiet(monkeypatch):
    def drawn(*, terminal_out=True, quiet=False):
        heard = io.StringIO()
        monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), force_terminal=terminal_out))
        monkeypatch.setattr(terminal, "bars", Console(file=heard, force_terminal=True, width=100, quiet=quiet))
        with terminal.progress(10) as (bar, task):
            bar.update(task, description="sampling", completed=5, refresh=True)
        return heard.getvalue()

    assert "5/10" in drawn()
    assert "sampling" in drawn()
    assert drawn(terminal_out=False) == drawn(quiet=True) == ""


def test_the_help_says_the_exit_codes(forecache):
    _, out, _ = forecache("--help")
    assert "Exit codes: 0 done, 1 failed" in out


def test_shells_complete_commands_options_and_values(forecache, monkeypatch):
    monkeypatch.setenv("_FORECACHE_COMPLETE", "complete_bash")
    for typed, expected in [
        ("forecache tab", "tabulate"),
        ("forecache plan g", "goc"),
        ("forecache plan --mod", "--model"),
    ]:
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        _, out, _ = forecache()
        assert expected in out.split()
    monkeypatch.delenv("_FORECACHE_COMPLETE")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = forecache("--show-completion", shell)
        assert code == 0
        assert "_FORECACHE_COMPLETE=complete_" + shell in out
