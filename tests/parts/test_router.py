"""Routers as files: our own form, the published one, and what a damaged or hostile one is answered with."""

import argparse
import io
import json
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save
from support.routers import published

import forecache as fc

SITES = ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
LOGITS = torch.tensor(
    [[0.0, 0, 0, 0], [-5, -4, -3, 1], [-9, -9, -9, -9], [-5, 2, 3, 4], [0, 0, 0, 0], [5, 5, 5, 5]], dtype=torch.float32
)
ROUTER = fc.Router(LOGITS, SITES, (1, 3, 5), {"made_by": "a test"})


@pytest.fixture
def file(tmp_path):
    ROUTER.save(tmp_path / "router.safetensors")
    return tmp_path / "router.safetensors"


@pytest.fixture
def pt(tmp_path):
    torch.save(published(), tmp_path / "router.pt")
    return tmp_path / "router.pt"


# ---- what a router says ---------------------------------------------------------------------------------------------


def test_show_prints_one_line_a_site_and_one_sign_a_step():
    assert ROUTER.show() == "\n".join(
        [
            "a test: 6 steps x 4 sites, 16.7% skipped at threshold 0.1",
            "blocks.0.attn  #.#.##",
            "blocks.0.mlp   #.####",
            "blocks.1.attn  #.####",
            "blocks.1.mlp   ######",
            "# computed   . reused",
        ]
    )
    assert ROUTER.picture() == "#.####\n#.#.##\n######"


def test_a_cell_is_skipped_where_its_probability_is_not_over_the_threshold():
    p = torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64)).item()
    assert ROUTER.skips(p)[1].tolist() == [True, True, True, False]
    assert ROUTER.skips(p - 1e-9)[1].tolist() == [True, True, False, False]


def test_calls_that_may_not_skip_are_computed_at_every_threshold():
    assert not ROUTER.skips(0.999)[[0, 2, 4]].any()


@pytest.mark.parametrize(
    ("level", "cells"), [(0, 0), (0.04, 0), (1 / 24, 0), (2 / 24, 2), (4 / 24, 4), (0.2, 5), (0.5, 12), (1, 12)]
)
def test_the_threshold_for_a_level_is_that_of_the_nearest(level, cells):
    """The two logits of -5 fall together, so one cell alone cannot be had: the lower of two that are as near."""
    threshold = ROUTER.threshold_for(level)
    assert ROUTER.level(threshold) * 24 == pytest.approx(cells)


def test_saturated_logits_have_a_threshold_for_every_level():
    router = fc.Router(torch.tensor([[0.0, 0, 0], [-800, 40, 800]]), SITES[:3], (1,))
    assert [round(6 * router.level(router.threshold_for(level))) for level in (0, 0.17, 0.5)] == [1, 1, 1]


def test_skipped_by_kind_counts_the_sites_of_every_call():
    assert ROUTER.skipped_by_kind() == {"attn": (0, 2, 0, 1, 0, 0), "mlp": (0, 1, 0, 0, 0, 0)}


def test_a_router_keeps_a_copy_of_its_logits():
    logits = LOGITS.clone()
    router = fc.Router(logits, SITES, (1,))
    logits.fill_(0)
    assert torch.equal(router.logits, LOGITS)


