"""Options of a pipeline's call, and sources that make videos."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from support.pipelines import small_wan
from support.tiny import TINY

import forecache as fc
from forecache.sampling import costs, runs, sources
from forecache.sampling.call_options import CallOptions, frames_name, guidance_name
from forecache.sampling.loop import generators
from forecache.sampling.sources import Sampling, TextSource, as_source, takes_texts, with_options

VIDEO = CallOptions(height=16, width=16, frames=5, negative_prompt="a cactus")


@pytest.fixture(scope="module")
def wan():
    pipe = small_wan()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bare(kind):
    """A pipeline of a class, without its parts."""
    pipe = object.__new__(getattr(diffusers, kind))
    pipe.__dict__["transformer"] = torch.nn.Identity()
    return pipe


NAMES = {
    "WanPipeline": ("num_frames", "guidance_scale"),
    "LattePipeline": ("video_length", "guidance_scale"),
    "SanaVideoPipeline": ("frames", "guidance_scale"),
    "FluxPipeline": (None, "guidance_scale"),
    "QwenImagePipeline": (None, "true_cfg_scale"),
    "HunyuanVideo15Pipeline": ("num_frames", None),
}


@pytest.mark.parametrize(("kind", "names"), NAMES.items())
def test_options_go_by_the_names_that_the_call_has(kind, names):
    if not hasattr(diffusers, kind):
        pytest.skip(f"this diffusers has no {kind}")
    pipe = bare(kind)
    assert (frames_name(pipe), guidance_name(pipe)) == names
    assert takes_texts(pipe)
    source = as_source(pipe)
    assert sources.makes_videos(source) == (names[0] is not None)
    assert isinstance(sources.own_guidance(source), float)
    if names[0] is not None:
        assert CallOptions(frames=9).arguments(pipe) == {names[0]: 9}
    else:
        with pytest.raises(fc.errors.InputError, match=f"call of a {kind} has no frames: leave it out"):
            with_options(source, CallOptions(frames=9))


@pytest.mark.parametrize(
    "kind",
    [
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "FluxImg2ImgPipeline",
        "FluxFillPipeline",
        "QwenImageEditPipeline",
        "StableAudioPipeline",
        "DiTPipeline",
    ],
)
def test_what_needs_more_than_a_text_or_makes_no_pictures_is_no_source_of_texts(kind):
    assert not takes_texts(bare(kind))


def test_a_pipeline_that_needs_a_video_is_refused_with_where_to_go_on(tmp_path):
    """By every command that samples; the sentence names none of them."""
    parts = {name: part for name, part in small_wan().components.items() if name != "transformer_2"}
    diffusers.WanVideoToVideoPipeline(**parts).save_pretrained(tmp_path)
    with pytest.raises(fc.errors.InputError, match=r"a WanVideoToVideoPipeline; the command line .*tune_video\.py"):
        fc.zoo.open.open_source(str(tmp_path), "cpu")


def test_a_model_of_classes_takes_no_options(pipe):
    for source in (as_source(pipe), fc.zoo.load_digits()):
        assert with_options(source, CallOptions()) is source
        with pytest.raises(fc.errors.InputError, match="has no height, negative prompt: leave it out"):
            with_options(source, CallOptions(height=8, negative_prompt="x"))


def test_a_video_is_that_of_the_pipeline_called_by_hand(wan):
    """Of a pipeline that calls its model twice a step, with and without a plan."""
    source = with_options(as_source(wan), VIDEO)
    texts, how = ["a red cat", "a green apple"], Sampling(4, 5.0, 7)

    def by_hand():
        return wan(
            texts, negative_prompt="a cactus", height=16, width=16, num_frames=5, guidance_scale=5.0,
            num_inference_steps=4, generator=generators(7, [0, 1]), output_type="pt",
        ).frames  # fmt: skip

    steps = []
    assert torch.equal(source.generate(texts, how, on_step=steps.append), by_hand())
    assert steps == list(range(8))
    assert source.generate(texts, how).shape == (2, 5, 3, 16, 16)
    plan = fc.fora(2).plan(fc.grid(wan, 4))
    with fc.apply(wan, plan):
        expected = by_hand()
    settings = runs.Settings(tuple(texts), 4, 5.0, 7, 2)
    run = runs.generate(source, plan, settings)
    assert torch.equal(run.images, expected)
    assert (run.stats.calls, run.stats.computed) == (8, 2 * 2 * 9)
    assert costs.cost(source, plan, run.call).speedup > 1


def test_two_transformers_take_turns_in_a_run():
    pipe = small_wan(TINY["Wan 2.1"].model())
    pipe.set_progress_bar_config(disable=True)
    source = with_options(as_source(pipe), VIDEO)
    plan = fc.fora(2).plan(fc.grid(pipe, 4))
    run = runs.generate(source, plan, runs.Settings(("a red cat",), 4, 5.0, 7, 2))
    assert run.images.shape == (1, 5, 3, 16, 16)
    assert run.stats.calls == 8
    assert costs.cost(source, plan, run.call) is not None


class Guided:
    """A pipeline like Qwen-Image's, which ignores its scale without a negative prompt."""

    transformer = torch.nn.Identity()

    def __call__(
        self, prompt=None, negative_prompt=None, true_cfg_scale=4.0, num_inference_steps=2, guidance_scale=None,
        num_images_per_prompt=1, generator=None, output_type="pil",
    ):  # fmt: skip
        self.given = (negative_prompt, true_cfg_scale, guidance_scale)
        return SimpleNamespace(images=torch.zeros(len(prompt), 3, 4, 4))


