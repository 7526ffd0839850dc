"""One model, one plan, every host: the output is that of a pipeline of diffusers, and nothing is left."""

import types
from contextlib import contextmanager, nullcontext

import diffusers
import pytest
import torch
from diffusers import WanTransformer3DModel
from support import comfy
from support.pipelines import NONE, TEXT, pipeline
from support.tiny import TINY, normal
from support.traces import everything

import forecache as fc
from forecache.integrations.diffusers import remove_forecache
from forecache.integrations.vllm_omni import ForecacheBackend

STEPS, STOP = 8, 3
GUIDANCE = 2.0
TEXTS = {"cond": TEXT, "uncond": NONE}
NOISE = normal(1, 4, 2, 2, 2, seed=5)


class StoppedError(Exception):
    """A client that has gone."""


class ByName(WanTransformer3DModel):
    """The model as ComfyUI calls its own: positions, times from 0 to 1, a tensor in return."""

    def forward(self, x, t, context=None, control=None, transformer_options=None):
        return super().forward(x, 1000 * t, context, return_dict=False)[0]


def scheduler():
    return diffusers.FlowMatchEulerDiscreteScheduler()


def by_pipeline(model, plan=None, stop=None):
    """The latents of the pipeline; it names its calls by cache_context, and tells their steps and sigmas."""
    pipe = pipeline("WanPipeline", model, scheduler())

    def ended(pipe, step, time, tensors):
        if step + 1 == stop:
            raise StoppedError
        return {}

    how = {"prompt_embeds": TEXT, "negative_prompt_embeds": NONE, "guidance_scale": GUIDANCE, "latents": NOISE,
           "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": STEPS}  # fmt: skip
    with nullcontext() if plan is None else fc.apply(pipe, plan):
        return pipe(**how, output_type="latent", callback_on_step_end=ended, return_dict=False)[0]


def by_loop(model, call, stop=None):
    """The pipeline's loop; ``call(lane, step)`` is the block of every model call."""
    steps, x = scheduler(), NOISE
    steps.set_timesteps(STEPS)
    for step, time in enumerate(steps.timesteps):
        if step == stop:
            raise StoppedError
        outputs = {}
        for lane, text in TEXTS.items():
            with call(lane, step), torch.no_grad():
                outputs[lane] = model(x, time.expand(1), text, return_dict=False)[0]
        guided = outputs["uncond"] + GUIDANCE * (outputs["cond"] - outputs["uncond"])
        x = steps.step(guided, time, x, return_dict=False)[0]
    return x


# ---- hosts: a block that yields the function which samples ----------------------------------------------------------


@contextmanager
def pipelines(model, plan, path, monkeypatch):
    yield lambda stop: by_pipeline(model, plan, stop)


@contextmanager
def loop(model, plan, path, monkeypatch):
    with fc.apply(model, plan) as session:

        def sample(stop):
            try:
                return by_loop(model, lambda lane, step: session.lane(lane), stop)
            except StoppedError:
                session.new_run()
                raise

        yield sample


@contextmanager
def hook(model, plan, path, monkeypatch):
    def sample(stop):
        try:
            return by_loop(model, lambda lane, step: model.cache_context(lane), stop)
        except StoppedError:
            model._reset_stateful_cache()
            raise

    fc.apply_forecache(model, fc.ForecacheConfig(plan))
    yield sample
    remove_forecache(model)


@contextmanager
def requests(model, plan, path, monkeypatch):
    with fc.apply(model, plan, only_requests=True) as session:

        def sample(stop):
            session.requests.begin("a", STEPS)
            try:
                latents = by_loop(model, lambda lane, step: session.requests.call("a", lane, step), stop)
                session.requests.end("a")
            finally:
                session.requests.abort("a")
                assert session.requests.held_bytes == 0
            return latents

        yield sample


@contextmanager
def vllm_omni(model, plan, path, monkeypatch):
    backend = ForecacheBackend(types.SimpleNamespace(plan=path))
    stage = types.SimpleNamespace(transformer=model)
    backend.enable(stage)

    def sample(stop):
        backend.refresh(stage, STEPS, verbose=False)
        return by_loop(model, lambda lane, step: nullcontext(), stop)

    yield sample
    backend.disable(stage)


@contextmanager
def comfyui(model, plan, path, monkeypatch):
    monkeypatch.setattr(model, "__class__", ByName)
    node = comfy.pack(monkeypatch).NODE_CLASS_MAPPINGS["Forecache"]()
    (patched,) = node.patch(comfy.ModelPatcher(comfy.BaseModel(model)), "fora", 2.0, 2, "gpu", plan=path)
    steps = scheduler()
    steps.set_timesteps(STEPS)

    def sample(stop):
        def euler(denoised, x, sigmas):
            latents = comfy.euler(denoised, x, sigmas if stop is None else sigmas[: stop + 1])
            if stop is not None:
                raise StoppedError
            return latents

        conds = dict(enumerate((text, None) for text in TEXTS.values()))
        with torch.no_grad():
            return comfy.Guider(patched, conds).sample(NOISE, euler, steps.sigmas)

    yield sample


@pytest.mark.parametrize("host", [pipelines, loop, hook, requests, vllm_omni, comfyui], ids=lambda host: host.__name__)
def test_a_host_gives_the_output_of_a_pipeline_and_leaves_nothing(host, tmp_path, monkeypatch):
    model = TINY["Wan 2.1"].model()
    plan = fc.taylorseer(fc.fora(3), 1).plan(fc.grid(model, STEPS, level="stack"))
    path = tmp_path / "plan.json"
    plan.save(path)
    ran = []
    counter = model.blocks[1].attn1.register_forward_hook(lambda *_: ran.append(1))
    bare = by_pipeline(model)  # the first cache_context leaves diffusers' own registry of hooks on the model
    before, wanted = everything(model), by_pipeline(model, plan)
    assert not torch.allclose(wanted, bare, atol=1e-3)
    exact = {} if host is comfyui else {"rtol": 0, "atol": 0}  # its sampler steps by what it denoised
    with monkeypatch.context() as patch, host(model, plan, str(path), patch) as sample:
        for stop in (None, STOP, None):
            ran.clear()
            if stop is None:
                torch.testing.assert_close(sample(None), wanted, **exact)
                assert len(ran) == 2 * 3  # of 8 steps, in each of two lanes
            else:
                with pytest.raises(StoppedError):
                    sample(stop)
                assert len(ran) == 2
    if host is hook:  # a removed hook of diffusers leaves the class's forward on the instance
        assert vars(model).pop("forward").__func__ is WanTransformer3DModel.forward
    assert everything(model) == before
    assert torch.equal(by_pipeline(model), bare)
    counter.remove()
