"""Sampling in shards: what is written, what it does not depend on, and what a killed process costs."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler
from PIL import Image
from support import reference
from support.shards import COUNT, LABELS, MANY, T, digest, run, tiny, work
from support.small import small_dit

import forecache as fc
from forecache.distributed import launched
from forecache.sampling import samples_file, shard_file
from forecache.sampling.loop import noise, random_labels
from forecache.sampling.sources import DiTSource, Sampling, as_source
from forecache.zoo import Digits, load_digits


@pytest.fixture
def digits():
    return tiny()


def shard(folder, number):
    return folder / "shards" / f"{number:05d}.safetensors"


@pytest.fixture
def world(monkeypatch):
    """Makes this process one of several."""

    def be(rank, size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return be


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny(), folder)
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "finished")


class Counting(Digits):
    """The digits source, which says what it is asked for; ``before`` is called first."""

    def __init__(self, digits, before=lambda first: None):
        super().__init__(digits.transformer, digits.scheduler)
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "before", before)

    def generate(self, labels, how, first_index=0, on_step=None):
        self.before(first_index)
        self.calls.append((first_index, len(labels)))
        return super().generate(labels, how, first_index, on_step)


# ---- what is written ------------------------------------------------------------------------------------------------


def test_the_npz_holds_every_sample_as_it_is_alone(tmp_path):
    """Against DDIM written out by hand, one sample at a time, rounded to 8 bits."""
    dit = small_dit()
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    done = run(Digits(dit, scheduler), tmp_path, png=True)
    with np.load(done.images, allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert (images.shape, images.dtype, labels.tolist()) == ((COUNT, 8, 8, 4), np.uint8, LABELS)
    assert done.record["shape"] == [COUNT, 8, 8, 4]
    for index, label in enumerate(LABELS):
        y = torch.tensor([label, 10])
        start = noise((4, 8, 8), 7, [index])
        x = reference.ddim(lambda x, t, step, y=y: dit(x, timestep=t, class_labels=y).sample, start, T)
        alone = ((x[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
        assert np.abs(images[index] - alone).max() < 0.51  # rounded to the nearest, up to float rounding
        assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / f"{index:06d}.png")), images[index])
    assert len(list((tmp_path / "png").iterdir())) == COUNT
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_archive_is_plain_numpy_and_has_no_date(whole):
    with zipfile.ZipFile(whole / "samples.npz") as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    parts = [shard_file.read_shard(shard(whole, n), shard_file.read_manifest(whole / "shards.json"), n) for n in (0, 2)]
    assert [len(part.images) for part in parts] == [8, 6]
    record = json.loads((whole / "run.json").read_text())
    assert record["seconds"] > sum(part.seconds for part in parts) > 0
    assert list(record["made_on"].values()) == [3]
    assert torch.__version__ in next(iter(record["made_on"]))


def test_images_stream_through_memory(tmp_path, monkeypatch):
    """While 20 parts are written and read, two are alive at most."""
    alive, most = weakref.WeakSet(), []

    class Part(np.ndarray):
        pass

    def parts():
        for number in range(20):
            part = np.full((3, 4, 4, 3), number, np.uint8).view(Part)
            alive.add(part)
            most.append(len(alive))
            yield part
            del part

    Part.__hash__ = object.__hash__
    samples_file.write(tmp_path / "a.npz", 60, parts(), np.arange(60))
    assert max(most) <= 2
    assert np.load(tmp_path / "a.npz")["arr_0"][:, 0, 0, 0].tolist() == [n // 3 for n in range(60)]
    monkeypatch.setattr(samples_file, "CHUNK", 7 * 48)
    read = list(samples_file.images(tmp_path / "a.npz"))
    assert [len(part) for part in read] == [7] * 8 + [4]
    assert np.array_equal(np.concatenate(read), np.load(tmp_path / "a.npz")["arr_0"])


def test_conditions_may_be_texts_and_nothing_that_a_file_cannot_hold(digits, tmp_path):
    class Prompted(Digits):
        classes = 0

        def generate(self, labels, how, first_index=0, on_step=None):
            return super().generate([len(text) for text in labels], how, first_index, on_step)

    texts = ["a", "of", "the"]
    run(Prompted(digits.transformer, digits.scheduler), tmp_path / "texts", texts)
    run(digits, tmp_path / "numbers", np.array([1, 2, 3]))
    texts_file, numbers_file = (np.load(tmp_path / name / "samples.npz") for name in ("texts", "numbers"))
    assert texts_file["arr_1"].tolist() == texts
    assert np.array_equal(texts_file["arr_0"], numbers_file["arr_0"])
    for odd in ([1, "two"], [1.5], [None]):
        with pytest.raises(fc.errors.InputError, match="are all class numbers or all texts"):
            run(digits, tmp_path / "odd", odd)
    assert not (tmp_path / "odd").exists()


# ---- what it does not depend on -------------------------------------------------------------------------------------


def plans(target):
    grid = fc.grid(target, T)
    gap = fc.explicit(pattern="#...")
    return {
        "none": None,
        "goc": fc.goc(fc.fora(2), 0.8).plan(grid),
        "tokens by norm": fc.selective(gap, 1, 0.3).plan(grid),
        "random tokens": fc.selective(gap, 1, 0.3, "random").plan(grid),
    }


@pytest.mark.parametrize("name", ["none", "goc", "tokens by norm", "random tokens"])
def test_batches_shards_and_processes_do_not_change_a_byte(digits, tmp_path, world, name):
    plan = plans(digits)[name]
    run(digits, tmp_path / "a", plan=plan)
    run(digits, tmp_path / "b", plan=plan, batch=11, shard_size=12)
    world(1, 3)
    made = run(digits, tmp_path / "c", plan=plan, batch=64, shard_size=4)
    assert made.made[:2] == (1, 4)  # its own shards first, and then, as nobody is there, all the others
    assert (sorted(made.made), made.images, made.record) == ([0, 1, 2, 3, 4, 5], None, None)
    world(0, 3)
    assert run(digits, tmp_path / "c", plan=plan, batch=64, shard_size=4).made == ()
    images = [np.load(tmp_path / each / "samples.npz")["arr_0"] for each in "abc"]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    run(digits, tmp_path / "d", plan=plan, batch=9)
    assert digest(tmp_path / "a") == digest(tmp_path / "d")
    if plan is not None:
        assert fc.Plan.load(tmp_path / "c" / "plan.json") == plan


def test_a_sample_does_not_depend_on_how_many_there_are(digits, tmp_path, whole):
    run(digits, tmp_path, LABELS[:9])
    few, all_of_them = np.load(tmp_path / "samples.npz")["arr_0"], np.load(whole / "samples.npz")["arr_0"]
    assert np.array_equal(few, all_of_them[:9])


def test_the_model_is_always_called_with_one_number_of_samples(digits, tmp_path):
    exact, free = Counting(digits), Counting(digits)
    run(exact, tmp_path / "exact", batch=64)
    assert exact.calls == [(first, 4) for first in range(0, COUNT, 4)]
    run(free, tmp_path / "free", batch=5, call_size=None)
    assert free.calls == [(0, 5), (5, 3), (8, 5), (13, 3), (16, 5), (21, 1)]
    a, b = (np.load(tmp_path / each / "samples.npz")["arr_0"].astype(int) for each in ("exact", "free"))
    assert np.abs(a - b).max() <= 1  # a rounding that float rounding can tip over
    again = run(digits, tmp_path / "free", batch=3, call_size=None)  # another batch is no other run
    assert again.made == ()


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerAncestralDiscreteScheduler])
def test_noise_on_the_way_depends_on_the_sample_alone(tmp_path, kind):
    """Stochastic schedulers take one generator a sample."""
    torch.manual_seed(1)
    run(tiny(kind()), tmp_path / "a")
    torch.manual_seed(2)
    run(tiny(kind()), tmp_path / "b", LABELS[:11], shard_size=4)
    run(tiny(kind()), tmp_path / "c", LABELS[:11], shard_size=4, seed=8)
    a, b, c = (np.load(tmp_path / each / "samples.npz")["arr_0"] for each in "abc")
    assert np.array_equal(a[:11], b)
    assert not np.array_equal(b, c)


def test_noise_that_depends_on_the_neighbours_is_refused(pipe, tmp_path):
    """DiTPipeline gives its scheduler no generator."""
    sizes = {"num_steps": 2, "shard_size": 4, "call_size": 2, "batch": 2}
    fc.sampling.sample_shards(pipe, [1, 2, 3], tmp_path / "ddim", **sizes)
    pipe.scheduler = DDPMScheduler()
    with pytest.raises(fc.errors.RunError, match=r"global generator \(most likely in the steps of DDPMScheduler"):
        fc.sampling.sample_shards(pipe, [1, 2, 3], tmp_path / "ddpm", **sizes)
    assert not list((tmp_path / "ddpm").glob("shards/*"))


def test_a_pipeline_is_sampled_whole(pipe, tmp_path):
    options = {"num_steps": 2, "shard_size": 4, "call_size": 2, "guidance": 2.0, "seed": 3}
    for batch, out in ((2, "a"), (3, "b")):
        fc.sampling.sample_shards(pipe, [1, 2, 3], tmp_path / out, batch=batch, **options)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    images = np.load(tmp_path / "a" / "samples.npz")["arr_0"]
    expected = DiTSource(pipe).generate([3], fc.sampling.sources.Sampling(2, 2.0, 3), 2)[0].permute(1, 2, 0).numpy()
    assert np.abs(images[2] - expected * 255).max() < 0.51
    torch.nn.init.normal_(pipe.vae.decoder.conv_out.weight)
    with pytest.raises(fc.errors.ShardError, match="other weights of the vae"):
        fc.sampling.sample_shards(pipe, [1, 2, 3], tmp_path / "a", batch=2, **options)


def test_random_labels_depend_on_seed_and_index_alone():
    some, more = random_labels(50, 10, 3), random_labels(2000, 10, 3)
    assert more[:50] == some
    assert random_labels(50, 10, 4) != some
    counts = np.bincount(more, minlength=10)
    assert len(counts) == 10
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees of freedom: 0.1 %


# ---- processes ------------------------------------------------------------------------------------------------------


def test_a_process_makes_its_own_shards_and_those_nobody_made(digits, tmp_path, world, finished):
    out = tmp_path / "shared"
    (out / "shards").mkdir(parents=True)
    shutil.copy(shard(finished, 1), shard(out, 1))
    world(0, 2)
    done = run(digits, out)
    assert done.made == (0, 2)
    assert digest(out) == digest(finished)


def test_the_slower_one_of_two_at_a_shard_leaves_it(digits, tmp_path, finished):
    """Another process finishes shard 1 while this one is at its first call."""
    out = tmp_path / "shared"

    def other(first):
        if first == 8:
            shutil.copy(shard(finished, 1), shard(out, 1))

    source = Counting(digits, other)
    assert run(source, out).made == (0, 2)
    assert [first for first, _ in source.calls] == [0, 4, 8, 16, 20]
    assert digest(out) == digest(finished)


def test_progress_counts_the_samples_of_all_processes(digits, tmp_path, finished):
    out, told = tmp_path / "shared", []
    (out / "shards").mkdir(parents=True)
    shutil.copy(shard(finished, 2), shard(out, 2))
    run(digits, out, on_progress=lambda *each: told.append(each))
    assert {total for _, _, total in told} == {COUNT}
    assert [done for what, done, _ in told if what == "sampling"] == [10, 14, 18, 22]
    assert [done for what, done, _ in told if what == "writing samples.npz"] == [8, 16, 22]


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_rank_that_is_none_is_refused(world, rank, size):
    world(rank, size)
    with pytest.raises(fc.errors.InputError, match=f"RANK={rank} and WORLD_SIZE={size}"):
        launched()


BIN = Path(sys.executable).parent
ACCELERATE = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]


@pytest.mark.slow
def test_accelerate_launch_gives_what_one_process_gives(forecache, tmp_path):
    words = ["sample", "--num-samples", 12, "--shard-size", 4, "--call-size", 2, "--steps", 2, "--method", "fora"]
    code, _, err = forecache(*words, "--out", tmp_path / "one")
    assert (code, err) == (0, "")
    more = [*words, "--batch", 3, "--json", "--out", tmp_path / "two"]
    done = subprocess.run(
        [*ACCELERATE, "-m", "forecache", *map(str, more)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["shape"] == [12, 24, 24, 1]  # one process talks, in one document
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


# ---- being killed ---------------------------------------------------------------------------------------------------

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([work.__module__])  # the imports are made once


def start(*args):
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    return process


def test_two_processes_killed_at_random_end_with_the_bytes_of_one(tmp_path, monkeypatch):
    """SIGKILL at random moments, until both were killed twice with work begun: what was finished stays as it was."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the fork server looks nowhere else
    one, two = tmp_path / "one", tmp_path / "two"
    run(tiny(), one, MANY, batch=64, shard_size=12)
    rng, kills, before = random.Random(5), 0, {}
    (two / "shards").mkdir(parents=True)
    while kills < 4:
        both = [start(two, rank, 2, 5) for rank in (0, 1)]
        for process in both:
            begun = len(list(two.glob("shards/*")))
            while process.is_alive() and len(list(two.glob("shards/*"))) == begun:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            kills += process.is_alive()
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), "the process fails by itself"
        there = {path.name: path.stat().st_ino for path in two.glob("shards/*.safetensors")}
        assert before.items() <= there.items()
        before = there
        if len(there) > 12:  # too fast for four kills here: begin again
            shutil.rmtree(two / "shards")
            (two / "samples.npz").unlink(missing_ok=True)
            before = {}
    last = [start(two, rank, 2, 5) for rank in (0, 1)]
    for process in last:
        process.join(120)
        assert process.exitcode == 0
    there = {path.name: path.stat().st_ino for path in two.glob("shards/*")}
    assert before.items() <= there.items()
    assert len(there) == 16
    assert digest(one) == digest(two)
    assert not list(two.rglob("*.tmp"))


