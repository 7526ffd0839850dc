"""Networks that judge, with random weights in the files' real formats, and features in files."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from support.torchvision_standin import FeatureExtractorInceptionV3, _alexnet, lpips
from torch import nn

import forecache as fc
from forecache.evaluate import (
    Against,
    Extractor,
    Features,
    Images,
    Judges,
    Moments,
    Reference,
    evaluate,
    extract,
    extractor_names,
    extractors,
    frechet_distance,
    load_extractor,
    load_lpips,
    open_reference,
    prepared,
    reference,
    reference_names,
    register_extractor,
    register_reference,
)
from forecache.evaluate.inception import DIGEST, URL
from forecache.zoo import load_digits


def pictures(count, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


# --- Inception --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception(inception_file):
    return load_extractor("inception", inception_file)


def test_inception_features_are_those_of_torch_fidelity(inception, inception_file):
    images = pictures(3)
    model = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    pool, logits = model(images)
    found = inception.of(images)
    torch.testing.assert_close(found["pool"], pool)
    torch.testing.assert_close(found["logits"], logits)
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "pool": (3, 2048),
        "spatial": (3, 2023),
        "logits": (3, 1008),
    }
    assert inception.name.startswith("inception-")
    assert DIGEST not in inception.name  # these are not the published weights
    assert DIGEST in URL


def test_sfid_is_on_seven_channels_of_the_first_convolution_of_mixed_6(inception, inception_file):
    """By hand up to there: mixed_6 of the graph is torch-fidelity's Mixed_6d, conv its 1x1 branch, after the ReLU."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resized

    images = pictures(4)
    model = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=inception_file)
    names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
    names += ["MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"]

    def spatial(batch):
        x = (resized(batch.float(), (299, 299), align_corners=False) - 128) / 128
        for name in names:
            x = getattr(model, name)(x)
        branch = model.Mixed_6d.branch1x1
        x = nn.functional.conv2d(x, branch.conv.weight[:7])
        bn = branch.bn
        scale = bn.weight[:7] / (bn.running_var[:7] + bn.eps).sqrt()
        x = (x - bn.running_mean[:7, None, None]) * scale[:, None, None] + bn.bias[:7, None, None]
        return x.clamp_min(0).flatten(1)

    torch.testing.assert_close(inception.of(images)["spatial"], spatial(images), rtol=1e-4, atol=1e-5)


def test_inception_weights_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(fc.errors.InputError, match="no Inception weights at .*nowhere.*published at https"):
        load_extractor("inception", tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(fc.errors.InputError, match="text cannot be read as weights"):
        load_extractor("inception", tmp_path / "text")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(fc.errors.InputError, match="other.pth does not hold the weights of Inception-v3"):
        load_extractor("inception", tmp_path / "other.pth")
    torch.save({"code": print}, tmp_path / "code.pth")  # would be looked up and called
    with pytest.raises(fc.errors.InputError, match="code.pth cannot be read as weights"):
        load_extractor("inception", tmp_path / "code.pth")

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(fc.errors.InputError, match="cannot be downloaded: no route to host. Fetch https"):
        load_extractor("inception")


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(fc.errors.MissingExtraError, match=r"pip install .*\[eval\]"):
        load_extractor("inception")
    with pytest.raises(fc.errors.MissingExtraError, match=r"pip install .*\[eval\]"):
        load_lpips()


def test_a_torchvision_that_does_not_work_is_said(monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name in ("torch_fidelity", "lpips"):
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.split(".")[0] in ("torch_fidelity", "lpips")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(fc.errors.InputError, match=r"torchvision, which cannot be imported here .*nms"):
        load_extractor("inception")
    with pytest.raises(fc.errors.InputError, match=r"torchvision, which cannot be imported here.*nms"):
        load_lpips()


# --- LPIPS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    """A random trunk as torchvision publishes it; the linear layers are the real ones, from the package."""
    torch.manual_seed(0)
    state = {f"features.{key}": value for key, value in _alexnet().features.state_dict().items()}
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, path)
    return path


def test_lpips_by_hand(alexnet_file):
    """Unit features of five layers, squared differences, weighted by the published linear layers, means added."""
    x, y = (pictures(2, 64, seed).float() / 255 for seed in (0, 1))
    found = load_lpips("alex", alexnet_file).of(x, y)
    features = _alexnet().features
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in torch.load(alexnet_file).items() if "feat" in k}
    )
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    linear = torch.load(f"{lpips.__path__[0]}/weights/v0.1/alex.pth", map_location="cpu")
    total = torch.zeros(2)
    a, b = (((2 * each - 1) - shift[:, None, None]) / scale[:, None, None] for each in (x, y))
    with torch.no_grad():
        for number, layer in enumerate(features):
            a, b = layer(a), layer(b)
            if number in (1, 4, 7, 9, 11):
                weight = linear[f"lin{(1, 4, 7, 9, 11).index(number)}.model.1.weight"]
                unit = [each / each.square().sum(1, keepdim=True).sqrt() for each in (a, b)]
                total += ((unit[0] - unit[1]).square() * weight).sum(1).mean((1, 2))
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-6)
    assert (found > 0).all()
    assert load_lpips("alex", alexnet_file).of(x, x).tolist() == [0, 0]