@pytest.mark.parametrize(
    ("scale", "options", "given"),
    [
        (4.0, CallOptions(), ([" "] * 2, 4.0, None)),
        (1.0, CallOptions(), (None, 1.0, None)),
        (3.0, CallOptions(negative_prompt="x"), (["x"] * 2, 3.0, None)),
    ],
)
def test_true_guidance_is_never_ignored_for_want_of_a_negative_prompt(scale, options, given):
    pipe = Guided()
    TextSource(pipe, options).generate(["a", "b"], Sampling(2, scale, 0))
    assert pipe.given == given


def test_a_scale_for_a_pipeline_without_one_is_refused():
    class Plain:
        transformer = torch.nn.Identity()

        def __call__(self, prompt, num_inference_steps=2, num_images_per_prompt=1, generator=None, output_type="pil"):
            return SimpleNamespace(images=torch.zeros(len(prompt), 3, 4, 4))

    source = as_source(Plain())
    assert source.generate(["a"], Sampling(2, sources.own_guidance(source), 0)).shape == (1, 3, 4, 4)
    with pytest.raises(fc.errors.InputError, match="has no guidance scale: leave it out"):
        source.generate(["a"], Sampling(2, 3.0, 0))


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offload_without_a_gpu_is_refused(offload, wan_folder):
    with pytest.raises(fc.errors.InputError, match="this run is on the CPU: leave it out"):
        fc.zoo.open.open_source(str(wan_folder), "cpu", offload=offload)


def test_other_options_are_another_run_in_shards(tmp_path, pixart_folder):
    source = fc.zoo.open.open_source(str(pixart_folder), "cpu")
    how = {"num_steps": 2, "shard_size": 2, "call_size": 1, "batch": 1}
    small = with_options(source, CallOptions(height=8, width=8))
    fc.sampling.sample_shards(small, ["a red cat"], tmp_path, **how)
    other = with_options(source, CallOptions(height=8, width=8, negative_prompt="a cactus"))
    with pytest.raises(fc.errors.ShardError, match="negative prompt of the pipeline, not a cactus"):
        fc.sampling.sample_shards(other, ["a red cat"], tmp_path, **how)


def test_videos_do_not_go_into_shards(wan, tmp_path):
    with pytest.raises(fc.errors.InputError, match="makes videos, and shards hold images"):
        fc.sampling.sample_shards(as_source(wan), ["a cat"], tmp_path, num_steps=2)


def test_other_options_are_another_calibration(wan, tmp_path):
    path = tmp_path / "s.safetensors"
    source = with_options(as_source(wan), VIDEO)
    stats = fc.calibrate(source, ["a red cat"], num_steps=3, guidance=5.0, path=path)
    assert stats.origin.options == VIDEO.document()
    assert fc.Statistics.load(path).origin == stats.origin
    other = with_options(as_source(wan), CallOptions(height=16, width=16, frames=5))
    with pytest.raises(fc.errors.StatisticsError, match="options differ"):
        fc.calibrate(other, ["a red cat"], num_steps=3, guidance=5.0, path=path)