class Killed(BaseException):
    pass


def dies_at(monkeypatch, name, number):
    """The process ends at the ``number``-th call of ``os.<name>``; what it has opened is as a kill leaves it."""
    count, real, unlink = itertools.count(), getattr(os, name), Path.unlink

    def call(*args, **kwargs):
        if next(count) == number:
            monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # no clean-up after a kill
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)

    def back():
        monkeypatch.setattr(os, name, real)
        monkeypatch.setattr(Path, "unlink", unlink)

    return back


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_wherever_it_is_killed_while_writing_at_most_one_shard_is_lost(tmp_path, monkeypatch, whole, name):
    source = Counting(tiny())
    for number in itertools.count():
        out = tmp_path / str(number)
        back = dies_at(monkeypatch, name, number)
        try:
            run(source, out)
        except Killed:
            pass
        else:
            break
        finally:
            back()
        kept = len(list(out.glob("shards/*.safetensors")))
        sampled = len(source.calls)
        again = run(source, out)
        assert len(again.made) == 3 - kept
        assert sampled <= 2 * (kept + 1)  # two calls a shard: the one that was at work is the one that is lost
        assert digest(out) == digest(whole)
        assert not list(out.rglob("*.tmp"))
        source.calls.clear()
    assert number >= 6  # manifest, three shards, samples.npz, run.json


