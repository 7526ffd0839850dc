"""The scripts that made the bundled model and its judge, on a few random images."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file

from forecache.zoo import captions, digits_text
from training import digits as train_digits
from training import digits_text as train_digits_text
from training import judge as train_judge
from training import mnist

TRAINERS = {"digits": train_digits.Trainer, "digits-text": train_digits_text.TextTrainer}


@pytest.fixture
def data(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 256), ("test", 500)):
        arrays[f"x_{name}"] = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{name}"] = draw.integers(0, 10, count, dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path / "mnist.npz"


def settings(**changed):
    values = {"seed": 0, "lr": 1e-3, "images": 32, "batch": 8, "warmup": 2, "label_dropout": 0.1, "ema": 0.9}
    none = dict.fromkeys(("out", "data", "export", "init"))
    return SimpleNamespace(**values | none | {"no_compile": True, "reading": 0} | changed)


def test_the_crop_is_central_and_scaled(data):
    train, _ = mnist.load(data)
    with np.load(data) as file:
        pixel = file["x_train"][5, 2 + 7, 2 + 9]
    assert train.images.shape == (256, 1, 24, 24)
    assert train.images[5, 0, 7, 9].item() == pytest.approx(pixel / 127.5 - 1)


@pytest.mark.parametrize("model", TRAINERS)
def test_a_resumed_training_goes_on_as_if_never_stopped(data, tmp_path, model):
    train, _ = mnist.load(data)
    through, first, second = (TRAINERS[model](settings(reading=1)) for _ in range(3))
    losses = [through.train_step(train) for _ in range(4)]
    for _ in range(2):
        first.train_step(train)
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    again = [second.train_step(train) for _ in range(2)]
    assert again == losses[2:]
    for name, value in through.average.items():
        assert torch.equal(second.average[name], value)


@pytest.mark.parametrize("model", TRAINERS)
def test_it_predicts_v(data, model):
    """With zero gates and a zero final layer the prediction is 0, so the loss is the mean square of v."""
    train, _ = mnist.load(data)
    trainer = TRAINERS[model](settings(batch=64, images=640))
    loss = trainer.train_step(train)
    assert loss.item() == pytest.approx(expected_v_square(train), rel=0.15)


def expected_v_square(train):
    """v = a * noise - s * x with a^2 + s^2 = 1, timesteps uniform: E[a^2] + E[s^2] E[x^2]."""
    a_square = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).mean().item()
    return a_square + (1 - a_square) * train.images.square().mean().item()


def test_train_and_export_write_what_ships(data, tmp_path, monkeypatch):
    words = ["--data", data, "--out", tmp_path / "run", "--images", 16, "--batch", 8, "--log", 1, "--no-compile"]
    monkeypatch.setattr(sys, "argv", ["train_digits", *map(str, words)])
    train_digits.main()
    monkeypatch.setattr(
        sys, "argv", ["train_digits", "--out", str(tmp_path / "run"), "--export", str(tmp_path / "zoo")]
    )
    train_digits.main()
    folder = tmp_path / "zoo" / "transformer"
    assert DiTTransformer2DModel.from_pretrained(folder).config.num_layers == 12
    assert load_file(folder / "diffusion_pytorch_model.safetensors")["proj_out_2.weight"].dtype == torch.float16
    record = json.loads((tmp_path / "zoo" / "training.json").read_text())
    assert (record["steps"], record["images_seen"]) == (2, 16)


def test_a_canvas_and_its_caption_are_of_the_same_two_images(data):
    """What the model is called with: captions of the two labels or none, and under little noise the two images."""
    train, _ = mnist.load(data)
    trainer = train_digits_text.TextTrainer(settings(batch=128, images=1280, label_dropout=0.3))
    given = []
    trainer.forward = lambda *args: given.append(args) or args[0]
    trainer.loss(train)
    noisy, times, ids, mask = given[0]
    assert noisy.shape == (128, 1, 24, 48)
    texts = [trainer.tokenizer.decode(row[:-1]) for row in (ids[k, : mask[k].sum()] for k in range(128))]
    clear = [k for k in range(128) if times[k] < 40]
    assert clear
    for k in clear:
        pair = [nearest(train, half) for half in noisy[k].chunk(2, -1)]
        assert texts[k] in ("", *captions.captions(*pair))
    assert 10 < sum(text == "" for text in texts) < 70


def nearest(split, image):
    return split.labels[(split.images - image).square().flatten(1).mean(1).argmin()].item()


def test_the_encoder_learns_to_read_before_it_learns_to_paint():
    """The loss of an untrained reader is that of ten equally likely digits, and falls; nothing else is changed."""
    before, after = (train_digits_text.TextTrainer(settings(reading=count)) for count in (0, 12))
    pairs = torch.tensor([(7, 3), (7, 3), (6, 6)])
    ids, mask = captions.tokens(before.tokenizer, ["a seven left of a three", "a three right of a seven", "two sixes"])
    torch.nn.init.zeros_(before.model.reader.weight)
    torch.nn.init.zeros_(before.model.reader.bias)
    assert before.model.reading_loss(ids, mask, pairs).item() == pytest.approx(math.log(10))
    after.start()
    assert after.model.reading_loss(ids, mask, pairs).item() < 0.95 * math.log(10)
    for name, value in before.model.transformer.state_dict().items():
        assert torch.equal(value, after.model.transformer.state_dict()[name])
        assert torch.equal(value, after.average[f"transformer.{name}"])


def test_a_run_begins_with_the_average_of_another_and_says_so(data, tmp_path):
    train, _ = mnist.load(data)
    first = train_digits_text.TextTrainer(settings(data=str(data)))
    first.train_step(train)
    first.save(tmp_path / "first.pt")
    second = train_digits_text.TextTrainer(settings(init=str(tmp_path / "first.pt"), seed=3))
    second.start()
    for name, value in first.average.items():
        assert torch.equal(second.model.state_dict()[name], value)
    second.save(tmp_path / "second.pt")
    made = train_digits.settings(torch.load(tmp_path / "second.pt", weights_only=True)["args"])
    assert (made["before"]["steps"], made["before"]["seed"], made["seed"]) == (1, 0, 3)
    assert str(tmp_path) not in json.dumps(made)


def test_train_and_export_of_digits_text_write_what_ships(data, tmp_path, monkeypatch):
    words = ["--data", data, "--out", tmp_path / "run", "--images", 16, "--batch", 8, "--log", 1, "--no-compile"]
    words += ["--reading", 2]
    for more in ([], ["--export", tmp_path / "zoo"]):
        monkeypatch.setattr(sys, "argv", ["train_digits_text", *map(str, [*words, *more])])
        train_digits_text.main()
    record = json.loads((tmp_path / "zoo" / "training.json").read_text())
    assert (record["steps"], record["images_seen"]) == (2, 16)
    weights = load_file(tmp_path / "zoo" / "text_encoder" / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {torch.float16}
    digits = digits_text.load_from(tmp_path / "zoo")
    average = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["average"]
    for name, value in digits.transformer.state_dict().items():
        torch.testing.assert_close(value, average[f"transformer.{name}"], rtol=1e-3, atol=1e-6)
    pipe = digits.pipeline()
    images = pipe(["two sixes"], num_inference_steps=2, guidance_scale=2.0, **digits_text.CALL).images
    assert images[0].size == (48, 24)


def test_the_classifier_script_writes_what_ships(data, tmp_path, monkeypatch):
    words = ["--data", data, "--export", tmp_path / "zoo", "--epochs", 1]
    monkeypatch.setattr(sys, "argv", ["train_judge", *map(str, words)])
    train_judge.main()
    record = json.loads((tmp_path / "zoo" / "classifier.json").read_text())
    assert 0 <= record["test_accuracy"] <= 1
    assert (tmp_path / "zoo" / "reference.safetensors").exists()


def test_shifts_move_by_at_most_two_pixels():
    image = torch.full((50, 1, 24, 24), -1.0)
    image[:, 0, 12, 12] = 1.0
    moved = train_judge.shifted(image, torch.Generator().manual_seed(0))
    places = moved[:, 0].nonzero()[(moved[:, 0][tuple(moved[:, 0].nonzero().T)] == 1)][:, 1:]
    assert len(places) == 50
    assert (places - 12).abs().max() == 2
