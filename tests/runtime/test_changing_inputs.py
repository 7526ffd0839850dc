"""Inputs that change their shape in the middle of a run: the plan goes on afresh, with a step that is computed."""

import logging
from contextlib import contextmanager

import diffusers
import pytest
import torch
from support import runs
from support.pipelines import PIPELINES, SCHEDULERS, pipeline
from support.reused import reused
from support.slow import slow_but
from support.tiny import SHORT, TIMES, TINY, normal

import forecache as fc
from forecache.models.arguments import Arguments
from forecache.runtime import calls

STEPS = 6
CHANGE = 3
"""The step at which the inputs change, which FORA with N = 2 skips."""
TEXTS = [name for name in TINY if name not in {"DiT", "HunyuanDiT", "CogVideoX", "Chroma"}]
"""The families whose text may have any length, by arguments of the text alone."""
METHOD = fc.fora(2)


def longer(value):
    """A text of seven tokens instead of five, and what belongs to it."""
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor) and value[0].shape[0] == 5:
        return [torch.cat([part, part[:2]]) for part in value]
    if isinstance(value, tuple):
        return tuple(longer(part) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    for axis in (0, 1):
        if value.ndim > axis and value.shape[axis] == 5:
            return torch.cat([value, value.narrow(axis, 0, 2)], axis)
    return value


def sampled(tiny, model, change=None):
    """What is sampled in six steps, with a longer text from step ``change`` on."""
    x = normal(*tiny.shape)
    with torch.no_grad():
        for step, time in enumerate(TIMES[:STEPS]):
            inputs = tiny.inputs(x, time)
            if change is not None and step >= change:
                inputs = {name: longer(value) for name, value in inputs.items()}
            output = model(**inputs, return_dict=False)[0]
            output = torch.stack(output) if isinstance(output, list) else output
            output = output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output
            x = x - 0.1 * output
    return x


def afresh(step):
    """FORA with N = 2, and the step at which the inputs change."""
    return step % 2 == 0 or step == CHANGE


def check(tiny, model, sites=None):
    made = METHOD.plan(fc.grid(model, STEPS, sites=sites))
    bare = sampled(tiny, model, CHANGE)
    with fc.apply(model, fc.fora(1).plan(made.grid)):
        assert torch.equal(sampled(tiny, model, CHANGE), bare)
    with fc.apply(model, made) as session:
        found, again = sampled(tiny, model, CHANGE), sampled(tiny, model, CHANGE)
        whole = sampled(tiny, model)
    assert torch.equal(found, again)
    assert session.stats.calls == 3 * STEPS
    assert session.stats.computed == (4 + 4 + 3) * len(made.grid.sites)
    steps = [(0, step) for step in range(STEPS)]
    with reused(model, steps, afresh, sites):
        torch.testing.assert_close(found, sampled(tiny, model, CHANGE), rtol=1e-4, atol=1e-4)
    with reused(model, steps, lambda step: step % 2 == 0, sites):
        torch.testing.assert_close(whole, sampled(tiny, model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(TEXTS, *SHORT))
def test_a_text_that_becomes_longer_in_a_loop_of_ones_own(name):
    check(TINY[name], TINY[name].model())


MODULES = {
    "FLUX.1": ["single_transformer_blocks.*.proj_mlp", "transformer_blocks.*.ff"],
    "Qwen-Image": ["transformer_blocks.*.img_mlp", "transformer_blocks.*.txt_mlp"],
}


@pytest.mark.parametrize("name", MODULES)
def test_a_text_that_becomes_longer_at_the_level_of_modules(name):
    check(TINY[name], TINY[name].model(), MODULES[name])


@pytest.mark.parametrize("name", ["SD3", "Wan 2.1", "AuraFlow"])
@pytest.mark.parametrize("method", [fc.fora(1), METHOD, fc.goc(METHOD, 0.8), fc.taylorseer(METHOD, 1)])
def test_a_callback_that_replaces_the_prompt_by_a_longer_one(name, method, caplog):
    kind, how = PIPELINES[name]
    pipe = pipeline(kind, TINY[name].model(), SCHEDULERS.get(name, diffusers.FlowMatchEulerDiscreteScheduler)())

    def replace(pipe, step, time, values):
        if step == CHANGE - 1:
            text = values["prompt_embeds"]
            values["prompt_embeds"] = torch.cat([text, text[:, :2]], 1)
            if "prompt_attention_mask" in values:
                values["prompt_attention_mask"] = torch.ones(len(text), 7).long()
        return values

    names = [name for name in ("prompt_embeds", "prompt_attention_mask") if name in pipe._callback_tensor_inputs]

    def sample(callback=replace):
        generator = torch.Generator().manual_seed(0)
        run = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
        return pipe(**how, **run, num_inference_steps=STEPS, generator=generator, output_type="latent")[0]

    bare = sample()
    made = method.plan(fc.grid(pipe, STEPS))
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(pipe, made) as session:
        found, again = sample(), sample()
    assert torch.equal(found, again)
    assert torch.equal(found, bare) == (made.computed_share == 1)
    assert session.stats.calls == 2 * STEPS
    told = [record.message for record in caplog.records]
    assert len([message for message in told if "changed in the middle of a run (step 3 of 6)" in message]) == 1
    if method is METHOD:
        with reused(pipe.transformer, [(0, step) for step in range(STEPS)], afresh):
            torch.testing.assert_close(found, sample(), rtol=1e-4, atol=1e-4)


def test_the_signature_of_a_call_takes_microseconds_and_sees_everything():
    x, text, time = normal(2, 4), normal(2, 5, 12), torch.tensor(1.0)
    signature = calls.signature_of(Arguments((x,), {"text": text, "time": time, "more": {"a": [text]}}), time)
    same = calls.signature_of(Arguments((x + 1,), {"time": 2.0, "more": {"a": [text]}, "text": text}), 2.0)
    assert signature == same, "the timestep and the order of names do not matter"
    assert signature.sample == (x.shape, x.dtype, x.device)
    for name, changed in {
        "text": {"text": text[:, :4], "more": {"a": [text]}},
        "more": {"text": text, "more": {"a": [text.double()]}},
        "mode": {"text": text, "more": {"a": [text]}, "mode": "cached"},
    }.items():
        other = calls.signature_of(Arguments((x,), changed), None)
        assert other != signature
        assert signature.changes(other) == [name]
    assert calls.signature_of(Arguments((1, 2.0, None), {}), None).sample is None


# ---- tokens inside the model -----------------------------------------------------------------------------------------


@contextmanager
def lengthened(model, path, first):
    """The output of a module outside of the blocks is a text of seven tokens from call ``first`` on."""
    count = 0

    def hook(module, args, output):
        nonlocal count
        count += 1
        return torch.cat([output, output[:, :2]], 1) if count > first else output

    handle = model.get_submodule(path).register_forward_hook(hook)
    yield
    handle.remove()


INSIDE = {"SD3": "context_embedder", "AuraFlow": "context_embedder", "Wan 2.1": "condition_embedder.text_embedder"}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("method", [METHOD, fc.goc(METHOD, 0.8)])
def test_tokens_that_change_where_no_argument_shows_it(name, method, caplog):
    """As where a model keeps keys and values of its own: the first block sees it, and the step is computed."""
    tiny = TINY[name]
    model = tiny.model()

    def sample():
        with lengthened(model, INSIDE[name], CHANGE):
            return sampled(tiny, model)

    made = method.plan(fc.grid(model, STEPS))
    bare = sample()
    with fc.apply(model, fc.fora(1).plan(made.grid)):
        assert torch.equal(sample(), bare)
    with caplog.at_level(logging.WARNING, "forecache"), fc.apply(model, made) as session:
        found, again = sample(), sample()
    assert torch.equal(found, again)
    assert (session.stats.calls, session.stats.computed) == (2 * STEPS, 2 * 4 * len(made.grid.sites))
    assert any("the tokens inside the model changed in the middle of a run" in each.message for each in caplog.records)
    if method is METHOD:
        with reused(model, [(0, step) for step in range(STEPS)], afresh):
            torch.testing.assert_close(found, sample(), rtol=1e-4, atol=1e-4)


def test_a_kv_cache_of_the_models_own_takes_the_text_away():
    """Qwen-Image 2.1: the arguments keep their shapes, and its blocks get the image alone from the second step on."""
    run = runs.qwen_image_21()
    bare = run.sample()
    for method in (METHOD, fc.goc(METHOD, 0.8), fc.taylorseer(METHOD, 1)):
        made = method.plan(fc.grid(run.pipe, STEPS, sites=run.sites))
        with fc.apply(run.pipe, made) as session:
            found, again = run.sample(), run.sample()
        assert torch.equal(found, again)
        assert not torch.equal(found, bare)
        assert session.stats.computed == 2 * 4 * len(made.grid.sites)
        if method is METHOD:
            steps = [(0, step) for step in range(STEPS)]
            with reused(run.pipe.transformer, steps, lambda step: step % 2 == 0 or step == 1, run.sites):
                torch.testing.assert_close(found, run.sample(), rtol=1e-4, atol=1e-4)


class Halving(torch.nn.Module):
    """Half of the tokens are dropped between its two parts, from call CHANGE on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), 0

    def forward(self, x, timestep):
        x = x + self.first(x)
        self.calls += 1
        if self.calls > CHANGE:
            x = x[:, ::2]
        return x + self.second(x)


def test_tokens_that_change_in_the_middle_of_a_model_are_told_in_a_sentence():
    torch.manual_seed(0)
    model = Halving()
    made = METHOD.plan(fc.grid(model, STEPS, sites=["first", "second"]))
    words = "A skipped part of this call does not fit .*must match the size.* call session.new_run"
    with torch.no_grad(), fc.apply(model, made) as session:
        outputs = [model(normal(1, 6, 4), time) for time in TIMES[:CHANGE]]
        with pytest.raises(fc.errors.RunError, match=words):
            model(normal(1, 6, 4), TIMES[CHANGE])
        session.new_run()  # as it says
        outputs = [model(normal(1, 6, 4), time) for time in TIMES[:STEPS]]
    assert all(output.shape == (1, 3, 4) for output in outputs)