def test_an_interruption_keeps_what_is_finished(digits, tmp_path, whole):
    def stop(first):
        if first == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Counting(digits, stop), tmp_path)
    assert run(digits, tmp_path).made == (1, 2)
    assert digest(tmp_path) == digest(whole)


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a flipped bit": flip,
    "half a file": halve,
    "an empty file": lambda path: path.write_bytes(b""),
    "no shard": lambda path: path.write_text("{}"),
    "another shard": lambda path: shutil.copy(path.with_name("00000.safetensors"), path),
}


@pytest.mark.parametrize("collected", [True, False])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_noticed_and_made_again(digits, finished, whole, name, collected):
    DAMAGE[name](shard(finished, 1))
    assert shard(finished, 1).read_bytes() != shard(whole, 1).read_bytes()
    if not collected:
        (finished / "samples.npz").unlink()
    done = run(digits, finished)
    assert (done.made, done.damaged) == ((1,), (1,))
    settings = shard_file.read_manifest(whole / "shards.json")
    ours, theirs = (shard_file.read_shard(shard(each, 1), settings, 1).images for each in (finished, whole))
    assert torch.equal(ours, theirs)
    assert digest(finished) == digest(whole)
    assert run(digits, finished).damaged == ()


def test_a_shard_of_another_run_is_no_shard_of_this_one(digits, tmp_path, finished, whole):
    run(digits, tmp_path / "other", seed=8)
    shutil.copy(shard(tmp_path / "other", 1), shard(finished, 1))
    assert run(digits, finished).damaged == (1,)
    assert digest(finished) == digest(whole)


