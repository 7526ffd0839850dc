"""Together with what users combine: LoRA, offload, quantised weights, tiling, other dtypes and layouts, callbacks."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from peft import LoraConfig
from support.pipelines import ONCE, PAIR, PIPELINES, POOLED, SQUARE, TEXT, pipeline
from support.small import generate_images, small_dit, small_vae
from support.statistics import STEPS, random_statistics
from support.tiny import TIMES, TINY, normal
from torch import nn

import forecache as fc
from forecache.methods.replan import part_of

T = 6


def plan(target, method=None, steps=T):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(target, steps))


def dit_pipe():
    pipe = DiTPipeline(small_dit(classes=1000, seed=2), small_vae(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_pipe():
    return pipeline("FluxPipeline", TINY["FLUX.1"].model())


def flux(pipe, seed=0, **more):
    how = SQUARE | {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED, "num_inference_steps": T} | more
    return pipe(**how, generator=torch.Generator().manual_seed(seed), output_type="latent")[0]


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def add_lora(transformer, targets, seed=5):
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


FLUX_TARGETS = ["to_q", "to_k", "to_v", "ff.net.0.proj", "norm1.linear"]


def test_lora_before_after_and_inside_are_the_same():
    """Targets have the modulation among them, so that gates that were stacked before must not be used."""
    bare = flux_pipe()
    expected_plan = plan(bare)
    with fc.apply(bare, expected_plan):
        without = flux(bare)
    add_lora(bare.transformer, FLUX_TARGETS)
    uncached = flux(bare)
    with fc.apply(bare, plan(bare)):
        expected = flux(bare)
    assert not torch.equal(expected, without)
    pipe = flux_pipe()
    with fc.apply(pipe, expected_plan) as session:
        assert torch.equal(flux(pipe), without)
        add_lora(pipe.transformer, FLUX_TARGETS)
        assert torch.equal(flux(pipe), expected)
        pipe.transformer.disable_lora()
        torch.testing.assert_close(flux(pipe), without, rtol=1e-5, atol=1e-5)
        pipe.transformer.enable_lora()
        assert torch.equal(flux(pipe), expected)
    assert session.stats.skipped == session.stats.computed
    assert torch.equal(flux(pipe), uncached)


def test_lora_that_is_fused_in_the_block_counts():
    pipe, other = flux_pipe(), flux_pipe()
    add_lora(other.transformer, FLUX_TARGETS)
    with fc.apply(other, plan(other)):
        expected = flux(other)
    with fc.apply(pipe, plan(pipe)):
        flux(pipe)
        add_lora(pipe.transformer, FLUX_TARGETS)
        pipe.transformer.fuse_lora()
        torch.testing.assert_close(flux(pipe), expected, rtol=1e-4, atol=1e-4)


# ---- offload, storage, layout ---------------------------------------------------------------------------------------


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device=torch.device("cpu"))


def every_module(pipe):
    cpu_offload(pipe.transformer, execution_device="cpu")


def layerwise(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


def tiles(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


def channels_last(pipe):
    pipe.transformer.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("prepare", [model_offload, every_module, layerwise, tiles, channels_last])
def test_a_pipeline_that_was_prepared_samples_by_the_plan_in_every_generation(prepare, when):
    alone = dit_pipe()
    prepare(alone)
    bare, expected = generate_images(alone, T), []
    for seed in range(2):
        with fc.apply(alone, plan(alone)):
            expected.append(generate_images(alone, T, seed))
    pipe = dit_pipe()
    made = plan(pipe)
    if when == "before":
        prepare(pipe)
    with fc.apply(pipe, made) as session:
        if when == "inside":
            prepare(pipe)
        found = [generate_images(pipe, T, seed) for seed in range(2)]
    for image, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(image, wanted, rtol=0, atol=1e-5)
    assert (session.stats.generations, session.stats.calls) == (2, 2 * T)
    assert session.stats.skipped == session.stats.computed
    np.testing.assert_allclose(generate_images(pipe, T), bare, rtol=0, atol=1e-6)


def test_the_hooks_of_model_offload_stay_after_the_block():
    pipe = dit_pipe()
    model_offload(pipe)
    with fc.apply(pipe, plan(pipe)):
        generate_images(pipe, T)
    assert hasattr(pipe.transformer, "_hf_hook")
    assert pipe.transformer.forward.__dict__.get("_forecache") is None
    ran = []
    hook = pipe.transformer._hf_hook
    hook.pre_forward, before = lambda *args, **kwargs: ran.append(1) or before(*args, **kwargs), hook.pre_forward
    generate_images(pipe, T)
    assert len(ran) == T


def test_a_plan_on_a_transformer_whose_forward_is_put_back_is_an_error_not_a_slow_sample():
    pipe = dit_pipe()
    model_offload(pipe)
    session = fc.apply(pipe.transformer, plan(pipe.transformer)).__enter__()
    generate_images(pipe, T)
    with pytest.raises(fc.errors.RunError, match=r"called outside of its model.*offload.*to the pipeline"):
        generate_images(pipe, T)
    with pytest.raises(fc.errors.RunError, match=r"has put the forward of DiTTransformer2DModel back"):
        session.__exit__(None, None, None)


def test_forwards_that_were_all_put_back_are_an_error_when_the_block_ends():
    pipe = dit_pipe()
    every_module(pipe)
    session = fc.apply(pipe.transformer, plan(pipe.transformer)).__enter__()
    generate_images(pipe, T)
    remove_hook_from_module(pipe.transformer, recurse=True)
    for block in pipe.transformer.transformer_blocks:
        block.__dict__.pop("forward", None)
    bare = generate_images(pipe, T)
    assert session.stats.generations == 1
    with pytest.raises(fc.errors.RunError, match="has put the forward of DiTTransformer2DModel back.*to the pipeline"):
        session.__exit__(None, None, None)
    assert np.array_equal(generate_images(pipe, T), bare)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_group_offload(kind, when):
    how = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu"), "offload_type": kind}
    how |= {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe = flux_pipe()
    bare = flux(pipe)
    with fc.apply(pipe, plan(pipe)):
        expected = flux(pipe), flux(pipe, 1)
    offloaded = flux_pipe()
    if when == "before":
        offloaded.transformer.enable_group_offload(**how)
    with fc.apply(offloaded, plan(offloaded)) as session:
        if when == "inside":
            offloaded.transformer.enable_group_offload(**how)
        found = flux(offloaded), flux(offloaded, 1)
    for latents, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(latents, wanted, rtol=1e-5, atol=1e-5)
    assert session.stats.skipped == session.stats.computed
    assert torch.equal(flux(offloaded), bare)


@pytest.mark.parametrize("name", ["DiT", "PixArt", "SD3", "FLUX.1", "Wan 2.1", "Qwen-Image"])
def test_a_model_that_is_offloaded_is_used_where_it_runs(name):
    """The meta device stands for a GPU: what lies elsewhere in a step is an error there, too."""
    model = TINY[name].model()
    made = fc.fora(2).plan(fc.grid(model, num_steps=len(TIMES)))
    cpu_offload_with_hook(model, execution_device="meta")
    with torch.no_grad(), fc.apply(model, made) as session:
        for time in TIMES:
            model(**TINY[name].inputs(torch.zeros(TINY[name].shape), time), return_dict=False)
    assert session.stats.skipped == session.stats.computed


@pytest.mark.parametrize("name", ["PixArt", "Wan 2.1"])
def test_weights_that_come_back_inside_of_a_block_alone_are_refused(name):
    model = TINY[name].model()
    made = fc.fora(2).plan(fc.grid(model, num_steps=len(TIMES)))
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(fc.errors.RunError, match=r"offloaded and return only.*leaf_level"), fc.apply(model, made):
        pass
    assert torch.isfinite(TINY[name].generate(model)).all()  # and nothing is left on it


def test_groups_of_blocks_that_lie_on_another_device_are_refused():
    pipe = flux_pipe()
    how = {"onload_device": torch.device("cuda"), "offload_type": "block_level", "num_blocks_per_group": 1}
    pipe.transformer.enable_group_offload(**how)
    with (
        pytest.raises(fc.errors.RunError, match=r"offloaded and return only.*leaf_level"),
        fc.apply(pipe, plan(pipe)),
    ):
        pass


# ---- quantised ------------------------------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """Weights as int8 with a scale a row, as quantisers replace nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.detach())
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantise(module):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantise(child)