def test_lpips_weights_that_are_none(tmp_path, alexnet_file):
    with pytest.raises(fc.errors.InputError, match="trunks alex, vgg, squeeze; 'resnet'"):
        load_lpips("resnet")
    with pytest.raises(fc.errors.InputError, match="no weights at .*nowhere"):
        load_lpips("alex", tmp_path / "nowhere")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(fc.errors.InputError, match="torchvision's alex: it lacks features"):
        load_lpips("alex", tmp_path / "other.pth")
    with pytest.raises(fc.errors.InputError, match="LPIPS compares images pair by pair"):
        load_lpips("alex", alexnet_file).of(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 32))


# --- digits and the bundled reference ---------------------------------------------------------------------------------


def grey(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 24, 24), generator=generator, dtype=torch.uint8)


def test_the_digits_extractor_is_the_classifier():
    images, digits = grey(), load_digits()
    found = load_extractor("digits").of(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found["pool"], digits.features(images.float() / 255))
    assert torch.equal(found["logits"].argmax(1), digits.recognised(images.float() / 255))
    with torch.no_grad():
        stage = digits.classifier.stages[1](digits.classifier.stages[0](images.float() / 127.5 - 1))
    torch.testing.assert_close(found["spatial"], stage[:, :7].reshape(40, 7 * 6 * 6))
    for wrong in (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), pictures(1, 24)):
        with pytest.raises(fc.errors.InputError, match="grey images of 24 x 24"):
            load_extractor("digits").of(wrong)
    with pytest.raises(fc.errors.InputError, match="no extractor 'vgg'; there are inception, clip, digits"):
        load_extractor("vgg")
    with pytest.raises(fc.errors.InputError, match="comes with its weights"):
        load_extractor("digits", "file")