def test_damage_to_what_another_process_made_is_noticed_when_it_is_collected(digits, finished, whole, world):
    flip(shard(finished, 1))
    (finished / "samples.npz").unlink()
    world(0, 2)
    assert run(digits, finished).damaged == (1,)
    assert digest(finished) == digest(whole)


def test_a_damaged_npz_is_written_again_and_shards_may_be_deleted_after_it(digits, finished, whole):
    flip(finished / "samples.npz")
    assert run(digits, finished).made == ()
    assert digest(finished) == digest(whole)
    shutil.rmtree(finished / "shards")
    done = run(digits, finished, png=True)
    assert (done.made, done.record["shape"]) == ((), [COUNT, 8, 8, 4])
    assert len(list((finished / "png").iterdir())) == COUNT
    halve(finished / "samples.npz")
    assert run(digits, finished).made == (0, 1, 2)
    assert digest(finished) == digest(whole)


def test_a_shard_that_cannot_be_read_is_not_thrown_away(digits, finished, monkeypatch):
    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("forecache.io.tensor_files.read", refused)
    with pytest.raises(fc.errors.ShardError, match="cannot be read: Permission denied"):
        run(digits, finished)
    assert shard(finished, 0).exists()


def test_what_is_not_finite_is_refused_by_its_number(digits, tmp_path):
    class Broken(Digits):
        def generate(self, labels, how, first_index=0, on_step=None):
            images = super().generate(labels, how, first_index, on_step)
            if first_index == 12:
                images[2, 0, 1, 1] = float("nan")
            return images

    with pytest.raises(fc.errors.InputError, match="Sample 14 is not finite"):
        run(Broken(digits.transformer, digits.scheduler), tmp_path)
    assert len(list(tmp_path.glob("shards/*"))) == 1