@pytest.mark.parametrize("name", ["DiT", "PixArt", "SD3", "FLUX.1", "Wan 2.1", "Qwen-Image"])
def test_linears_of_another_class(name):
    tiny = TINY[name]
    model = tiny.model()
    for _, block in model.named_children():
        if isinstance(block, nn.ModuleList):
            quantise(block)
    steps = 8
    bare = tiny.generate(model)
    with fc.apply(model, plan(model, fc.fora(1), steps)):
        assert torch.equal(tiny.generate(model), bare)
    made = plan(model, None, steps)
    with fc.apply(model, made):
        found = tiny.generate(model)
    full = copy.deepcopy(model)
    for module in full.modules():  # the same weights, as plain linears
        for child_name, child in list(module.named_children()):
            if isinstance(child, Int8Linear):
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight = nn.Parameter(child.weight * child.scale)
                linear.bias = child.bias
                setattr(module, child_name, linear)
    with fc.apply(full, made):
        torch.testing.assert_close(found, tiny.generate(full), rtol=1e-4, atol=1e-4)


def test_torchao():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    pipe = flux_pipe()
    torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig())
    bare = flux(pipe)
    with fc.apply(pipe, plan(pipe, fc.fora(1))):
        assert torch.equal(flux(pipe), bare)
    with fc.apply(pipe, plan(pipe)) as session:
        first, again = flux(pipe), flux(pipe)
    assert torch.equal(first, again)
    assert not torch.equal(first, bare)
    assert session.stats.skipped == session.stats.computed
    assert torch.equal(flux(pipe), bare)


