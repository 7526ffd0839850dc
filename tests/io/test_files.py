"""The one writer: atomic, durable, undisturbed by others; and nothing in the library that writes past it."""

import ast
import errno
import os
import re
import threading

import pytest
from support.architecture import MODULES

from forecache.io import files


def test_a_file_appears_whole_and_its_folders_with_it(tmp_path):
    path = tmp_path / "a" / "b" / "text"
    files.write(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    files.write(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [file.name for file in path.parent.iterdir()] == ["text"]


def test_json_ends_in_a_newline_and_is_read_back(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [1, None, "é"]}, indent=1)
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("}\n")
    assert files.document(tmp_path / "x.json", 100) == {"a": [1, None, "é"]}


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write(path, "old")

    def fail():
        with files.replacing(path) as file:
            file.write(b"half of the new")
            raise KeyError("on the way")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("durable", "calls"), [(True, ["fsync", "replace", "fsync"]), (False, ["replace"])])
def test_a_durable_file_reaches_the_disk_before_its_name_does_and_then_its_folder(
    tmp_path, monkeypatch, durable, calls
):
    seen = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, plain=plain: (seen.append(name), plain(*args)))
    files.write(tmp_path / "file", "text", durable=durable)
    assert seen == calls


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Each is in the midst of its own file when the others finish; the last one to finish stays."""
    path, barrier = tmp_path / "file", threading.Barrier(4)
    errors = []

    def write(number):
        try:
            with files.replacing(path) as file:
                file.write(bytes([number]) * 10**5)
                barrier.wait()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    content = path.read_bytes()
    assert content == content[:1] * 10**5
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


WRITERS = {"write_text", "write_bytes", "save_file", "savez", "savez_compressed", "savetxt", "dump"}
"""Names of calls that write a file of their own."""


def writes(node):
    """Whether a call writes a file by itself, and not into one that `files.replacing` has opened."""
    name = ast.unparse(node.func).rsplit(".", 1)[-1]
    words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    words += [keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)]
    if name == "open":
        return any(isinstance(word, str) and re.fullmatch(r"[wax][bt+]*|r[bt]*\+[bt]*", word) for word in words)
    into = node.args and isinstance(node.args[0], ast.Name) and node.args[0].id in ("file", "out", "buffer")
    return name in WRITERS or ((ast.unparse(node.func) in ("torch.save", "np.save") or name == "savefig") and not into)


def test_the_test_knows_a_writer_when_it_sees_one():
    plain = [
        "p.write_text(x)",
        "open(p, 'w')",
        "p.open('ab')",
        "p.open(mode='x')",
        "np.savez(p, a=a)",
        "f.savefig(path)",
    ]
    assert all(writes(ast.parse(text, mode="eval").body) for text in [*plain, "torch.save(a, p)", "json.dump(a, f)"])
    fine = ["open(p, 'rb')", "p.open()", "json.dumps(x)", "plan.save(p)", "f.savefig(file)", "archive.open(info)"]
    assert not any(writes(ast.parse(text, mode="eval").body) for text in fine)


def test_nothing_in_the_library_writes_a_file_past_the_writer():
    past = [
        f"{module}:{node.lineno}: {ast.unparse(node)[:80]}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node) and module != "io.files"
    ]
    # a member of an archive that lies in a file of the writer's
    assert [place for place in past if not place.startswith("sampling.samples_file:")] == []
