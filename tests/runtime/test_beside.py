"""Beside a plan: skip-layer guidance, gradient checkpointing, changes in the middle of a generation."""

import pytest
import torch
from support.others import FAMILIES, block_of, plan, unpatched
from support.pipelines import PIPELINES, pipeline
from support.tiny import TIMES

import forecache as fc

# ---- skip-layer guidance of SD3.5 -----------------------------------------------------------------------------------


def test_calls_that_leave_out_layers_run_in_full_beside_the_plan():
    family, model = FAMILIES["SD3.5"], FAMILIES["SD3.5"].model()
    made, x = plan(model), torch.zeros(family.shape)
    with torch.no_grad():
        right = [model(**family.inputs(x, time), skip_layers=[1], return_dict=False)[0] for time in TIMES]
        assert not torch.equal(right[0], model(**family.inputs(x, TIMES[0]), return_dict=False)[0])
    found, predict = [], family.predict

    class Guided(type(family)):
        def predict(self, model, x_, time):
            output = predict(model, x_, time)
            found.append(model(**family.inputs(x, time), skip_layers=[1], return_dict=False)[0])
            return output

    guided = Guided(family.kind, family.config, family.shape, family.inputs)
    with fc.apply(model, made) as session:
        images = guided.generate(model)
    assert torch.equal(images, unpatched("SD3.5"))
    assert all(map(torch.equal, found, right))
    assert (session.stats.calls, session.stats.generations) == (8, 1)


def test_skip_layer_guidance_in_its_pipeline():
    kind, inputs = PIPELINES["SD3"]
    how = {**inputs, "num_inference_steps": 10, "output_type": "latent", "guidance_scale": 4.0}
    how |= {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.6}

    def sampled(pipe):
        return pipe(**how, generator=torch.Generator().manual_seed(0))[0]

    pipe = pipeline(kind, FAMILIES["SD3.5"].model())
    with torch.no_grad():
        bare = sampled(pipe)
        with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, 10))):
            assert torch.equal(sampled(pipe), bare)
        with fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 10))) as session:
            found = sampled(pipe)
    assert session.stats.skipped == session.stats.computed
    assert (found - bare).abs().max() > 0


# ---- gradient checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DiT", "Qwen-Image"])
def test_gradient_checkpointing_is_refused_in_its_own_words(name):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    model.enable_gradient_checkpointing()
    with fc.apply(model, made) as session:
        assert torch.equal(family.generate(model), unpatched(name))  # under torch.no_grad it is off
        session.new_run()
        x = torch.zeros(family.shape, requires_grad=True)
        output = model(**family.inputs(x, TIMES[0]), return_dict=False)[0]
        with pytest.raises(fc.errors.RunError, match=r"gradient checkpointing is on.*disable_gradient_checkpointing"):
            output.sum().backward()
        session.new_run()


# ---- in the middle of a generation ----------------------------------------------------------------------------------


def hook(block):
    return block.register_forward_hook(lambda module, args, output: None).remove


def patch(block):
    own = block.forward
    block.forward = lambda *args, **kwargs: tuple(own(*args, **kwargs))
    return lambda: setattr(block, "forward", own)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("put", [hook, patch])
def test_what_is_put_on_a_block_in_the_middle_of_a_generation_is_refused_at_the_latest_when_it_ends(put, step):
    name = "FLUX.1"
    family, model, undo = FAMILIES[name], FAMILIES[name].model(), []
    made = plan(model)
    predict = family.predict

    class Changed(type(family)):
        def predict(self, model, x, time):
            if time == TIMES[step] and not undo:
                undo.append(put(block_of(model)))
            return predict(model, x, time)

    changed = Changed(family.kind, family.config, family.shape, family.inputs)
    with fc.apply(model, made):
        with pytest.raises(fc.errors.RunError, match="in the middle of a generation.*do it before a generation"):
            changed.generate(model)
        undo[0]()
        torch.testing.assert_close(family.generate(model), unpatched(name), rtol=1e-5, atol=1e-5)
    with fc.apply(model, made):
        assert torch.equal(family.generate(model), unpatched(name))