# ---- dtypes, batches, callbacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_through_a_pipeline(dtype):
    pipe = dit_pipe().to(dtype)
    wide = dit_pipe()
    wide.transformer.load_state_dict(pipe.transformer.state_dict())
    wide.vae.load_state_dict(pipe.vae.state_dict())
    with fc.apply(wide, plan(wide)):
        expected = generate_images(wide, T)
    with fc.apply(pipe, plan(pipe)) as session:
        first, again = generate_images(pipe, T), generate_images(pipe, T)
    assert np.array_equal(first, again)
    assert session.stats.peak_cache_bytes == plan(pipe).cost(pipe, batch_size=2).cache_bytes
    assert np.abs(first - expected).mean() < 0.02


def test_two_generations_of_other_sizes_guidance_off_then_on_and_an_interrupted_one_between():
    """Each equals what a pipeline gives that has just been made."""
    hows = [
        {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED, "guidance_scale": 1.0},
        PAIR | {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED, "guidance_scale": 4.0},
        {name: normal(3, *value.shape[1:], seed=4) for name, value in PAIR.items()}
        | {"pooled_prompt_embeds": normal(3, 10), "negative_pooled_prompt_embeds": normal(3, 10, seed=2)}
        | {"height": 32, "width": 64},
    ]

    def sd3():
        return pipeline("StableDiffusion3Pipeline", TINY["SD3"].model())

    def sample(pipe, how, **more):
        how_far = SQUARE | {"num_inference_steps": T} | how | more
        return pipe(**how_far, generator=torch.Generator().manual_seed(0), output_type="latent")[0]

    expected = []
    for how in hows:
        fresh = sd3()
        with fc.apply(fresh, plan(fresh)):
            expected.append(sample(fresh, how))

    def stop(pipe, step, time, values):
        pipe._interrupt = step >= 2
        return values

    pipe = sd3()
    with fc.apply(pipe, plan(pipe)) as session:
        for number in (0, 1, 2, 0, 1):
            assert torch.equal(sample(pipe, hows[number]), expected[number])
            before = session.stats.calls
            sample(pipe, hows[1], callback_on_step_end=stop)
            assert session.stats.calls - before == 3
            with pytest.raises(ZeroDivisionError):
                sample(pipe, hows[2], callback_on_step_end=lambda *_: 1 / 0)
    assert session.stats.generations == 15