def test_sfid_by_hand():
    """The classifier's layers one by one, and the distance of the sets without a covariance matrix.

    With centred sets X and Y, the trace of the root is the sum of the singular values of X Y^T / sqrt((n-1) (m-1)).
    """
    samples, others = grey(30), grey(20, seed=1)
    state = load_digits().classifier.state_dict()

    def spatial(images):
        x = images.float() / 127.5 - 1
        for stage, conv, norm in ((0, 0, 1), (0, 3, 4), (1, 0, 1), (1, 3, 4)):
            x = nn.functional.conv2d(x, state[f"stages.{stage}.{conv}.weight"], padding=1)
            mean, var, scale, shift = (
                state[f"stages.{stage}.{norm}.{name}"][:, None, None]
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp_min(0)
            x = nn.functional.max_pool2d(x, 2) if conv == 3 else x
        return x[:, :7].flatten(1).double().numpy()

    a, b = spatial(samples), spatial(others)
    assert a.shape == (30, 252)
    x, y = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.svd(x @ y.T / math.sqrt(29 * 19), compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() / 29 + (y**2).sum() / 19 - 2 * cross
    reference = Reference("others", images=Images(others))
    found = evaluate(Images(samples), Against(reference), "sfid", Judges(load_extractor("digits")))
    assert found.figures["sfid"].value == pytest.approx(expected, rel=1e-4)
    assert "sFID: 30 samples for 252 dimensions" in found.notes[0]


def test_the_bundled_reference_serves_every_metric():
    """Fréchet distances as `Digits.reference` has them; its features and moments belong together."""
    reference = open_reference("digits")
    assert torch.equal(reference.of("pool").mean, load_digits().reference.mean)
    half = Moments.of(reference.features.layer("pool"))
    assert frechet_distance(half, reference.of("pool")) < 0.5
    found = evaluate(Images(grey()), Against(reference), "adm", Judges(load_extractor("digits")))
    assert list(found.figures) == ["fid", "sfid", "is", "precision", "recall"]
    pool = load_digits().features(grey().float() / 255)
    assert found.figures["fid"].value == pytest.approx(
        frechet_distance(Moments.of(pool), reference.of("pool")), rel=1e-5
    )
    assert (found.extractor, found.reference, found.count) == ("digits", "digits", 40)
    assert {name: len(figure.draws) for name, figure in found.figures.items()} == {
        **dict.fromkeys(["fid", "sfid", "is", "precision"], 100),
        "recall": 20,
    }


# --- features and references ------------------------------------------------------------------------------------------


def test_streamed_and_kept_features_have_the_same_moments():
    images, extractor, seen = Images(grey(50)), load_extractor("digits"), []
    kept = extract(images, extractor, ("pool", "spatial"), batch=7, on_images=seen.append)
    mixed = extract(images, extractor, ("pool",), stream=("spatial",), batch=50)
    assert seen == [*range(7, 50, 7), 50]
    assert set(mixed.layers) == {"pool"}
    torch.testing.assert_close(
        kept.moments("spatial").covariance, mixed.moments("spatial").covariance, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(
        fc.errors.InputError, match="'spatial' of digits are needed; there are pool, moments of spatial"
    ):
        mixed.layer("spatial")
    with pytest.raises(fc.errors.InputError, match="but no 'text'"):
        extract(images, extractor, ("text",))
    with pytest.raises(fc.errors.InputError, match="at least 1 image"):
        extract(images, extractor, ("pool",), batch=0)


def test_features_of_a_broken_image_name_it():
    from forecache.evaluate import Extractor

    def of(images):
        values = images.float().mean((1, 2, 3))
        return {"pool": torch.stack([values, 1 / values], 1)}  # a black image has an infinite one

    images = grey(6)
    images[4] = 0
    with pytest.raises(fc.errors.InputError, match="features of image 4 of images have NaN"):
        extract(Images(images), Extractor("mine", ("pool",), of), ("pool",), batch=2)


def test_features_are_kept_in_a_file(tmp_path):
    found = extract(Images(grey(12)), load_extractor("digits"), ("pool", "logits"))
    found.save(tmp_path / "deep" / "f.safetensors")
    again = Features.load(tmp_path / "deep" / "f.safetensors")
    assert (again.extractor, again.count, set(again.layers)) == ("digits", 12, {"pool", "logits"})
    assert torch.equal(again.layer("pool"), found.layer("pool"))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["f.safetensors"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 1}, "version is 1; this forecache reads version 2"),
        ({"format": "forecache-router"}, "format is 'forecache-router', not 'forecache-features'"),
        ({"count": 7}, "'pool' is not 7 rows"),
        ({"extractor": ...}, "it lacks extractor"),
        (None, "its metadata is"),
        ("nan", "not 3 rows of finite numbers"),
        ("text", "not a readable file of features"),
    ],
    ids=str,
)
def test_a_file_of_features_that_is_none(tmp_path, change, words):
    from safetensors.torch import save_file

    path = tmp_path / "f.safetensors"
    document = {"format": "forecache-features", "version": 2, "extractor": "x", "count": 3}
    if isinstance(change, dict):
        document = {key: value for key, value in (document | change).items() if value is not ...}
    pool = torch.full((3, 2), math.nan if change == "nan" else 1.0)
    save_file({"pool": pool}, path, {"forecache": json.dumps(document)} if change is not None else {"a": "b"})
    if change == "text":
        path.write_text("hello")
    with pytest.raises(fc.errors.InputError, match=words):
        Features.load(path)
    with pytest.raises(fc.errors.InputError, match="no file of features at"):
        Features.load(tmp_path / "nowhere.safetensors")


