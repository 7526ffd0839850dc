"""Costs without inputs: the example of a call is what the class's pipeline calls it with, and what is counted runs."""

import math

import pytest
import torch
from support.pipelines import PIPELINES, SCHEDULERS, pipeline
from support.slow import slow_but
from support.tiny import SHORT, TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.models.counting import first_call
from forecache.models.examples import EXAMPLES, Size, example_of
from forecache.models.find import layout
from forecache.models.registry import families

STEPS = 4
TEXTS = {
    "encoder_hidden_states", "encoder_hidden_states_mask", "encoder_attention_mask", "cap_feats", "txt_ids",
    "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5", "encoder_hidden_states_llama3",
    "attention_mask",
}  # fmt: skip
FRAMES = {
    "Wan 2.1": 5,
    "Wan 2.2 5B": 5,
    "CogVideoX": 5,
    "HunyuanVideo": 5,
    "HunyuanVideo I2V": 5,
    "HunyuanVideo 1.5": 5,
    "LTX-Video": 9,
    "LTX-Video I2V": 9,
    "LTX-2": 9,
    "LTX-2.3 I2V": 9,
    "Cosmos": 5,
    "Cosmos 2.5 I2V": 5,
    "Sana Video": 5,
    "Mochi 1": 7,
    "Latte": 2,
}
COUNTED = [name for name in TINY if name != "DiT"]  # its time embeddings stay on the CPU: tests/plan/test_cost.py


def small(model, name):
    """Four tokens a side, so that a real call takes milliseconds."""
    known = example_of(model)
    side = known.scale(model).pixels * (8 if known.size(model)[1] in (8, 128) or name in TWO_A_TOKEN else 4)
    return Size(side, side, FRAMES.get(name))


POSITIONS = {"Z-Image": ("x", "t", "cap_feats"), "Sana": ("hidden_states",), "AuraFlow": ("hidden_states",)}
"""What these pipelines give by position."""
TWO_A_TOKEN = ("Wan 2.1", "Wan 2.2 5B", "CogVideoX", "HunyuanVideo", "HunyuanVideo I2V", "Mochi 1")


def real(value, time):
    """The arguments with data: texts of full length, and this time."""
    given = tree_map_only(torch.Tensor, lambda tensor: torch.ones_like(tensor, device="cpu"), dict(value))
    name = next(name for name in ("t", "timestep", "timesteps") if name in given)
    return {**given, name: torch.full_like(given[name], time)}


def test_every_class_of_a_family_has_an_example():
    known = {family.kind for family in families() if not family.by_structure}
    assert known <= set(EXAMPLES), known - set(EXAMPLES)


@pytest.mark.parametrize("name", slow_but(COUNTED, *SHORT, "HunyuanVideo 1.5", "HiDream"))
def test_a_run_of_the_example_counts_the_macs_and_holds_the_bytes_that_were_said(name):
    model = TINY[name].model()
    found = layout(model)
    size = small(model, name) if name != "Stable Audio" else Size()
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, STEPS))
    sizes = {} if size == Size() else {"height": size.height, "width": size.width, "frames": size.frames}
    cost = plan.cost(model, 2, guidance=False, **sizes)
    times = [800, 600, 400, 200] if not found.rising else [200, 400, 600, 800]
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), fc.apply(model, plan) as session, counter:
        for time in times:
            model(**real(found.example(2, size), time))
    assert counter.get_total_flops() == 2 * cost.macs
    assert session.stats.peak_cache_bytes == cost.cache_bytes > 0


@pytest.mark.parametrize("name", PIPELINES)
def test_the_example_has_the_arguments_that_the_pipeline_gives(name):
    kind, arguments = PIPELINES[name]
    model = TINY[name].model()
    pipe = pipeline(kind, model, SCHEDULERS[name]() if name in SCHEDULERS else None)
    with first_call(model) as calls:
        pipe(**arguments, num_inference_steps=2, output_type="latent")
    given = {key: value for key, value in calls[0].kwargs.items() if tensors(value)}
    if calls[0].args:
        given |= dict(zip(POSITIONS[name], calls[0].args, strict=False))
    frames = arguments.get("num_frames", arguments.get("video_length"))
    rows = 2 if "x" in given and len(given["x"]) == 2 else len(given.get("hidden_states", [0]))
    example = example_of(model)(model, rows, Size(arguments["height"], arguments["width"], frames))
    assert {key for key, value in example.items() if tensors(value)} == set(given)
    for key in set(given) - TEXTS:
        ours, theirs = ([tuple(tensor.shape) for tensor in tensors(value[key])] for value in (example, given))
        if key not in ("guidance", "timestep"):  # these may be one number for all
            assert ours == theirs, key
        assert math.prod(ours[0]) >= 1
    if "img_shapes" in example:
        assert example["img_shapes"] == calls[0].kwargs["img_shapes"]


def tensors(value):
    values = value if isinstance(value, list | tuple) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]


def test_the_cost_of_a_pipeline_counts_a_guidance_pair_where_its_pipelines_have_one():
    costs = {}
    for name in ("FLUX.1", "SD3"):
        model = TINY[name].model()
        plan = fc.fora(2).plan(fc.grid(model, 2))
        side = 256 if name == "FLUX.1" else 64
        costs[name] = [
            plan.cost(model, height=side, width=side, guidance=guided).macs for guided in (None, False, True)
        ]
    usual, single, pair = costs["FLUX.1"]
    assert usual == single < pair
    usual, single, pair = costs["SD3"]
    assert usual == pair > single


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("FLUX.1", {"height": 100, "width": 64}, r"no images of 100 x 64: height and width are multiples of 16"),
        ("FLUX.1", {"height": 64}, r"Height and width go together; height=64 and width=None"),
        ("FLUX.1", {"frames": 9}, r"makes images: it takes no number of frames"),
        ("Wan 2.1", {"frames": 0}, r"at least one frame; frames=0"),
    ],
)
def test_a_size_that_a_class_does_not_have_is_refused(name, size, sentence):
    model = TINY[name].model()
    with pytest.raises(fc.errors.InputError, match=sentence):
        fc.fora(2).plan(fc.grid(model, 2)).cost(model, **size)


def test_a_size_beside_the_arguments_of_a_call_is_refused():
    model, family = TINY["Wan 2.1"].model(), TINY["Wan 2.1"]
    inputs = family.inputs(torch.zeros(family.shape), 500)
    with pytest.raises(fc.errors.InputError, match="have a size: give either"):
        fc.fora(2).plan(fc.grid(model, 2)).cost(model, inputs=inputs, height=64, width=64)


def test_modules_that_are_named_have_the_cost_of_their_class():
    model = TINY["FLUX.1"].model()
    plan = fc.fora(2).plan(fc.grid(model, 4, sites=["transformer_blocks.*.ff"]))
    assert 1 < plan.cost(model, height=64, width=64).speedup < 2


def test_a_pipeline_of_two_transformers_costs_what_one_of_them_does_a_call():
    models = [TINY["Wan 2.1"].model() for _ in range(2)]
    pipe = pipeline("WanPipeline", models[0], transformer_2=models[1], boundary_ratio=0.5)
    plan = fc.fora(2).plan(fc.grid(pipe, 4))
    assert plan.cost(pipe, height=64, width=64, frames=5) == plan.cost(models[1], height=64, width=64, frames=5)