def test_wan_under_guidance_of_one():
    """It opens its cache_context for one call a step as well."""
    pipe = pipeline("WanPipeline", TINY["Wan 2.1"].model())
    how = {"prompt_embeds": TEXT, "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": T} | ONCE
    with fc.apply(pipe, plan(pipe)) as session:
        pipe(**how, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert session.stats.calls == T


# ---- copies that are made inside ------------------------------------------------------------------------------------


def test_a_copy_of_a_model_is_a_model_of_its_own():
    """Averaged weights are a copy whose weights go their own way; a plan of its own can be put on it."""
    model = TINY["DiT"].model()
    made = fc.fora(2).plan(fc.grid(model, num_steps=len(TIMES)))
    bare = TINY["DiT"].generate(model)
    with fc.apply(model, made):
        cached = TINY["DiT"].generate(model)
        twin = copy.deepcopy(model)
        block = copy.deepcopy(model.transformer_blocks[0])
        assert torch.equal(TINY["DiT"].generate(twin), bare)
        with fc.apply(twin, made) as session:
            assert torch.equal(TINY["DiT"].generate(twin), cached)
        assert session.stats.skipped > 0
    for each in (model, twin, block):
        assert not [name for name, part in each.named_modules() if {"forward", "__deepcopy__"} & set(vars(part))]
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert not torch.equal(TINY["DiT"].generate(twin), bare)


def test_a_copy_of_a_scheduler_sets_its_own_timesteps():
    """LTX-2 makes one for its sound in every call."""
    pipe = dit_pipe()
    with fc.apply(pipe, plan(pipe)):
        pipe.scheduler.set_timesteps(T)
        twin = copy.deepcopy(pipe.scheduler)
        twin.set_timesteps(T - 2)
        assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (T - 2, T)
    twin.set_timesteps(3)
    assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (3, T)
    assert "set_timesteps" not in vars(twin)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda pipe: pipe.from_pipe(pipe)], ids=["copy", "deep", "from"]
)
def test_a_copy_of_a_pipeline_samples_as_ever_and_leaves_nothing(make):
    pipe = flux_pipe()
    bare = flux(pipe)
    with fc.apply(pipe, plan(pipe)) as session:
        twin = make(pipe)
        twin.set_progress_bar_config(disable=True)
        assert torch.equal(flux(twin), bare)
        assert session.stats.calls == 0
        assert not torch.equal(flux(pipe), bare)
    assert torch.equal(flux(twin), bare)
    assert not [name for name, part in pipe.transformer.named_modules() if "forward" in vars(part)]
    with fc.apply(pipe, plan(pipe)):
        assert not torch.equal(flux(pipe), bare)


# ---- parts that are replaced inside ---------------------------------------------------------------------------------


def test_another_scheduler_is_watched_from_the_next_image_on():
    """A sampler is chosen by giving the pipeline another scheduler; resample= goes on with it."""
    pipe = dit_pipe()
    with fc.apply(pipe, plan(pipe), resample=True) as session:
        first = pipe.scheduler
        generate_images(pipe, T)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(first.config)
        generate_images(pipe, T - 2)
    assert session.stats.calls == 2 * T - 2
    assert not {"set_timesteps", "__deepcopy__"} & (set(vars(first)) | set(vars(pipe.scheduler)))


def test_another_transformer_is_refused():
    pipe, other = dit_pipe(), dit_pipe()
    with fc.apply(pipe, plan(pipe)) as session:
        mine, pipe.transformer = pipe.transformer, other.transformer
        with pytest.raises(
            fc.errors.RunError, match=r"another one than when the plan was applied.*apply the plan again"
        ):
            generate_images(pipe, T)
        pipe.transformer = mine
        generate_images(pipe, T)
    assert session.stats.calls == T