# ---- another run ----------------------------------------------------------------------------------------------------

OTHERS = {
    "seed": ({"seed": 8}, "seed 7, not 8"),
    "steps": ({"num_steps": 5}, "num_steps 4, not 5"),
    "guidance": ({"guidance": 2}, "guidance 1.5, not 2.0"),
    "count": ({"labels": LABELS[:-1]}, r"\(count 22, not 21\)"),
    "conditions": ({"labels": LABELS[::-1]}, r"\(other conditions\)"),
    "shard size": ({"shard_size": 12}, "shard_size 8, not 12"),
    "call size": ({"call_size": 2}, "call_size 4, not 2"),
    "not exact": ({"call_size": None}, "call_size 4, not None"),
    "a plan": ({"plan": "fora"}, r"plan none, not fora\(interval=2\)"),
}


@pytest.mark.parametrize(("changed", "sentence"), OTHERS.values(), ids=OTHERS)
def test_other_settings_are_refused_with_what_differs(digits, finished, whole, changed, sentence):
    if "plan" in changed:
        changed = {"plan": fc.fora(2).plan(fc.grid(digits, T))}
    with pytest.raises(fc.errors.ShardError, match=sentence):
        run(digits, finished, **changed)
    assert digest(finished) == digest(whole)


def test_other_models_schedulers_and_plans_are_refused(digits, finished, tmp_path):
    other = Digits(small_dit(seed=3), digits.scheduler)
    with pytest.raises(fc.errors.ShardError, match="other weights of the transformer"):
        run(other, finished)
    with pytest.raises(fc.errors.ShardError, match="scheduler prediction_type: v_prediction, not epsilon"):
        run(tiny(DDIMScheduler(clip_sample=False)), finished)
    grid = fc.grid(digits, T)
    made = fc.goc(fc.fora(2), 0.8).plan(grid)
    run(digits, tmp_path / "goc", plan=made)
    assert run(digits, tmp_path / "goc", plan=fc.Plan.load(tmp_path / "goc" / "plan.json")).made == ()
    with pytest.raises(fc.errors.ShardError, match=r"plan goc\(fora\(interval=2\), eta=0.8\), not goc\(.*eta=0.9\)"):
        run(digits, tmp_path / "goc", plan=fc.goc(fc.fora(2), 0.9).plan(grid))
    with pytest.raises(fc.errors.ShardError, match="plan goc.*, not none"):
        run(digits, tmp_path / "goc")