def test_routers_are_equal_when_everything_is():
    assert fc.Router(LOGITS, SITES, (1, 3, 5), {"made_by": "a test"}) == ROUTER
    assert len({fc.Router(LOGITS, SITES, (1, 3, 5)), fc.Router(LOGITS, SITES, (1, 3, 5))}) == 1
    assert fc.Router(LOGITS, SITES, (1, 3), {"made_by": "a test"}) != ROUTER
    assert fc.Router(LOGITS + 1, SITES, (1, 3, 5), {"made_by": "a test"}) != ROUTER
    assert ROUTER != "router"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((LOGITS.double(), SITES, (1,)), r"float32 \(steps, sites\); these are torch\.float64"),
        ((LOGITS[0], SITES, ()), r"these are torch\.float32 \(4,\)"),
        ((LOGITS[:, :0], (), ()), r"these are torch\.float32 \(6, 0\)"),
        ((LOGITS, SITES[:3], (1,)), "names each of its 4 sites once; it has 3"),
        ((LOGITS, SITES[:3] + SITES[:1], (1,)), "names each of its 4 sites once; it has 3"),
        ((LOGITS, (*SITES[:3], "a\x1b[2J"), (1,)), "names that can be printed"),
        ((LOGITS, SITES, (0, 1)), "ascend from 1 to 5"),
        ((LOGITS, SITES, (3, 1)), "ascend from 1 to 5"),
        ((LOGITS, SITES, (1, 6)), "ascend from 1 to 5"),
        ((LOGITS / 0, SITES, (1,)), "finite"),
        ((LOGITS, SITES, (1,), {"lr": 1}), "maps names to strings"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(parts, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        fc.Router(*parts)


@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_thresholds_and_levels_are_shares(number):
    with pytest.raises(fc.errors.PlanError, match="threshold is a probability"):
        ROUTER.level(number)
    with pytest.raises(fc.errors.PlanError, match="level is a share"):
        ROUTER.threshold_for(number)


# ---- our form -------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(file):
    assert fc.Router.load(file) == fc.Router.load(str(file)) == fc.Router.read(file) == ROUTER


def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_file(file):
    before = file.read_bytes()
    fc.Router.load(file).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["router.safetensors"]


def test_folders_that_are_missing_are_made(tmp_path):
    ROUTER.save(tmp_path / "a" / "b" / "router.safetensors")
    assert fc.Router.load(tmp_path / "a" / "b" / "router.safetensors") == ROUTER


DOCUMENT = {"format": "forecache-router", "version": 2, "sites": list(SITES), "skippable": [1, 3, 5], "provenance": {}}


def ours(logits=LOGITS, key="forecache", **changed):
    """The bytes of a router file with some of its document changed; a change to None takes the key out."""
    document = {name: value for name, value in (DOCUMENT | changed).items() if value is not None}
    return save({"logits": logits}, metadata={key: json.dumps(document)})


def header(change):
    """The file with its safetensors header changed as text."""
    content = ours()
    size = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + size].decode())
    return len(text).to_bytes(8, "little") + text.encode() + content[8 + size :]


