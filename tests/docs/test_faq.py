"""The claims of docs/faq.md about image-to-image and ControlNet, on small pipelines."""

import diffusers
import pytest
import torch
from support.pipelines import PAIR, POOLED, SQUARE, TEXT, pipeline
from support.tiny import TINY, normal

import forecache as fc
from forecache.runtime.forwards import Forwards

TIMES = (990, 700, 400, 100)


def sampled(model, tiny, extra):
    x = normal(*tiny.shape)
    with torch.no_grad():
        for time in TIMES:
            x = x - 0.1 * model(**tiny.inputs(x, time), **extra, return_dict=False)[0]
    return x


def control(name, model):
    """Residuals as of a ControlNet, (2, tokens, width) for each block."""
    double = [normal(2, 16, model.inner_dim, seed=9 + block) * 3 for block in range(len(model.transformer_blocks))]
    if name == "SD3":
        return {"block_controlnet_hidden_states": double}
    single = [normal(2, 16, model.inner_dim, seed=20 + block) for block in range(len(model.single_transformer_blocks))]
    return {"controlnet_block_samples": double, "controlnet_single_block_samples": single}


@pytest.mark.parametrize("name", ["FLUX.1", "SD3"])
def test_residuals_of_a_controlnet_are_added_in_skipped_steps(name, monkeypatch):
    """The first block returns the sum of a skipped span, and the model adds a residual after each block of it."""
    tiny = TINY[name]
    model = tiny.model()
    extra = control(name, model)
    bare, without = sampled(model, tiny, extra), sampled(model, tiny, {})
    with fc.apply(model, fc.fora(1).plan(fc.grid(model, 4))):
        assert torch.equal(sampled(model, tiny, extra), bare)
    plan = fc.fora(2).plan(fc.grid(model, 4))
    with fc.apply(model, plan):
        cached = sampled(model, tiny, extra)
    with monkeypatch.context() as patch:
        patch.setattr(Forwards, "run_block", lambda self, block, x, args, kwargs: None)
        with fc.apply(model, plan):
            torch.testing.assert_close(sampled(model, tiny, extra), cached, rtol=1e-5, atol=1e-5)
    assert (cached - bare).abs().max() < 0.1 * (without - bare).abs().max(), "control is not lost"


IMAGE_TO_IMAGE = {
    "SD3": (
        "StableDiffusion3Img2ImgPipeline",
        4,
        PAIR | SQUARE | {"pooled_prompt_embeds": POOLED, "negative_pooled_prompt_embeds": POOLED},
    ),
    "FLUX.1": ("FluxImg2ImgPipeline", 1, SQUARE | {"prompt_embeds": TEXT, "pooled_prompt_embeds": POOLED}),
}


def image_to_image(name):
    """A pipeline and its sample at a strength, of 10 steps."""
    kind, channels, how = IMAGE_TO_IMAGE[name]
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, shift_factor=0.0, **blocks
    )
    pipe = pipeline(kind, TINY[name].model(), vae=vae.eval())
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def sample(strength):
        generator = torch.Generator().manual_seed(0)
        run = {"image": image, "strength": strength, "num_inference_steps": 10, "generator": generator}
        return pipe(**how, **run, output_type="latent")[0]

    return pipe, sample


@pytest.mark.parametrize("strength", [0.1, 0.6])
@pytest.mark.parametrize("name", ["SD3", "FLUX.1"])
def test_image_to_image_takes_a_plan_for_its_number_of_calls(name, strength):
    """FLUX is given fractions of the timesteps. A run of one call needs no plan: it is computed."""
    pipe, sample = image_to_image(name)
    bare = sample(strength)
    calls = round(10 * strength)
    with fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 6))) as session:
        found, again = sample(strength), sample(strength)
    assert torch.equal(found, again)
    assert torch.equal(found, bare) == (calls == 1)
    assert (session.stats.generations, session.stats.calls) == (2, 2 * calls)
    assert session.stats.computed == (2 * len(session.plan.grid.sites) * (1 if calls == 1 else 3))
    with fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 10)), resample=True) as session:
        assert torch.equal(sample(strength), found)
    assert session.stats.calls == calls


@pytest.mark.parametrize("name", ["SD3", "FLUX.1"])
def test_image_to_image_with_a_plan_for_all_its_steps_is_told_the_number_of_calls(name):
    pipe, sample = image_to_image(name)
    with pytest.raises(fc.errors.StepCountError, match="6 times"), fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 10))):
        sample(0.6)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_plan_for_few_steps(steps, dit):
    plan = fc.fora(2).plan(fc.grid(dit, steps))
    assert plan.picture() == "#." * (steps // 2)