def test_constants_are_part_of_a_plan(digits, tmp_path):
    """Two plans with the same cells and another tensor are two plans."""
    grid = fc.grid(digits, T)
    stats = [fc.calibrate(digits, [1, 2], num_steps=T, seed=seed, batch=2) for seed in (0, 1)]
    first, second = (fc.eoc(fc.fora(2), each, 0.5, judge="all").plan(grid) for each in stats)
    assert first.rows == second.rows
    run(digits, tmp_path, plan=first)
    with pytest.raises(fc.errors.ShardError, match=r"plan eoc\(.*, not eoc\("):
        run(digits, tmp_path, plan=second)


MANIFESTS = {
    "no JSON": (lambda text: text[:-20], "is not a readable manifest"),
    "another format": (lambda text: text.replace('"forecache-shards"', '"x"'), "its format is 'x'"),
    "a later version": (lambda text: text.replace('"version": 2', '"version": 9'), "its version is 9"),
    "no size": (lambda text: text.replace('"shard_size": 8', '"shard_size": 0'), "at least 1"),
    "a wrong type": (lambda text: text.replace('"seed": 7', '"seed": "7"'), "seed must be of type int"),
    "a call of a word": (lambda text: text.replace('"call_size": 4', '"call_size": "4"'), "at least 1"),
    "an unknown key": (lambda text: text.replace('"seed": 7', '"seed": 7, "more": 1'), "unknown keys"),
}


