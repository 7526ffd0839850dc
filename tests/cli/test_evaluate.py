"""`forecache evaluate` and `forecache tabulate` on any images, and what they say of images that cannot be used."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import forecache as fc
from forecache.evaluate import Images, Moments, frechet_distance, load_extractor, open_images, psnr, ssim
from forecache.evaluate.clip import read_prompts
from forecache.evaluate.imagesets import paired


def pixels(count=14, size=24, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def folder(path, images, suffix=".png", names=None):
    for number, image in enumerate(images):
        file = path / (names[number] if names else f"{number:03}{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file)
    return path


def all_of(images, size=5):
    return torch.cat(list(images.batches(size)))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_folders_and_npz_are_read_alike(tmp_path):
    """Nested folders, several formats, grey and colour, in order of their paths; an .npz, compressed or not."""
    images = pixels(6, channels=3)
    names = ["b/1.png", "b/0.PNG", "a.png", "c/d/e.webp", "c/d/.hidden.png", "z.png"]
    saved = folder(tmp_path / "in", images, names=names)
    Image.fromarray(images[3]).save(saved / "c/d/e.webp", lossless=True)
    (saved / "notes.txt").write_text("no image")
    found = open_images(saved)
    assert found.keys == ("a", "b/0", "b/1", "c/d/e", "z")
    expected = torch.from_numpy(images[[2, 1, 0, 3, 5]]).permute(0, 3, 1, 2)
    assert torch.equal(all_of(found, 2), expected)
    np.savez(tmp_path / "a.npz", images)
    np.savez_compressed(tmp_path / "b.npz", images, np.arange(6))
    for name in ("a.npz", "b.npz"):
        assert torch.equal(all_of(open_images(tmp_path / name), 4), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert open_images(tmp_path / "a.npz").labels is None
    assert open_images(tmp_path / "b.npz").labels == tuple(range(6))
    np.savez(tmp_path / "samples.npz", pixels()[..., 0])
    grey = open_images(tmp_path)  # a folder in which the samples are an .npz
    assert torch.equal(all_of(grey), torch.from_numpy(pixels()).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
    assert torch.equal(all_of(Images(torch.full((2, 1, 4, 4), 0.5))), torch.full((2, 3, 4, 4), 128, dtype=torch.uint8))


def test_unusable_images_are_named(tmp_path):
    images = folder(tmp_path / "in", pixels(3))

    def refused(words, where=images):
        with pytest.raises(fc.errors.InputError, match=words):
            all_of(open_images(where))

    good = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(good[: len(good) // 2])
    refused(r"001\.png cannot be read as an image")
    (images / "001.png").write_text("hello")
    refused(r"001\.png cannot be read as an image")
    Image.fromarray(pixels(1, 20)[0, :, :, 0]).save(images / "001.png")
    refused(r"001\.png has 20 x 20 pixels, .*000\.png has 24 x 24")
    Image.fromarray(np.zeros((24, 24), np.uint16)).save(images / "001.png")
    refused(r"001\.png has more than 8 bits")
    Image.fromarray(np.zeros((24, 24, 4), np.uint8)).save(images / "001.png")
    refused(r"001\.png has transparent pixels")
    Image.fromarray(np.full((24, 24, 4), 255, np.uint8)).save(images / "001.png")
    assert all_of(open_images(images)).shape == (3, 3, 24, 24)
    refused("no folder of images at .*nowhere", tmp_path / "nowhere")
    refused("neither a folder of images nor an .npz", images / "001.png")
    (tmp_path / "empty").mkdir()
    refused(r"no image \(.png", tmp_path / "empty")
    with pytest.raises(fc.errors.InputError, match="NaN or not in"):
        Images(torch.full((1, 1, 4, 4), float("nan")))
    with pytest.raises(fc.errors.InputError, match="count, 1 or 3, height, width"):
        Images(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": pixels().astype(np.float32)}, "arr_0 of .* is float32"),
        ({"arr_0": pixels()[:0]}, r"\(0, 24, 24, 1\)"),
        ({"arr_0": pixels(channels=2)}, "count, height, width, 3 or 1"),
        ({"images": pixels()}, "has no images, .* holds images"),
        ({"arr_0": np.array([{}], dtype=object)}, "is object"),
    ],
    ids=["floats", "none", "two channels", "other name", "objects"],
)
def test_an_npz_without_images(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(fc.errors.InputError, match=words):
        open_images(tmp_path / "x.npz")


def test_a_damaged_npz_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", pixels())
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:-200])
    with pytest.raises(fc.errors.InputError, match=r"x\.npz cannot be read as \.npz"):
        open_images(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(whole[:3000] + bytes([whole[3000] ^ 255]) + whole[3001:])
    with pytest.raises(fc.errors.InputError, match=r"x\.npz is damaged: .*CRC"):
        all_of(open_images(tmp_path / "x.npz"), 14)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        header = archive.open("arr_0.npy", "r").read(128)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", header + bytes(24 * 24 * 3))
    with pytest.raises(
        fc.errors.InputError, match=r"damaged: arr_0 claims uint8 \(14, 24, 24, 1\), 8064 bytes, and has 1728"
    ):
        all_of(open_images(tmp_path / "x.npz"))


def test_pairs_are_found_by_name(tmp_path):
    images = pixels(3)
    a = open_images(folder(tmp_path / "a", images, names=["x.png", "y.png", "z.png"]))
    b = open_images(folder(tmp_path / "b", images[[2, 0, 1]], names=["z.png", "x.png", "y/../y.png"]))
    assert torch.equal(all_of(paired(a, b)), all_of(a))
    folder(tmp_path / "b", images[:1], names=["more.png"])
    with pytest.raises(fc.errors.InputError, match=r"b/more\.png has no partner of its name in .*a \(1 of 4"):
        paired(a, open_images(tmp_path / "b"))
    with pytest.raises(fc.errors.InputError, match=r"b/more\.png has no partner"):
        paired(open_images(tmp_path / "b"), a)
    folder(tmp_path / "a", images[:1], names=["x.jpg"])
    with pytest.raises(fc.errors.InputError, match=r"x\.jpg exists with another suffix"):
        paired(open_images(tmp_path / "a"), a)
    with pytest.raises(fc.errors.InputError, match="has 4 images, images has 5: they are compared pair by pair"):
        paired(open_images(tmp_path / "b"), Images(torch.zeros(5, 1, 24, 24)))


def test_prompts_by_line_and_by_name(tmp_path):
    images = open_images(folder(tmp_path / "in", pixels(2)))
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    (tmp_path / "p.json").write_text(json.dumps({"001": "a dog", "000.png": "a cat"}))
    assert read_prompts(tmp_path / "p.txt", images) == read_prompts(tmp_path / "p.json", images) == ("a cat", "a dog")
    (tmp_path / "p.json").write_text(json.dumps({"001": "a dog"}))
    with pytest.raises(fc.errors.InputError, match=r"no prompt for 000\.png \(1 of 2"):
        read_prompts(tmp_path / "p.json", images)
    with pytest.raises(fc.errors.InputError, match="only a folder of images has"):
        read_prompts(tmp_path / "p.json", Images(torch.zeros(1, 1, 9, 9)))
    (tmp_path / "p.txt").write_text("a cat")
    with pytest.raises(fc.errors.InputError, match="1 lines for 2 images"):
        read_prompts(tmp_path / "p.txt", images)
    with pytest.raises(fc.errors.InputError, match=r"nowhere\.txt cannot be read"):
        read_prompts(tmp_path / "nowhere.txt", images)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_evaluate_measures_a_folder_against_a_folder(forecache, tmp_path):
    a, b = pixels(14), pixels(14, seed=1)
    samples, other = folder(tmp_path / "a", a), folder(tmp_path / "b", b)
    words = ["evaluate", samples, "--reference", other, "--extractor", "digits"]
    code, out, err = forecache(*words, "--metrics", "fid,is,prc,psnr,ssim", "--bootstrap", 20, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    figures = document["figures"]
    assert list(figures) == ["fid", "is", "precision", "recall", "psnr", "ssim"]
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (a, b))
    pool = [load_extractor("digits").of(each.expand(-1, 3, -1, -1))["pool"] for each in (x, y)]
    assert figures["fid"]["value"] == pytest.approx(frechet_distance(*map(Moments.of, pool)), rel=1e-5)
    assert figures["psnr"]["value"] == pytest.approx(psnr(x, y, peak=255).mean().item())
    assert figures["ssim"]["value"] == pytest.approx(ssim(x, y, peak=255).mean().item())
    assert all(each["count"] == 14 and each["seed"] == 0 for each in figures.values())
    assert {name: each["resamples"] for name, each in figures.items()} == {**dict.fromkeys(figures, 20), "recall": 14}
    assert document["environment"]["torch"] == torch.__version__
    code, out, _ = forecache(*words, "--metrics", "fid", "--bootstrap", 0)
    assert code == 0
    assert f"{figures['fid']['value']:.3f}" in out
    assert "bootstrap seed" not in out
    assert "14 samples for 128 dimensions" in out


def test_equal_images_count_with_100_db(forecache, tmp_path):
    samples = folder(tmp_path / "a", pixels(3))
    code, out, _ = forecache("evaluate", samples, "--uncached", samples, "--metrics", "psnr", "--json")
    assert code == 0
    assert json.loads(out)["figures"]["psnr"]["value"] == 100


def test_features_are_saved_and_used(forecache, tmp_path):
    np.savez(tmp_path / "a.npz", pixels(30))
    np.savez(tmp_path / "b.npz", pixels(25, seed=1))
    common = ["--extractor", "digits", "--metrics", "fid,prc,sfid", "--json"]
    features = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for name, file in zip("ab", features, strict=True):
        words = ["evaluate", tmp_path / f"{name}.npz", "--extractor", "digits", "--metrics", "is"]
        code, _, _ = forecache(*words, "--save-features", file)
        assert code == 0
    values = []
    for samples, reference in ((tmp_path / "a.npz", tmp_path / "b.npz"), features):
        code, out, _ = forecache("evaluate", samples, "--reference", reference, *common)
        assert code == 0
        values.append({name: each["value"] for name, each in json.loads(out)["figures"].items()})
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_sampled_digits_are_judged_and_compared(forecache, tmp_path):
    """Labels and seed come from run.json; one skipped step is nearer to no cache than three, beyond the interval."""
    common = ["sample", "--labels", "0,1,2,3,4,5,6,7,8,9", "--steps", 6, "--seed", 3]
    one = ["--method", "explicit", "--skip", "4"]
    for name, more in {"none": [], "fora": ["--method", "fora"], "one": one}.items():
        code, _, _ = forecache(*common, *more, "--out", tmp_path / name)
        assert code == 0
    for name in ("fora", "one"):
        words = ["evaluate", tmp_path / name, "--uncached", tmp_path / "none", "--extractor", "digits"]
        code, out, _ = forecache(*words, "--metrics", "accuracy,psnr", "--out", tmp_path / f"{name}.json")
        assert code == 0
        assert "sampling seed 3" in out
    code, out, _ = forecache("tabulate", tmp_path / "fora.json", tmp_path / "one.json", "--markdown")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "|  | class ↑ | PSNR, dB ↑ | samples | seeds |"
    assert lines[3].startswith("| one |")
    assert lines[3].count("**") == 2
    assert lines[3].endswith("** | 10 | 3 |")
    assert "**" not in lines[2]
    code, out, _ = forecache("tabulate", tmp_path / "fora.json", tmp_path / "one.json")
    assert code == 0
    assert "PSNR, dB ↑" in out
    code, _, err = forecache("tabulate", tmp_path / "one" / "run.json")
    assert (code, "run.json is not what `forecache evaluate --out` writes" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--metrics", "fid"], "fid needs a reference; none was given"),
        (["--metrics", "psnr"], "psnr needs the uncached samples"),
        (["--metrics", "clip"], "clip needs a prompt for each sample"),
        (["--metrics", "beauty"], "no metric 'beauty'"),
        (["--metrics", "is"], "is needs at least 10 samples; .* has 3"),
        (["--metrics", "prc", "--reference", "digits"], "precision needs at least 4 samples"),
        (["--metrics", "accuracy"], "accuracy needs the label that each of 3 samples was made for; found no labels"),
        (["--metrics", "fid", "--uncached", "IN"], "--uncached is for psnr, ssim and lpips"),
        (["--metrics", "fid", "--reference", "digits", "--bootstrap", "5"], "at least 20 resamples, or 0"),
        (["--metrics", "fid", "--reference", "nowhere"], "no folder of images at nowhere"),
        (
            ["--metrics", "psnr", "--uncached", "OTHER"],
            r"000\.png has 24 x 24 pixels, its partner .*000\.png has 20 x 20",
        ),
        (["--metrics", "fid", "--reference", "OTHER"], "grey images of 24 x 24 pixels; these are 20 x 20"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_said(forecache, tmp_path, words, error):
    samples, other = folder(tmp_path / "in", pixels(3)), folder(tmp_path / "other", pixels(3, 20))
    words = [{"IN": samples, "OTHER": other}.get(word, word) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, out, err = forecache("evaluate", samples, "--extractor", "digits", *words)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert re.search(error, err), err


def test_features_of_another_network_are_refused(forecache, tmp_path):
    fc.evaluate.Features("other", 12, {"pool": torch.rand(12, 128)}).save(tmp_path / "f.safetensors")
    common = ["--metrics", "fid", "--extractor", "digits"]
    code, _, err = forecache(
        "evaluate", tmp_path / "f.safetensors", "--reference", folder(tmp_path / "r", pixels()), *common
    )
    assert (code, "samples are those of other, not of digits" in err) == (1, True)
    code, _, err = forecache("evaluate", tmp_path / "r", "--reference", tmp_path / "f.safetensors", *common)
    assert (code, "are those of other, not of digits" in err) == (1, True)
    code, _, err = forecache("evaluate", tmp_path / "f.safetensors", "--uncached", tmp_path / "r", "--metrics", "psnr")
    assert (code, "psnr needs the images themselves; only features were given" in err) == (1, True)
