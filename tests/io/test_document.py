"""Formats and versions: one check, one sentence; and what a document holds besides."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.architecture import SOURCE

from forecache.errors import InputError
from forecache.io import files, tensor_files
from forecache.io.document import Document, fields, items, refusing
from forecache.plan import file as plan_file

PLAN = Document("forecache-plan", 4)

values = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name not in ("format", "version")),
    st.one_of(st.integers(-(10**9), 10**9), st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3)),
    max_size=4,
)


@given(values, st.text("abc-", min_size=1), st.integers(1, 99))
def test_what_is_wrapped_is_read_back(held, name, version):
    document = Document(name, version)
    wrapped = json.loads(json.dumps(document.wrap(held)))
    assert list(wrapped)[:2] == ["format", "version"]
    assert document.fields(wrapped, {key: type(value) for key, value in held.items()}) == held


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"format": "forecache-plan", "version": 3}, "its version is 3; this forecache reads version 4"),
        ({"format": "forecache-plan", "version": 5}, "its version is 5; this forecache reads version 4"),
        ({"format": "forecache-plan", "version": 4.0}, "its version is 4.0; this forecache reads version 4"),
        ({"format": "forecache-plan", "version": "4"}, "its version is '4'; this forecache reads version 4"),
        ({"format": "forecache-plan", "version": True}, "its version is True; this forecache reads version 4"),
        ({"format": "forecache-router", "version": 9}, "its format is 'forecache-router', not 'forecache-plan'"),
        (
            {"format": ["x"] * 10**6, "version": 4},
            "its format is ['x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', ",
        ),
        ({"version": 4}, "it lacks format"),
        ({"format": "forecache-plan"}, "it lacks version"),
        ({}, "it lacks format and version"),
        ([], "its document must be an object, not []"),
        (None, "its document must be an object, not None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_format_or_version_is_refused_with_one_sentence(document, sentence):
    with pytest.raises(ValueError, match="^it") as caught:
        PLAN.check(document)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 130


def test_version_one_is_not_true():
    with pytest.raises(ValueError, match="its version is True"):
        Document("x", 1).check({"format": "x", "version": True})


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"a": 1}, "it lacks b"),
        ({"a": 1, "b": "x", "c": 2}, r"it has unknown keys \['c'\]"),
        ({"a": True, "b": "x"}, "a must be of type int, not True"),
        ({"a": 1, "b": 2}, "b must be of type str, not 2"),
        ("ab", "its document must be an object, not 'ab'"),
    ],
)
def test_an_object_of_other_fields_is_refused(document, reason):
    with pytest.raises(ValueError, match=reason):
        fields(document, {"a": int, "b": str})


def test_the_items_of_a_list_have_one_type():
    assert items([1, 2], "steps", int) == (1, 2)
    with pytest.raises(ValueError, match="steps must hold values of type int, not True"):
        items([1, True], "steps", int)


def test_a_wrong_file_becomes_one_sentence_with_its_name_and_the_advice(tmp_path):
    path = tmp_path / "plan.json"
    Document("forecache-plan", 3).write(path, {"num_steps": 4})

    def read(path):
        with refusing(path, InputError, "plan file", "Make it again with Plan.save"):
            return PLAN.fields(files.document(path, 1000), {"num_steps": int})

    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path} is not a readable plan file: its version is 3; this forecache reads version 4. "
        "Make it again with Plan.save."
    )
    with pytest.raises(InputError, match=r"^There is no plan file at .*none\. Make it again with Plan\.save\.$"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path)
    PLAN.write(path, {"num_steps": 4})
    assert read(path) == {"num_steps": 4}


# ---- tensors beside a document --------------------------------------------------------------------------------------


def test_tensors_and_their_document_are_read_back(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.tensor([[True]]), "c": torch.ones(2, dtype=torch.bfloat16)}
    tensor_files.write(tmp_path / "x", PLAN, {"n": 1}, tensors)
    held, read = tensor_files.read(tmp_path / "x", PLAN, {"n": int}, 10_000)
    assert held == {"n": 1}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert tensor_files.read_document(tmp_path / "x", 10_000) == {"format": "forecache-plan", "version": 4, "n": 1}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, r"its metadata is \[\], not \['forecache'\]"),
        ({"format": "pt"}, r"its metadata is \['format'\], not \['forecache'\]"),
        ({"forecache": "{}", "more": ""}, "its metadata is "),
        ({"forecache": "{}"}, "it lacks format and version"),
        (
            {"forecache": '{"format": "forecache-plan", "version": 1}'},
            "its version is 1; this forecache reads version 4",
        ),
        ({"forecache": '{"format": "forecache-plan", "version": 4}'}, "it lacks n"),
    ],
)
def test_tensors_without_the_document_are_refused(tmp_path, metadata, reason):
    save_file({"a": torch.zeros(1)}, tmp_path / "x", metadata)
    with pytest.raises(ValueError, match=reason):
        tensor_files.read(tmp_path / "x", PLAN, {"n": int}, 10_000)


def test_every_bundled_file_of_a_format_of_ours_says_it():
    """Nothing that ships has the metadata of an older version."""
    found = {}
    for path in sorted(Path(SOURCE).rglob("*.safetensors")):
        data = path.read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        assert set(metadata) <= {"forecache", "format"}, path
        if "forecache" in metadata:
            document = tensor_files.read_document(path, 2**30)
            found.setdefault((document["format"], document["version"]), set()).add(path.name)
    assert found == {
        ("forecache-statistics", 3): {"statistics-20.safetensors", "statistics-50.safetensors"},
        ("forecache-router", 2): {"router-22.safetensors", "router-40.safetensors"},
    }


def test_every_bundled_plan_is_of_the_version_that_is_read():
    plans = sorted(Path(SOURCE).glob("zoo/assets/*/tuned/*.json"))
    assert len(plans) > 10
    for path in plans:
        plan_file.DOCUMENT.check(files.document(path, 2**24))