@pytest.mark.parametrize(("change", "sentence"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_damaged_manifest_is_refused_and_nothing_is_lost(digits, finished, change, sentence):
    path = finished / "shards.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(fc.errors.ShardError, match=sentence):
        run(digits, finished)
    assert len(list(finished.glob("shards/*"))) == 3


REFUSED = {
    "a batch below a call": ({"batch": 3}, "a batch of 3 does not hold"),
    "a shard of no calls": ({"shard_size": 10}, "use a shard size of 12"),
    "no batch": ({"batch": 0}, "at least 1"),
    "no steps": ({"num_steps": 0}, "at least one step"),
    "no samples": ({"labels": []}, "at least one condition"),
    "an unknown class": ({"labels": [1, 10]}, "classes 0 to 9; 10 is not"),
}


@pytest.mark.parametrize(("changed", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(digits, tmp_path, changed, sentence):
    with pytest.raises(fc.errors.InputError, match=sentence):
        run(digits, tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_continues_and_says_so(forecache, tmp_path):
    words = ["sample", "--num-samples", 10, "--shard-size", 4, "--call-size", 2, "--steps", 2, "--labels", "3,one"]
    words += ["--method", "fora", "--seed", 5, "--out", tmp_path]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert "fora(interval=2)\n#." in out
    assert "Sampled 3 of 3 shards; 0 existed already" in out
    assert "samples.npz: 10x24x24x1 uint8 and labels" in out
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [3, 1] * 5
    before = digest(tmp_path)
    flip(shard(tmp_path, 0))
    code, out, _ = forecache(*words, "--png")
    assert code == 0
    assert "Damaged shards that were sampled again: 0." in out
    assert "Sampled 1 of 3 shards; 2 existed already" in out
    assert digest(tmp_path) == before
    assert len(list((tmp_path / "png").iterdir())) == 10
    code, out, _ = forecache(*words, "--json")
    record = json.loads(out)
    assert record["settings"]["plan"]["method"] == "fora(interval=2)"
    model = load_digits().target
    cost = fc.fora(2).plan(fc.grid(model, 2)).cost(model, batch_size=2, guidance=True)
    counted = record["cost_per_image"]
    assert (2 * counted["macs"], 2 * counted["macs_uncached"]) == (cost.macs, cost.macs_uncached)
    code, _, err = forecache(*words, "--guidance", 3)
    assert code == 1
    assert "holds another run (guidance 1.5, not 3.0)" in err


def test_classes_are_taken_in_turn_or_at_random(forecache, tmp_path):
    words = ["sample", "--num-samples", 12, "--shard-size", 12, "--call-size", 6, "--steps", 1]
    for out, more in (("turn", []), ("random", ["--random-classes", "--no-exact", "--seed", 3])):
        if more:
            words[5:7] = []
        assert forecache(*words, *more, "--out", tmp_path / out)[0] == 0
    turn, drawn = (np.load(tmp_path / out / "samples.npz")["arr_1"].tolist() for out in ("turn", "random"))
    assert turn == [*range(10), 0, 1]
    assert drawn == random_labels(12, 10, 3)


def test_a_few_images_can_be_told_as_json(forecache, tmp_path):
    code, out, err = forecache("sample", "--labels", "3", "--steps", 1, "--json", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "run.json").read_text())


SENTENCES = {
    "nothing": ([], "labels, such as --labels 207,360"),
    "prompts alone": (["--labels", "1", "--prompts", "p.txt"], "--prompts belongs to --num-samples"),
    "png alone": (["--labels", "1", "--png"], "--png belongs to --num-samples"),
    "shard size alone": (["--labels", "1", "--shard-size", 3], "--shard-size belongs to --num-samples"),
    "compare": (["--num-samples", 3, "--compare"], "--compare is for a few images"),
    "two sizes": (["--num-samples", 3, "--no-exact", "--call-size", 2], "--no-exact says that it is not"),
    "two classes": (["--num-samples", 3, "--random-classes", "--labels", "1"], "give one of them"),
    "a small batch": (["--num-samples", 3, "--batch", 4], "which a batch of 4 does not hold"),
}


@pytest.mark.parametrize(("words", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_options_that_do_not_fit_are_answered_with_a_sentence(forecache, tmp_path, words, sentence):
    code, _, err = forecache("sample", *words, "--out", tmp_path / "out")
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_texts_come_from_a_file_in_turn(forecache, tmp_path, pixart_folder):
    (tmp_path / "prompts.txt").write_text("a cat\n\na red apple\n")
    words = ["sample", "--model", pixart_folder, "--num-samples", 3, "--shard-size", 2, "--call-size", 2, "--steps", 2]
    words += ["--method", "fora", "--prompts", tmp_path / "prompts.txt"]
    for out, batch in (("a", 2), ("b", 5)):
        code, _, err = forecache(*words, "--batch", batch, "--out", tmp_path / out)
        assert (code, err) == (0, "")
    images, texts = (np.load(tmp_path / "a" / "samples.npz")[name] for name in ("arr_0", "arr_1"))
    assert texts.tolist() == ["a cat", "a red apple", "a cat"]
    assert len({image.tobytes() for image in images}) == 3
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    code, _, err = forecache(*words[:-2], "--random-classes", "--out", tmp_path / "c")
    assert code == 1
    assert "with --prompts" in err


def test_what_was_decided_is_recorded_over_all_shards_and_continuations(tmp_path):
    """Each generation of four decides for itself; shards that were there already count as well."""
    target = tiny()
    plan = fc.teacache(0.3).plan(fc.grid(target, 6))
    options = {"plan": plan, "num_steps": 6}
    done = run(target, tmp_path, **options)
    pictures, source = Counter(), as_source(target)
    with fc.apply(target, plan) as session:
        for first in range(0, COUNT, 4):
            labels = LABELS[first : first + 4]
            labels += labels[-1:] * (4 - len(labels))
            source.generate(labels, Sampling(6, 1.5, 7), first)
            pictures[session.decided().picture()] += 1
    assert done.record["decided"] == pictures
    assert sum(pictures.values()) == 6
    assert len(pictures) == 2
    for path in (tmp_path / "run.json", tmp_path / "samples.npz", shard(tmp_path, 1)):
        path.unlink()
    again = run(target, tmp_path, **options)
    assert again.made == (1,)
    assert again.record["decided"] == pictures
