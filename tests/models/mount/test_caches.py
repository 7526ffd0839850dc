"""Two caches at once are refused, whichever comes first."""

import functools

import pytest
from diffusers import FluxTransformer2DModel
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from support.others import FAMILIES, plan, unpatched
from support.pipelines import PIPELINES, pipeline

import forecache as fc

STEP = {"current_timestep_callback": lambda: 500}
CACHES = {
    "FirstBlockCache": (apply_first_block_cache, FirstBlockCacheConfig(0.1)),
    "MagCache": (apply_mag_cache, MagCacheConfig(mag_ratios=[1.0] * 8, num_inference_steps=8)),
    "PAB": (
        apply_pyramid_attention_broadcast,
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 800), **STEP
        ),
    ),
    "FasterCache": (apply_faster_cache, FasterCacheConfig(**STEP, is_guidance_distilled=True)),
    "TaylorSeer": (apply_taylorseer_cache, TaylorSeerCacheConfig()),
}
REFUSED = r"Another cache is on this.*two caches would skip the same blocks.*disable it first"


@pytest.mark.parametrize("how", ["mixin", pytest.param("function", marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["FLUX.1", "Wan 2.1", "Qwen-Image"])
def test_a_cache_of_diffusers(name, cache, when, how):
    if (name, cache, how) == ("Wan 2.1", "TaylorSeer", "function"):
        pytest.skip("its names of modules match none of Wan, so that no hook is set")
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, (apply_cache, config) = plan(model), CACHES[cache]

    def switch_on():
        if how == "mixin":
            model.enable_cache(config)
        else:
            apply_cache(model, config)

    if when == "before":
        switch_on()
        with pytest.raises(fc.errors.RunError, match=REFUSED), fc.apply(model, made):
            pass
    else:
        with fc.apply(model, made):
            assert family.generate(model).equal(unpatched(name))
            switch_on()
            with pytest.raises(fc.errors.RunError, match=REFUSED):
                family.generate(model)
    if how == "mixin":
        model.disable_cache()
        with fc.apply(model, made):
            assert family.generate(model).equal(unpatched(name))


@pytest.mark.parametrize("when", ["before", "inside"])
def test_cache_dit(when):
    cache_dit = pytest.importorskip("cache_dit")
    kind, inputs = PIPELINES["FLUX.1"]
    pipe = pipeline(kind, FAMILIES["FLUX.1"].model())
    how = {**inputs, "num_inference_steps": 4, "output_type": "latent"}
    made = fc.fora(2).plan(fc.grid(pipe, 4))
    with fc.apply(pipe, made) as session:
        pipe(**how)
        if when == "inside":
            cache_dit.enable_cache(pipe)
            with pytest.raises(fc.errors.RunError, match=REFUSED):
                pipe(**how)
    if when == "before":
        cache_dit.enable_cache(pipe)
        with pytest.raises(fc.errors.RunError, match=REFUSED), fc.apply(pipe, made):
            pass
    cache_dit.disable_cache(pipe)
    with fc.apply(pipe, made) as session:
        pipe(**how)
    assert session.stats.skipped == session.stats.computed


def test_a_cache_by_a_patched_class(monkeypatch):
    """As TeaCache is put on: a forward on the class, and its settings beside it."""
    model = FAMILIES["FLUX.1"].model()
    made, own = plan(model), FluxTransformer2DModel.forward
    with fc.apply(model, made):
        monkeypatch.setattr(FluxTransformer2DModel, "enable_teacache", True, raising=False)
        monkeypatch.setattr(FluxTransformer2DModel, "forward", functools.partialmethod(own))
        with pytest.raises(fc.errors.RunError, match="TeaCache"):
            FAMILIES["FLUX.1"].generate(model)
    with pytest.raises(fc.errors.RunError, match="TeaCache"), fc.apply(model, made):
        pass
