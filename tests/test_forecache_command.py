"""The console script: completions, the version and a model's typo are answered without torch."""

import json
import subprocess
import sys

import pytest
from support.commands import COMMANDS

import forecache
import forecache_command
from forecache.cli import tree
from forecache.reproduce.table import bundled
from forecache.zoo import SHAPES, models

ALONE = """
import sys
sys.argv = ["forecache", *sys.argv[1:]]
import forecache_command
try:
    forecache_command.main()
finally:
    assert not {"torch", "numpy", "forecache", "diffusers"} & set(sys.modules)
"""


def run(*words, **environment):
    """The exit code, stdout and stderr of the script in a process of its own, in which it may import nothing heavy."""
    command = [sys.executable, "-c", ALONE, *words]
    paths = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths | environment)
    return done.returncode, done.stdout, done.stderr


def completed(line):
    words = line.split(" ")
    code, out, err = run(_FORECACHE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert (code, err) == (0, "")
    return out.split()


def test_the_tree_is_that_of_the_commands():
    written = json.loads(tree.FILE.read_text())
    assert written == json.loads(json.dumps(tree.described())), "python -m forecache.cli.tree writes it anew"
    assert set(written) == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("forecache tab", {"tabulate"}),
        ("forecache plan go", {"goc"}),
        ("forecache plan fora --mod", {"--model"}),
        ("forecache sample --model ", set(models())),
        ("forecache bench --model ", {*models(), *SHAPES}),
    ],
)
def test_a_shell_gets_commands_options_and_names_without_torch(line, expected):
    assert set(completed(line)) == expected


def test_names_of_tables_complete():
    assert {name for name in bundled() if name.startswith("goc")} <= set(completed("forecache reproduce goc"))


def test_the_version_needs_no_torch():
    assert run("--version") == (0, f"forecache {forecache.__version__}\n", "")


def test_a_typo_in_a_models_name_is_answered_without_torch():
    for words in (["sample", "--model", "digts"], ["plan", "fora", "--model=digts"]):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert err.startswith("Error: There is no model 'digts': did you mean 'digits'?")


def test_names_that_may_be_meant_are_left_to_the_command(tmp_path):
    for name in ("digits", "owner/name", str(tmp_path)):
        assert forecache_command.typo(["sample", "--model", name]) is None
    assert forecache_command.typo(["bench", "--model", "tiny"]) is None
    assert forecache_command.typo(["sample", "--model"]) is None
    assert forecache_command.typo(["no-command", "--model", "digts"]) is None
    assert forecache_command.typo([]) is None


def test_ctrl_c_while_the_library_is_imported_is_a_sentence(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "forecache.cli":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["forecache", "models"])
    monkeypatch.delitem(sys.modules, "forecache.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        forecache_command.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_quiet_is_quiet_for_a_pipeline_with_encoders(flux_folder, tmp_path):
    words = ["sample", "--quiet", "--model", flux_folder, "--prompt", "cat", "--steps", "2", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "forecache", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "run.json").is_file()
