"""Files that somebody else made: damaged, absurd or meant to harm. Each loads to something equal, or is refused.

Every kind of file is mutated with a fixed seed: its bytes, and what lies inside its checksums (the documents and arrays
of which a valid file is made again). What is loaded must survive saving and loading; whatever else comes is our own
error, with the file's name in it; and memory stays within four times the file and a constant, as tracemalloc counts it:
Python's and numpy's. Tensors are not in that count; safetensors holds every one against the length of the file, so that
all of them together are no longer than it.
"""

import argparse
import hashlib
import io
import json
import operator
import os
import random
import signal
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.files import figures_file, search_file
from support.routers import published
from support.statistics import GRID as MEASURED_GRID
from support.statistics import measured
from support.statistics import same as same_statistics

import forecache as fc
from forecache import errors
from forecache.evaluate import Features, open_images, open_reference
from forecache.evaluate import files as evaluation_files
from forecache.fit import routers
from forecache.fit import search_file as search_file_io
from forecache.io import files, npz
from forecache.parts.statistics import Statistics
from forecache.plan import file as file_module
from forecache.sampling import samples_file
from forecache.sampling import shard_file as shard_file_module

SITES = tuple(fc.parts.Site(f"b.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
GRID = fc.Grid(4, SITES, "SmallDiT")
SPARE = 2**20
"""Bytes that a small file may take beyond four times its size: decoders, and our own objects."""

INSERTED = [
    b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5", b"true", b"null", b"99999999999999999999", b"9" * 500,
    b"9" * 5000, b'"\\ud800"', b"\\ud800", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\xff", b"\xed\xa0\x80", b"\x00",
    b"\xef\xbb\xbf", b"[" * 5000, b"\x80" * 8, b"\xff" * 8, b"../", b"PK\x03\x04", b"PK\x01\x02", b'"version": 2,',
]  # fmt: skip


def mutated(data, rng):
    """The bytes after one to four accidents."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place, length = rng.randrange(len(data) + 1), min(rng.choice([1, 1, 2, 8, 64]), len(data))
        match rng.randrange(7):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[place % len(data)] = rng.randrange(256)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = rng.choice(INSERTED)
            case 4:
                data[place : place + length] = rng.choice(INSERTED)
            case 5 if data:
                start = rng.randrange(len(data))
                data[place:place] = data[start : start + length]
            case 6 if rng.random() < 0.2:
                del data[place:]
    return bytes(data)


def text(data, rng):
    """A file that is its bytes."""
    return mutated(data, rng)


def tensor_file(data, rng):
    """A safetensors file: its bytes, or its header alone, with a length that is right again."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutated(data[8:end], rng)
    return struct.pack("<Q", len(header)) + header + data[end:]


def zipped(data, rng):
    """An archive: its bytes, or one of its parts, with checksums that are right again, packed or not."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = rng.randrange(len(parts))
    packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for number, (name, content) in enumerate(parts):
            near = content[:128] if content.startswith(b"\x93NUMPY") and rng.random() < 0.8 else content
            archive.writestr(name, mutated(near, rng) + content[len(near) :] if number == chosen else content)
    return out.getvalue()


@dataclass(frozen=True)
class Kind:
    """A kind of file. make: writes a good one. load, save: of what it holds. same: whether two loaded ones are."""

    suffix: str
    make: Any
    load: Any
    save: Any
    error: type[Exception]
    change: Any = text
    same: Any = operator.eq


RUN = shard_file_module.Settings("M", {"t": "f"}, "s", "float32", {"method": "goc"}, 4, 1.5, 7, "c" * 64, 6, 4, 2)


def shard_file(path):
    images = torch.arange(4 * 3 * 3, dtype=torch.uint8).reshape(4, 3, 3, 1)
    shard_file_module.write_shard(path, RUN, 0, shard_file_module.Shard(images, 1.5, "cpu"))


def same_shard(a, b):
    return torch.equal(a.images, b.images) and (a.seconds, a.made_on) == (b.seconds, b.made_on)


def save_row(row, path):
    figures = {name: figure.document() for name, figure in row.figures.items()}
    path.write_text(json.dumps({"figures": figures, "sampling_seeds": list(row.seeds)}))


def same_row(a, b):
    documents = [{name: figure.document() for name, figure in row.figures.items()} for row in (a, b)]
    return documents[0] == documents[1] and a.seeds == b.seeds


def moments_of(path):
    return {layer: (moments.mean, moments.covariance) for layer, moments in open_reference(path).moments.items()}


def save_moments(moments, path):
    names = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
    np.savez(
        path, **{name: value for layer, pair in moments.items() for name, value in zip(names[layer], pair, strict=1)}
    )


def images_of(path):
    found = open_images(path)
    return torch.cat(list(found.batches(4))), found.labels


def save_images(found, path):
    images, labels = found
    with path.open("wb") as file:
        np.savez(file, images.permute(0, 2, 3, 1).numpy(), **({} if labels is None else {"arr_1": labels}))


def parts(path):
    return np.concatenate([np.zeros((0, 3, 3, 1), np.uint8), *samples_file.images(path)])


def write_samples(images, path):
    samples_file.write(path, len(images), [images], np.arange(len(images)))


def features_file(path):
    Features("digits", 5, {"pool": torch.arange(15.0).reshape(5, 3)}).save(path)


def same_features(a, b):
    layers = [[(name, layer.tolist()) for name, layer in features.layers.items()] for features in (a, b)]
    return (a.extractor, a.count, layers[0]) == (b.extractor, b.count, layers[1])


TRAINING = routers.Settings("SmallDiT", 1, 4, 1.5, 2, 1e-3, 5e-6, 0)


def training(path=None):
    found = routers.Training(GRID, TRAINING, torch.device("cpu"))
    if path is not None:
        found.load(path, 100)
    return found


def checkpoint(path):
    found = training()
    found.logits_KS.sum().backward()
    found.optimizer.step()
    found.iteration, found.error, found.loss = 1, 0.5, 0.25
    found.save(path)


def same_training(a, b):
    state = [training.optimizer.state[training.logits_KS]["exp_avg"] for training in (a, b)]
    return torch.equal(a.logits_KS, b.logits_KS) and torch.equal(*state) and a.iteration == b.iteration


def smoothcache_plan(path):
    """The plan that the file's schedule gives; one that skips the first step gives none, which is an error of ours."""
    try:
        return fc.methods.smoothcache_file(path).plan(GRID).rows
    except errors.PlanFileError:
        raise
    except errors.PlanError:
        return ()


def save_smoothcache(rows, path):
    kinds = {"attn": 0, "mlp": 1}
    rows = (
        {kind: [int(cell.computed) for cell in rows[index]] for kind, index in kinds.items()} if rows else {"ff": [0]}
    )
    path.write_text(json.dumps(rows))


KINDS = {
    "plan": Kind(".json", fc.goc(fc.fora(2), 1.2).plan(GRID).save, fc.Plan.load, fc.Plan.save, errors.PlanFileError),
    "statistics": Kind(
        ".safetensors", measured(tokens=1).save, Statistics.load, Statistics.save, errors.StatisticsFileError,
        tensor_file, same_statistics,
    ),
    "router": Kind(
        ".safetensors", fc.Router(torch.ones(4, 4), tuple(s.name for s in SITES), (1, 3), {"made_by": "x"}).save,
        fc.Router.read, fc.Router.save, errors.RouterFileError, tensor_file,
    ),
    "published router": Kind(
        ".pt", lambda path: torch.save(published(), path), fc.Router.read, fc.Router.save,
        errors.RouterFileError, zipped,
    ),
    "router checkpoint": Kind(
        ".safetensors", checkpoint, training, routers.Training.save, (errors.RouterFileError,
        errors.InputError), tensor_file,
        same_training,
    ),
    "smoothcache": Kind(
        ".json", lambda path: path.write_text('{"attn1": [1, 0, 1, 0], "ff": [1, 0, 0, 1]}'), smoothcache_plan,
        save_smoothcache, errors.PlanFileError,
    ),
    "search": Kind(
        ".json", search_file, search_file_io.read, lambda found, path: search_file_io.write(path,
        *found), errors.SearchFileError
    ),
    "manifest": Kind(
        ".json", lambda path: shard_file_module.write_manifest(path, RUN), shard_file_module.read_manifest,
        lambda found, path: shard_file_module.write_manifest(path, found), errors.ShardError,
    ),
    "shard": Kind(
        ".safetensors", shard_file, lambda path: shard_file_module.read_shard(path, RUN, 0),
        lambda found, path: shard_file_module.write_shard(path, RUN, 0, found), errors.ShardError,
        tensor_file, same_shard,
    ),
    "samples": Kind(
        ".npz", lambda path: write_samples(np.arange(45, dtype=np.uint8).reshape(5, 3, 3, 1), path), parts,
        write_samples, errors.ShardError, zipped, np.array_equal,
    ),
    "reference": Kind(
        ".npz", lambda path: np.savez(path, mu=np.ones(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=np.eye(2)),
        moments_of, save_moments, errors.InputError, zipped, lambda a, b: str(a) == str(b),
    ),
    "images": Kind(
        ".npz", lambda path: np.savez(path, np.arange(90, dtype=np.uint8).reshape(5, 3, 3, 2)[..., :1], np.arange(5)),
        images_of, save_images, errors.InputError, zipped, lambda a, b: torch.equal(a[0], b[0]) and a[1] == b[1],
    ),
    "features": Kind(
        ".safetensors", features_file, Features.load, Features.save, errors.InputError, tensor_file, same_features
    ),
    "evaluation": Kind(".json", figures_file, evaluation_files.read_row, save_row, errors.InputError, text, same_row),
}  # fmt: skip
BY_NAME = pytest.mark.parametrize("name", KINDS)


@contextmanager
def at_once(seconds=60):
    """A test that would wait for a pipe for ever fails instead."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@contextmanager
def measured_memory():
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def outcome(kind, path, more=0):
    """What is loaded, or None where our own error names the file; its memory is held against the file's size."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = error = None
    try:
        found = kind.load(path)
    except kind.error as caught:
        error = caught
    taken = tracemalloc.get_traced_memory()[1] - before
    assert taken <= 4 * (path.stat().st_size + more) + SPARE, f"{taken} bytes"
    if error is not None:
        assert isinstance(error, fc.ForecacheError)
        assert path.stem in str(error), error
        assert len(str(error)) < 1000 + len(str(path)), error
    return found


def written(kind, folder, name="good"):
    path = folder / f"{name}{kind.suffix}"
    kind.make(path)
    return path


# ---- mutation -------------------------------------------------------------------------------------------------------


@BY_NAME
def test_a_good_file_loads_to_what_was_saved(tmp_path, name):
    kind = KINDS[name]
    found = kind.load(written(kind, tmp_path))
    again = tmp_path / f"again{kind.suffix}"
    kind.save(found, again)
    assert kind.same(kind.load(again), found)


@BY_NAME
def test_mutated_files_load_to_something_equal_or_are_refused(tmp_path, name):
    """10,000 plans, 1,000 files of every other kind. Some must load: else the mutations are too rough to see much."""
    kind, rng = KINDS[name], random.Random(f"forecache {name}")
    whole = written(kind, tmp_path).read_bytes()
    path, again = tmp_path / f"mutant{kind.suffix}", tmp_path / f"again{kind.suffix}"
    original = kind.load(written(kind, tmp_path))
    loaded = refused = different = 0
    with measured_memory(), at_once(300):
        for _ in range(10_000 if name == "plan" else 1_000):
            for file in (path, again):  # to cut a file that is there short takes ten times as long
                file.unlink(missing_ok=True)
            path.write_bytes(kind.change(whole, rng))
            if (found := outcome(kind, path)) is None:
                refused += 1
                continue
            loaded += 1
            if not kind.same(found, original):
                different += 1
                kind.save(found, again)
                assert kind.same(kind.load(again), found), path.read_bytes()
    assert loaded > 5
    assert different > 0 or name in ("shard", "published router")
    assert refused > 100


def test_mutated_constants_with_a_digest_that_is_right(tmp_path):
    """The digest stops accidents; whoever made the file can make the digest."""
    plan = fc.eoc(fc.fora(2), measured(), theta=0.5).plan(MEASURED_GRID)
    plan.save(tmp_path / "mine.json")
    beside, rng = tmp_path / "mine.constants.safetensors", random.Random("forecache constants")
    document, whole = json.loads((tmp_path / "mine.json").read_text()), beside.read_bytes()
    loaded = 0
    with measured_memory():
        for _ in range(1_000):
            data = tensor_file(whole, rng)
            document["constants"]["sha256"] = hashlib.sha256(data).hexdigest()
            for file in tmp_path.iterdir():
                file.unlink()
            beside.write_bytes(data)
            (tmp_path / "mine.json").write_text(json.dumps(document))
            if (found := outcome(KINDS["plan"], tmp_path / "mine.json", len(data))) is None:
                continue
            loaded += 1
            found.save(tmp_path / "again.json")
            assert fc.Plan.load(tmp_path / "again.json") == found
            assert found.constants.nbytes <= len(data)
    assert 5 < loaded < 900


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["#", "forecache-plan"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.data(), JSON)
def test_any_value_at_any_place_of_a_plan(data, value):
    """What stands in a valid plan is replaced by anything that JSON can say."""
    tokens = {"share": 0.5, "importance": "random", "site": ""}
    document = {
        "format": "forecache-plan", "version": 2, "num_steps": 2, "model": "", "fingerprint": "", "scheduler": "",
        "sites": [{"name": "a", "depth": 0, "kind": ""}, {"name": "b", "depth": 0, "kind": ""}],
        "rows": [
            {"sites": [0], "cells": ["#", [[0, 1.0]]]},
            {"sites": [1], "cells": ["#", {"reads": [[0, 1.0]], "tokens": tokens}]},
        ],
        "constants": None, "provenance": {"method": "m"}, "recipe": None,
    }  # fmt: skip
    file_module.decode(document)
    place, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(place[key], list | dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
    place[key] = value
    try:
        contents = file_module.decode(files.parse(json.dumps(document).encode()))
        assert fc.Plan(contents.grid, contents.rows, contents.provenance).show()
    except ValueError:
        pass  # which `read` gives the file's name


@BY_NAME
@given(st.binary(max_size=200))
def test_any_bytes_at_all(tmp_path_factory, name, data):
    kind = KINDS[name]
    path = tmp_path_factory.getbasetemp() / f"bytes{kind.suffix}"
    path.write_bytes(data)
    assert outcome(kind, path) is None


# ---- what is no file ------------------------------------------------------------------------------------------------


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


STRANGE = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": fifo,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": loop,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "four terabytes": sparse,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in this system's folders")
@pytest.mark.parametrize("strange", STRANGE)
@BY_NAME
def test_what_is_no_file_is_refused_at_once(tmp_path, name, strange):
    kind = KINDS[name]
    path = tmp_path / f"strange{kind.suffix}"
    STRANGE[strange](path)
    with at_once(), pytest.raises(kind.error, match=r"strange"):
        kind.load(path)


@BY_NAME
def test_a_link_to_a_file_is_followed(tmp_path, name):
    """The hub's cache is made of links."""
    kind = KINDS[name]
    path = tmp_path / f"link{kind.suffix}"
    path.symlink_to(written(kind, tmp_path))
    assert kind.load(path) is not None


# ---- JSON -----------------------------------------------------------------------------------------------------------

WORDS = {
    b'{"a": 1, "a": 2}': "stands twice",
    b'{"a": {"b": 1, "b": 1}}': "stands twice",
    b'{"a": NaN}': "NaN is not a number",
    b'{"a": -Infinity}': "-Infinity is not a number",
    b'{"a": 1e999}': "'1e999' is not a finite number",
    b'{"a": ' + b"7" * 400 + b"}": "integer of 400 digits",
    b'{"a": "\\ud800"}': "half of a surrogate pair",
    b'{"\\udfff": 1}': "half of a surrogate pair",
    b'{"a": "\xff"}': "utf-8",
    b'{"a": "\xed\xa0\x80"}': "utf-8",
    '{"a": 1}'.encode("utf-16"): "utf-8",
    b"[" * 10_000 + b"]" * 10_000: "nested too deeply",
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000: "nested too deeply",
    b"[" + b"0," * files.MAX_VALUES + b"0]": "values; such a file has at most",
}
JSON_KINDS = [name for name, kind in KINDS.items() if kind.suffix == ".json"]


@pytest.mark.parametrize("data", WORDS, ids=range(len(WORDS)))
def test_json_that_means_two_things_or_nothing_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=WORDS[data]):
        files.parse(data)
    for name in JSON_KINDS:
        path = tmp_path / f"{name}.json"
        path.write_bytes(data)
        with pytest.raises(KINDS[name].error, match=path.name):
            KINDS[name].load(path)


def test_json_as_others_write_it_is_read():
    assert files.parse(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": [1, -2.5e3, null, true]}') == {
        "a": "\U0001f600",
        "b": [1, -2500.0, None, True],
    }
    assert files.parse(b'["\\\\ud800"]') == ["\\ud800"]


@pytest.mark.parametrize("unit", [b"[]", b"{}", b'{"ab":1234}', b"1.5", b'"ab"', b"[[0,1.0]]", b'"\xf0\x9f\x98\x80"'])
def test_the_densest_document_that_is_read_stays_within_its_memory(monkeypatch, unit):
    """Four times the file and 128 bytes a value, whatever it holds: 128 MiB at most; here with fewer values."""
    monkeypatch.setattr(files, "MAX_VALUES", 2**16)
    signs = sum(map(unit.count, (b",", b":", b"[", b"{"))) + 1
    data = b"[" + b",".join([unit] * (files.MAX_VALUES // signs - 1)) + b"]"
    with measured_memory():
        assert files.parse(data)
        assert tracemalloc.get_traced_memory()[1] <= 4 * len(data) + 128 * files.MAX_VALUES


def test_a_plan_of_many_sites_of_one_name_is_refused_without_counting_each(tmp_path):
    site = {"name": "a", "depth": 0, "kind": ""}
    document = json.loads(written(KINDS["plan"], tmp_path).read_text()) | {"sites": [site] * 60_000}
    (tmp_path / "many.json").write_text(json.dumps(document))
    with pytest.raises(errors.PlanFileError, match=r"many\.json.*a stands more than once"):
        fc.Plan.load(tmp_path / "many.json")


# ---- archives -------------------------------------------------------------------------------------------------------


def npy(shape, descr="|u1", data=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def archive(path, packing=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", packing) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return path


class Zeros(io.RawIOBase):
    """So many zeros, without the memory for them."""

    def __init__(self, count):
        self.count = count

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.count)
        buffer[:count] = bytes(count)
        self.count -= count
        return count


def bomb(path, name, shape, descr, size):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made, made.open(f"{name}.npy", "w") as member:
        member.write(npy(shape, descr))
        source = Zeros(size)
        while chunk := source.read(2**20):
            member.write(chunk)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """128 MiB of zeros in 130 kB, for the mean of a reference and for one image."""
    bomb(tmp_path / "mu.npz", "mu", (2**24,), "<f8", 2**27)
    bomb(tmp_path / "image.npz", "arr_0", (1, 2**13, 2**14, 1), "|u1", 2**27)
    with measured_memory():
        with pytest.raises(
            errors.InputError, match=r"mu\.npz is damaged: mu unpacks to 134217728 bytes, from a file of"
        ):
            open_reference(tmp_path / "mu.npz")
        with pytest.raises(errors.InputError, match=r"image\.npz .* at most 67108864 bytes"):
            open_images(tmp_path / "image.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**20


def test_arrays_that_claim_what_they_have_not_get_no_memory(tmp_path):
    huge = 2**40
    cases = {
        "claims uint8": archive(tmp_path / "1.npz", arr_0=npy((huge, 8, 8, 3))),
        r"claims float64 \(1099511627776,\)": archive(tmp_path / "2.npz", mu=npy((huge,), "<f8"), arr_0=npy((1, 1, 1))),
        "claims uint8 .*, and has 5": archive(tmp_path / "3.npz", arr_0=npy((1, 2, 2), data=b"12345")),
        "is object": archive(tmp_path / "4.npz", arr_0=npy((1,), "|O", b"\x80\x04N.")),
        "header of arr_0 cannot be read": archive(tmp_path / "5.npz", arr_0=b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16),
        "packed in a way": archive(tmp_path / "6.npz", zipfile.ZIP_LZMA, arr_0=npy((1, 1, 1), data=b"1")),
        "no array|has no images": archive(tmp_path / "7.npz", other=npy((1,))),
    }
    with measured_memory():
        for words, path in cases.items():
            with pytest.raises(
                errors.InputError, match=rf"{path.name} (is damaged: .*)?({words})|{words}.*{path.name}"
            ):
                open_reference(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20


def test_a_table_of_contents_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as made:
        for number in range(20_000):
            made.writestr(f"{number:040d}.npy", b"")
    with measured_memory():
        with pytest.raises(errors.InputError, match=r"many\.npz cannot be read as \.npz: its table of contents claims"):
            open_images(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * npz.MAX_TABLE


def test_a_name_that_stands_twice_in_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.npz", "w") as made:
        made.writestr("arr_0.npy", npy((1, 1, 1), data=b"1"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            made.writestr("arr_0.npy", npy((1, 1, 1), data=b"2"))
    with pytest.raises(errors.InputError, match=r"two\.npz .*stands in it twice"):
        open_images(tmp_path / "two.npz")


# ---- pickles and tensors --------------------------------------------------------------------------------------------


class Hoard:
    """Unpickled, a hundred gigabytes: torch lets `bytearray` in, even where it reads weights only."""

    def __reduce__(self):
        return bytearray, (10**11,)


def test_a_published_router_asks_for_nothing_beyond_its_vocabulary(tmp_path):
    torch.save(published() | {"opt": Hoard()}, tmp_path / "hoard.pt")
    with pytest.raises(errors.RouterFileError, match=r"hoard\.pt .*bytearray.*nothing in it was run"):
        fc.Router.read(tmp_path / "hoard.pt")


def test_an_archive_of_many_parts_is_no_router(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.pt", "w") as made:
        for number in range(2**14 + 1):
            made.writestr(str(number), b"")
    with pytest.raises(errors.RouterFileError, match=r"many\.pt .*more than 16384 parts"):
        fc.Router.read(tmp_path / "many.pt")


def test_tensors_of_absurd_shapes_get_no_memory(tmp_path):
    """safetensors holds every offset against the length of the file; a shape of no elements overflows nothing."""
    metadata = {
        "forecache": json.dumps(
            {"format": "forecache-statistics", "version": 3, "sites": [], "origin": {}, "signals": {}}
        )
    }
    for number, shape in enumerate([[2**62], [2**40, 2**40], [2**63, 0], [0, 2**62, 2**62]]):
        header = {"__metadata__": metadata, "means.0": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
        data = json.dumps(header).encode()
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(data)) + data)
        with measured_memory():
            with pytest.raises(errors.StatisticsFileError, match=path.name):
                Statistics.load(path)
            assert tracemalloc.get_traced_memory()[1] < SPARE


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
def test_constants_and_features_are_real_numbers(tmp_path, dtype):
    plan = fc.eoc(fc.fora(2), measured(), theta=0.5).plan(MEASURED_GRID)
    plan.save(tmp_path / "plan.json")
    beside = tmp_path / "plan.constants.safetensors"
    save_file({name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in plan.constants.items()}, beside)
    document = json.loads((tmp_path / "plan.json").read_text())
    document["constants"]["sha256"] = hashlib.sha256(beside.read_bytes()).hexdigest()
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(errors.PlanFileError, match="is no tensor of finite numbers"):
        fc.Plan.load(tmp_path / "plan.json")
    about = {"forecache": json.dumps({"format": "forecache-features", "version": 2, "extractor": "x", "count": 5})}
    save_file({"pool": torch.zeros(5, 3, dtype=dtype)}, tmp_path / "f.safetensors", about)
    with pytest.raises(errors.InputError, match=r"f\.safetensors is not .* 'pool' is not 5 rows"):
        Features.load(tmp_path / "f.safetensors")


def test_settings_of_a_published_router_are_kept_as_text(tmp_path):
    content = published() | {"args": argparse.Namespace(model="x" * 10**6, lr=1e-3, max_steps="a\x1b[2J")}
    torch.save(content, tmp_path / "routers.pt")
    kept = fc.Router.read(tmp_path / "routers.pt").provenance
    assert kept["lr"] == "0.001"
    assert not {"model", "max_steps"} & set(kept)
