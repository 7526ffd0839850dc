"""Guidance in two model calls a step, through the real pipelines: each call has a history of its own."""

import pytest
import torch
from support.pipelines import MASKED, PAIR, SQUARE, pipeline
from support.tiny import TINY

import forecache as fc

T = 6
TWICE = {
    "Wan 2.1": ("WanPipeline", PAIR | {"height": 16, "width": 16, "num_frames": 5}, ()),
    "Lumina 2": ("Lumina2Pipeline", MASKED | SQUARE, ("cond", "uncond")),
}
"""Wan opens diffusers' cache_context for its calls, Lumina 2 does not."""


@pytest.fixture(params=TWICE)
def sampling(request):
    kind, how, lanes = TWICE[request.param]
    pipe = pipeline(kind, TINY[request.param].model())

    def sample(guidance=4.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        how_far = {"num_inference_steps": T, "guidance_scale": guidance, "output_type": "latent"}
        return pipe(**how, **how_far, generator=generator)[0]

    return pipe, sample, lanes


def plan(pipe, method=None):
    return (method or fc.goc(fc.fora(2), 0.8)).plan(fc.grid(pipe, T))


def by_hand(pipe, lane_of_call):
    """GOC written out over a model's own sites: histories by lane, each call told which lane it is."""
    layout = fc.models.find.layout(pipe.transformer)
    kept, step = {}, {}

    def value(site, compute, /, *args, **kwargs):
        key = lane, site
        if step[lane] % 2 == 0:
            computed = compute(*args, **kwargs)
            emitted = kept.get(key, (None, None))[1]
            kept[key] = computed, emitted
            return computed
        newest, before = kept[key]
        estimate = newest if before is None else newest + 0.8 * (newest - before)
        kept[key] = newest, estimate
        return estimate

    lane = None
    count = 0
    forward = pipe.transformer.forward

    def call(*args, **kwargs):
        nonlocal lane, count
        lane = lane_of_call(count)
        count += 1
        step[lane] = step.get(lane, -1) + 1
        return forward(*args, **kwargs)

    return [*layout.forwards(value, None), (pipe.transformer, call)]


def test_each_call_of_a_step_has_its_own_history(sampling):
    pipe, sample, lanes = sampling
    bare = sample()
    with fc.apply(pipe, plan(pipe, fc.fora(1)), lanes=lanes):
        assert torch.equal(sample(), bare)
    with fc.apply(pipe, plan(pipe), lanes=lanes) as session:
        found, again = sample(), sample()
    assert torch.equal(found, again)
    assert not torch.equal(found, bare)
    assert (session.stats.calls, session.stats.generations) == (4 * T, 2)
    with fc.models.mount.mounted(by_hand(pipe, lambda count: count % 2)):
        expected = sample()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(), bare)


def test_guidance_may_be_switched_off_and_on_between_generations(sampling):
    pipe, sample, lanes = sampling
    expected = []
    for guidance in (1.0, 4.0):
        with fc.apply(pipe, plan(pipe), lanes=lanes):
            expected.append(sample(guidance))
    with fc.apply(pipe, plan(pipe), lanes=lanes) as session:
        found = [sample(guidance) for guidance in (4.0, 1.0, 4.0, 1.0, 1.0)]
    for image, guided in zip(found, (1, 0, 1, 0, 0), strict=True):
        assert torch.equal(image, expected[guided])
    assert session.stats.generations == 5


def test_a_pipeline_that_names_nothing_is_refused_without_lanes():
    kind, how, _ = TWICE["Lumina 2"]
    pipe = pipeline(kind, TINY["Lumina 2"].model())
    with (
        fc.apply(pipe, plan(pipe)),
        pytest.raises(fc.errors.StepCountError, match=r"called several times a step.*lanes="),
    ):
        pipe(**how, num_inference_steps=T, guidance_scale=4.0, output_type="latent")
    with (
        fc.apply(pipe, plan(pipe), lanes=["cond"]),
        pytest.raises(
            fc.errors.RunError, match=r"called 2 times at timestep .* lanes names 1 calls of a step \(cond\)"
        ),
    ):
        pipe(**how, num_inference_steps=T, guidance_scale=4.0, output_type="latent")


def test_the_models_own_cache_context_is_back_after_the_block():
    pipe = pipeline("WanPipeline", TINY["Wan 2.1"].model())
    own = pipe.transformer.cache_context
    with fc.apply(pipe, plan(pipe)):
        assert pipe.transformer.cache_context is not own
    assert "cache_context" not in vars(pipe.transformer)
    assert type(pipe).__name__ == "WanPipeline"
    assert type(pipe).__mro__[1].__name__ != "WanPipeline"