DAMAGED = {
    "empty": (lambda: b"", "not a readable router file"),
    "no safetensors": (lambda: b"\x89PNG\r\n" * 20, "not a readable router file"),
    "truncated": (lambda: ours()[:-7], "not a readable router file"),
    "half": (lambda: ours()[:100], "not a readable router file"),
    "a header of 2^60": (lambda: (2**60).to_bytes(8, "little") + ours()[8:], "not a readable router file"),
    "a pickle": (lambda: pickle.dumps(ROUTER.logits), "not a readable router file"),
    "no metadata": (lambda: save({"logits": LOGITS}), r"metadata is \[\], not \['forecache'\]"),
    "other metadata": (lambda: ours(key="format"), r"metadata is \['format'\]"),
    "metadata not JSON": (lambda: save({"logits": LOGITS}, metadata={"forecache": "{"}), "not a readable"),
    "a list": (lambda: save({"logits": LOGITS}, metadata={"forecache": "[]"}), "must be an object, not"),
    "deep lists": (lambda: save({"logits": LOGITS}, metadata={"forecache": "[" * 10**5}), "not a readable"),
    "another format": (lambda: ours(format="forecache-plan"), "format is 'forecache-plan', not 'forecache-router'"),
    "no format": (lambda: ours(format=None), "it lacks format"),
    "another version": (lambda: ours(version=1), "version is 1; this forecache reads version 2"),
    "version true": (lambda: ours(version=True), "version is True; this forecache reads version 2"),
    "version in words": (lambda: ours(version="2"), "version is '2'"),
    "no version": (lambda: ours(version=None), "it lacks version"),
    "unknown key": (lambda: ours(cls="os.system"), r"unknown keys \['cls'\]"),
    "missing key": (lambda: ours(skippable=None), "lacks skippable"),
    "sites a word": (lambda: ours(sites="abcd"), "sites must be of type list"),
    "a site that is a number": (lambda: ours(sites=[1, *SITES[1:]]), "sites must hold values of type str, not 1"),
    "a site twice": (lambda: ours(sites=[SITES[0], *SITES[:3]]), "names each of its 4 sites once"),
    "a site more": (lambda: ours(sites=[*SITES, "blocks.2.attn"]), "names each of its 4 sites once"),
    "an escape code": (lambda: ours(sites=["\x1b[2J", *SITES[1:]]), "can be printed"),
    "step 0 skippable": (lambda: ours(skippable=[0]), "ascend from 1 to 5"),
    "step true": (lambda: ours(skippable=[True]), "skippable must hold values of type int, not True"),
    "step 1.0": (lambda: ours(skippable=[1.0]), "skippable must hold values of type int"),
    "a step outside": (lambda: ours(skippable=[6]), "ascend from 1 to 5"),
    "a huge step": (lambda: ours(skippable=[10**400]), "not a readable router file"),
    "provenance a list": (lambda: ours(provenance=[]), "provenance must be of type dict"),
    "provenance of numbers": (lambda: ours(provenance={"lr": 1}), "maps names to strings"),
    "NaN": (lambda: ours(LOGITS * float("nan")), "finite"),
    "infinity": (lambda: ours(LOGITS + float("inf")), "finite"),
    "half precision": (lambda: ours(LOGITS.half()), "float32"),
    "one dimension": (lambda: ours(LOGITS.flatten()), "float32"),
    "transposed": (lambda: ours(LOGITS.T.contiguous()), "names each of its 6 sites once"),
    "no steps": (lambda: ours(LOGITS[:0]), "float32"),
    "another tensor": (
        lambda: save({"logits": LOGITS, "x": LOGITS.clone()}, metadata={"forecache": json.dumps(DOCUMENT)}),
        "must hold the tensor 'logits' alone",
    ),
    "another name": (lambda: header(lambda text: text.replace('"logits"', '"Logits"')), "must hold the tensor"),
    "a claim of 2^50 steps": (lambda: header(lambda text: text.replace("[6,4]", f"[{2**50},4]")), "not a readable"),
    "integers": (lambda: header(lambda text: text.replace("F32", "I32")), "float32"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name_and_the_reason(file, damage):
    make, words = DAMAGED[damage]
    file.write_bytes(make())
    with pytest.raises(fc.errors.RouterFileError, match=words) as caught:
        fc.Router.load(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < len(str(file)) + 500, "an error is a sentence, not the file"


def test_a_missing_file_and_a_folder_are_refused_with_their_name(tmp_path):
    for read in (fc.Router.load, fc.Router.from_published, fc.Router.read, fc.l2c):
        with pytest.raises(fc.errors.RouterFileError, match=r"There is no .*router.* at .*nowhere"):
            read(tmp_path / "nowhere")
        with pytest.raises(fc.errors.RouterFileError, match=f"{tmp_path.name} (cannot be read|is not a readable)"):
            read(tmp_path)


@pytest.mark.parametrize("read", [fc.Router.load, fc.Router.from_published])
def test_a_file_of_a_size_that_no_router_has_is_refused_unread(tmp_path, read):
    with (tmp_path / "huge").open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(fc.errors.RouterFileError, match="huge.*1099511627776 bytes.*at most"):
        read(tmp_path / "huge")


def mutants(whole, count, seed):
    generator = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(whole)
        place = generator.randrange(len(mutant))
        mutant[place : place + generator.randrange(3)] = generator.randbytes(generator.randrange(3))
        yield bytes(mutant)


@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_changed_bytes_is_a_router_or_refused(file, seed):
    """Nothing but a RouterFileError comes out; what is still a router can be printed and saved."""
    for mutant in mutants(file.read_bytes(), 150, seed):
        file.write_bytes(mutant)
        try:
            router = fc.Router.load(file)
        except fc.errors.RouterFileError:
            continue
        assert router.show()
        router.save(file)
        assert fc.Router.load(file) == router


# ---- the published form ---------------------------------------------------------------------------------------------


def test_a_published_file_becomes_a_router_in_sampling_order(pt):
    router, rows = fc.Router.from_published(pt), published()["routers"]
    assert router.sites == SITES
    assert router.skippable == (1, 3)
    for call in range(4):
        assert torch.equal(router.logits[call], rows[f"{3 - call}.prob"])
    assert router.provenance["made_by"] == "published router router.pt"
    assert (router.provenance["l1"], router.provenance["model"]) == ("5e-06", "DiT-XS")
    assert "data_path" not in router.provenance
    assert len(router.provenance["sha256"]) == 64


def test_rows_of_even_calls_are_ignored(tmp_path):
    content = published()
    for index in (1, 3):
        content["routers"][f"{index}.prob"].fill_(-100)
    torch.save(content, tmp_path / "router.pt")
    assert not fc.Router.from_published(tmp_path / "router.pt").skips()[[0, 2]].any()


def test_our_load_says_how_a_published_file_is_read(pt):
    with pytest.raises(fc.errors.RouterFileError, match=r"router\.pt .* read with Router\.from_published"):
        fc.Router.load(pt)
    assert fc.Router.read(pt) == fc.Router.from_published(pt)


def test_nothing_stays_allowed_after_reading(pt):
    before = set(torch.serialization.get_safe_globals())
    fc.Router.from_published(pt)
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


class Touch:
    """A pickle that makes a file when it is loaded as pickles are."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_hostile_pickle_is_one(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "touched"))).close()
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("where", ["routers", "opt", "args", "row", "other"])
@pytest.mark.parametrize("read", [fc.Router.from_published, fc.Router.read, fc.l2c])
def test_nothing_in_a_hostile_file_is_executed(tmp_path, where, read):
    content, evil = published(), Touch(tmp_path / "touched")
    match where:
        case "args":
            content["args"].model = evil
        case "row":
            content["routers"]["0.prob"] = evil
        case _:
            content[where] = evil
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(fc.errors.RouterFileError, match=r"evil\.pt .*nothing in it was run"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()


def test_a_bare_hostile_pickle_is_not_executed_either(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    for read in (fc.Router.from_published, fc.Router.read):
        with pytest.raises(fc.errors.RouterFileError, match=r"evil\.pt"):
            read(path)
    torch.save({"routers": Touch(tmp_path / "touched")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(fc.errors.RouterFileError, match=r"evil\.pt"):
        fc.Router.from_published(path)
    assert not (tmp_path / "touched").exists()


def changed(**rows):
    content = published()
    content["routers"].update({f"{name[1:]}.prob": row for name, row in rows.items()})
    return content


STRANGE = {
    "no routers": (lambda: {"args": argparse.Namespace()}, "no entry 'routers'"),
    "a tensor": (lambda: torch.zeros(4), "no entry 'routers'"),
    "a list": (lambda: [1], "no entry 'routers'"),
    "unknown entries": (lambda: published() | {"model": {}}, "1 entries besides routers, opt and args"),
    "no rows": (lambda: {"routers": {}}, "not a table of logits"),
    "routers a tensor": (lambda: {"routers": torch.zeros(4, 4)}, "not a table of logits"),
    "a row missing": (lambda: {"routers": {"0.prob": torch.zeros(4), "2.prob": torch.zeros(4)}}, "not named 0.prob"),
    "an unknown row": (lambda: {"routers": {"0.weight": torch.zeros(4)}}, "not named 0.prob"),
    "an odd row": (lambda: {"routers": {"0.prob": torch.zeros(3)}}, "vectors of one even length"),
    "rows of two lengths": (lambda: changed(_1=torch.zeros(6)), "vectors of one even length"),
    "a matrix": (lambda: changed(_1=torch.zeros(4, 1)), "vectors of one even length"),
    "whole numbers": (lambda: changed(_1=torch.zeros(4, dtype=torch.int64)), "real vectors"),
    "complex numbers": (lambda: changed(_1=torch.zeros(4, dtype=torch.complex64)), "asks for .*ComplexFloatStorage"),
    "a number": (lambda: changed(_1=0.5), "real vectors"),
    "sparse": (lambda: changed(_1=torch.ones(4).to_sparse()), "asks for .* other than tensors"),
    "without data": (lambda: changed(_1=torch.zeros(4, device="meta")), "asks for .* other than tensors"),
    "NaN": (lambda: changed(_1=torch.full((4,), float("nan"))), "finite"),
    "10^12 logits of one byte": (
        lambda: {"routers": {f"{i}.prob": torch.zeros(1).expand(10**12) for i in range(2)}},
        "claims 2 x 1000000000000 logits",
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_published_file_of_other_contents_is_refused(tmp_path, what):
    make, words = STRANGE[what]
    torch.save(make(), tmp_path / "router.pt")
    with pytest.raises(fc.errors.RouterFileError, match=words) as caught:
        fc.Router.from_published(tmp_path / "router.pt")
    assert "router.pt" in str(caught.value)


def test_a_published_file_without_settings_is_a_router(tmp_path):
    torch.save({"routers": published()["routers"]}, tmp_path / "router.pt")
    assert fc.Router.from_published(tmp_path / "router.pt").num_steps == 4


def repacked(pt, **options):
    """The archive packed again, in another way."""
    with zipfile.ZipFile(pt) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with io.BytesIO() as packed:
        with zipfile.ZipFile(packed, "w", **options) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return packed.getvalue()


def test_an_archive_that_grows_when_it_is_read_is_refused(pt):
    pt.write_bytes(repacked(pt, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(fc.errors.RouterFileError, match="archive is compressed"):
        fc.Router.from_published(pt)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_truncated_published_file_is_refused(pt, share):
    content = pt.read_bytes()
    pt.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(fc.errors.RouterFileError, match=r"router\.pt is not a readable"):
        fc.Router.from_published(pt)


@pytest.mark.parametrize("seed", range(2))
def test_a_published_file_with_changed_bytes_is_a_router_or_refused(pt, seed):
    for mutant in mutants(pt.read_bytes(), 150, seed):
        pt.write_bytes(mutant)
        try:
            assert fc.Router.from_published(pt).show()
        except fc.errors.RouterFileError:
            continue