# ---- times that rise, and that come twice ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_whose_times_rise(dtype):
    """As Mochi's published scheduler has it; in bfloat16 the calls' timesteps are rounded."""
    kind, how = PIPELINES["Mochi 1"]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = pipeline(kind, TINY["Mochi 1"].model().to(dtype), scheduler)
    how = {
        key: each.to(dtype) if torch.is_tensor(each) and each.is_floating_point() else each for key, each in how.items()
    }
    with fc.apply(pipe, plan(pipe)) as session:
        for _ in range(2):
            pipe(**how, num_inference_steps=T, output_type="latent")
    assert pipe.scheduler.timesteps[0] < pipe.scheduler.timesteps[-1]
    assert (session.stats.generations, session.stats.calls) == (2, 2 * T)


@pytest.mark.parametrize("name", ["Z-Image", "Lumina 2"])
def test_module_sites_of_a_model_whose_time_rises(name):
    model = TINY[name].model()
    bare = TINY[name].generate(model)
    grid = fc.grid(model, num_steps=len(TIMES), sites=["layers.*.feed_forward"])
    with fc.apply(model, fc.fora(1).plan(grid)):
        assert torch.equal(TINY[name].generate(model), bare)
    with fc.apply(model, fc.fora(2).plan(grid)) as session:
        assert not torch.equal(TINY[name].generate(model), bare)
    assert session.stats.skipped == session.stats.computed


def test_a_second_order_sampler_that_starts_in_the_middle():
    """Every timestep but the first stands twice in the list, and image-to-image begins with the second of a pair."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4, shift_factor=0.0, **blocks)
    scheduler = FlowMatchHeunDiscreteScheduler()
    pipe = pipeline("StableDiffusion3Img2ImgPipeline", TINY["SD3"].model(), scheduler, vae=vae.eval())
    pools = {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED}
    how = PAIR | SQUARE | pools | {"image": normal(1, 3, 64, 64).sigmoid(), "strength": 0.6, "num_inference_steps": 10}
    made = plan(pipe, fc.fora(2), 11)
    with fc.apply(pipe, made) as session:
        pipe(**how, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert (session.stats.generations, session.stats.calls) == (1, 11)


# ---- guidance that ends in the middle -------------------------------------------------------------------------------


def test_guidance_that_ends_in_the_middle_goes_on_with_the_plan():
    """diffusers documents the callback: half of the batch goes, nothing kept serves, and the rest begins computed."""
    pipe = pipeline("StableDiffusion3Pipeline", TINY["SD3"].model())
    names = ["prompt_embeds", "pooled_prompt_embeds"]

    def end(pipe, step, _, given):
        if step == 2:
            pipe._guidance_scale = 1.0
            given |= {name: given[name].chunk(2)[1] for name in names}
        return given

    def sample():
        how = PIPELINES["SD3"][1] | {"num_inference_steps": T, "output_type": "latent"}
        inputs = ["latents", *names]
        callback = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": inputs}
        return pipe(**how, **callback, generator=torch.Generator().manual_seed(0))[0]

    bare, computed = sample(), []
    with fc.apply(pipe, plan(pipe, fc.fora(1))) as session:
        assert torch.equal(sample(), bare)
    assert (session.stats.generations, session.stats.calls) == (1, T)
    made = plan(pipe, fc.fora(2))
    with fc.apply(pipe, made) as session:
        handle = pipe.transformer.transformer_blocks[0].attn.register_forward_hook(lambda *_: computed.append(1))
        found = [sample(), sample()]
        handle.remove()
    assert torch.equal(*found)
    assert made.picture() == "#.#.#."
    assert len(computed) == 2 * 4  # steps 0 and 2, the first after the end, and 4
    assert (session.stats.generations, session.stats.calls) == (2, 2 * T)


def test_calibrated_corrections_are_not_for_the_rest_of_a_run():
    model = small_dit()
    made = fc.eoc(fc.fora(3), random_statistics(model), 0.1, judge="all").plan(fc.grid(model, STEPS))
    with pytest.raises(fc.errors.PlanError, match=r"in parts.*guidance that ends in the middle"):
        part_of(made, range(3, STEPS))