def adm(path, **changes):
    draw = np.random.default_rng(0)
    arrays = {}
    for end, size in (("", 128), ("_s", 252)):
        rows = draw.normal(size=(300, size))
        arrays |= {f"mu{end}": rows.mean(0), f"sigma{end}": np.cov(rows.T)}
    arrays |= {"arr_0": draw.integers(0, 256, (6, 24, 24, 1), dtype=np.uint8)} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_the_reference_of_the_adm_suite_is_read(tmp_path):
    """Moments from the file, though its images, far fewer, would give others; features from the images."""
    arrays = adm(tmp_path / "ref.npz")
    reference = open_reference(tmp_path / "ref.npz")
    assert reference.of("pool").count is None
    assert np.array_equal(reference.of("spatial").covariance, arrays["sigma_s"])
    ready = prepared(reference, load_extractor("digits"), ("pool",), stream=("spatial",))
    assert np.array_equal(ready.of("pool").mean, arrays["mu"])
    assert ready.features.layer("pool").shape == (6, 128)
    assert set(ready.features.layers) == {"pool"}
    assert prepared(ready, load_extractor("digits"), ("pool",)) is ready
    with pytest.raises(fc.errors.InputError, match="are those of digits, not of other"):
        prepared(ready, fc.evaluate.Extractor("other", ("pool",), lambda _: {}), ("logits",))
    adm(tmp_path / "only.npz", arr_0=None)
    with pytest.raises(fc.errors.InputError, match="only.npz has no features 'pool', and no images"):
        prepared(open_reference(tmp_path / "only.npz"), load_extractor("digits"), ("pool",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": np.full(128, np.nan)}, "mu of .* has NaN"),
        ({"sigma": np.zeros((3, 3))}, "sigma of .* does not belong to mu"),
        ({"sigma_s": None}, "sigma_s of .* is missing"),
        ({"mu": np.zeros(128, np.int64)}, "mu of .* is int64"),
    ],
    ids=str,
)
def test_statistics_that_are_none(tmp_path, changes, words):
    adm(tmp_path / "ref.npz", **changes)
    with pytest.raises(fc.errors.InputError, match=words.replace("is missing", "does not belong .* is missing")):
        open_reference(tmp_path / "ref.npz")


def test_clip_features_and_scores(tmp_path):
    """The features are those from which the score's cosine is taken, before they are normalised."""
    from support.clip import make_clip

    folder = make_clip(tmp_path)
    clip = fc.evaluate.load_clip(str(folder))
    images = pictures(3, 20)
    features = load_extractor("clip", folder).of(images)["pool"]
    with torch.no_grad():
        pixels = clip.processor(images=list(images), return_tensors="pt")["pixel_values"]
        text = clip.processor(text=["queen of hearts"], return_tensors="pt", padding=True)
        output = clip.model(pixel_values=pixels, **text)
    torch.testing.assert_close(nn.functional.normalize(features), nn.functional.normalize(output.image_embeds))
    cosine = nn.functional.normalize(features) @ nn.functional.normalize(output.text_embeds).T
    assert cosine.min() > 0.1, "a score that is clamped to 0 would compare equal whatever its factor is"
    prompts = ["queen of hearts"] * 3
    torch.testing.assert_close(clip.score(images, prompts), 100 * cosine[:, 0], rtol=1e-4, atol=1e-4)
    assert clip.score(images, ["zebra"] * 3).tolist() == [0, 0, 0]  # cosines below 0
    against = Against(prompts=tuple(prompts))
    found = evaluate(Images(images), against, "clip", Judges(clip=clip), batch=2).figures["clip"]
    assert found.value == pytest.approx(100 * cosine.mean().item(), abs=1e-3)
    with pytest.raises(fc.errors.InputError, match="3 prompts for 2 images"):
        clip.score(images[:2], ["a"] * 3)
    with pytest.raises(fc.errors.InputError, match="3 prompts for 2 samples"):
        evaluate(Images(images[:2]), against, "clip", Judges(clip=clip))


def test_extractors_and_references_are_registered_by_name(monkeypatch):
    monkeypatch.setattr(extractors, "_OPENERS", dict(extractors._OPENERS))
    monkeypatch.setattr(reference, "_OPENERS", dict(reference._OPENERS))
    mean = Extractor("mean", ("pool",), lambda images: {"pool": images.float().mean((2, 3))})
    register_extractor("mean", lambda weights, device: mean)
    register_reference("flat", lambda: Reference("flat", {"pool": Moments(None, torch.zeros(3), torch.eye(3))}))
    assert load_extractor("mean") is mean
    assert open_reference("flat").of("pool").covariance.shape == (3, 3)
    assert "mean" in extractor_names()
    assert "flat" in reference_names()
