"""The cache backend for vLLM-Omni, on a stand-in of its classes; benchmarks/vllm_omni.py takes those of a release."""

import sys
import tomllib
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.small import noise, small_dit
from support.traces import everything

import forecache as fc
from forecache.integrations import vllm_omni
from forecache.integrations.vllm_omni import ForecacheBackend

ROOT = Path(__file__).parents[2]

MODULES = ("vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.cache", "vllm_omni.diffusion.cache.base",
           vllm_omni.SELECTOR, "vllm_omni.diffusion.worker", vllm_omni.RUNNER)  # fmt: skip


@dataclass
class Config:
    """As DiffusionCacheConfig: fields of the engine's own, and others kept beside them."""

    enable_taylorseer: bool = False
    taylorseer_order: int = 1
    max_warmup_steps: int = 4
    _extra_params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data):
        known = {each.name for each in fields(cls)}
        own = {name: value for name, value in data.items() if name in known}
        return cls(**own, _extra_params={name: value for name, value in data.items() if name not in known})

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._extra_params:
            raise AttributeError(name)
        return self._extra_params[name]


class CacheBackend(ABC):
    @abstractmethod
    def enable(self, pipeline): ...

    @abstractmethod
    def refresh(self, pipeline, num_inference_steps, verbose=True): ...


@pytest.fixture
def engine(monkeypatch):
    """The engine's selector, as its runner has it."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def get_cache_backend(cache_backend, cache_config):
        if cache_backend in (None, "none"):
            return
        raise ValueError(f"Unsupported cache backend: {cache_backend}.")

    sys.modules["vllm_omni.diffusion.cache.base"].CacheBackend = CacheBackend
    selector, runner = sys.modules[vllm_omni.SELECTOR], sys.modules[vllm_omni.RUNNER]
    selector.DiffusionCacheConfig = Config
    selector.get_cache_backend = runner.get_cache_backend = get_cache_backend
    return runner


def sample(model, steps=8, lanes=2, around=None, seed=0, stop=None):
    """As a pipeline of the engine samples: one call after another at a timestep, the guided one first."""
    x = noise(1, seed=seed)
    with torch.no_grad():
        for step in range(steps if stop is None else stop):
            t = torch.tensor([900 - 800 * step // steps])
            outputs = []
            for lane in range(lanes):
                y = torch.tensor([3 if lane == 0 else 10])
                if around is None:
                    outputs.append(model(x, timestep=t, class_labels=y).sample[:, :4])
                else:
                    with around(str(lane)):
                        outputs.append(model(x, timestep=t, class_labels=y).sample[:, :4])
            x = x - 0.1 * (outputs[-1] + 2 * (outputs[0] - outputs[-1]))
    return x


def wanted(method, steps=8, level="stack", **how):
    """The same in a session whose lanes are named."""
    model = small_dit()
    with fc.apply(model, method.plan(fc.grid(model, steps, level=level))) as session:
        return sample(model, steps, around=session.lane, **how)


def backend(**config):
    return ForecacheBackend(Config.from_dict(config))


@pytest.mark.parametrize(
    ("config", "method", "level"),
    [
        ({}, fc.methods.recommended.method(2.0, 8), "stack"),
        ({"interval": 3, "max_warmup_steps": 2, "level": "blocks"}, fc.warmup(fc.fora(3), 2), "blocks"),
        ({"interval": 2, "enable_taylorseer": True}, fc.taylorseer(fc.warmup(fc.fora(2), 4), 1), "stack"),
    ],
    ids=["speed-up", "interval", "taylorseer"],
)
def test_a_generation_is_the_plan_lane_by_lane(config, method, level):
    pipeline = SimpleNamespace(transformer=small_dit())
    before, bare = everything(pipeline.transformer), sample(pipeline.transformer)
    cache = backend(**config)
    assert not cache.is_enabled()
    cache.enable(pipeline)
    cache.enable(pipeline)
    assert cache.is_enabled()
    assert torch.equal(sample(pipeline.transformer), bare)  # a warm-up, before any refresh
    for seed in range(2):
        cache.refresh(pipeline, 8, verbose=False)
        assert torch.equal(sample(pipeline.transformer, seed=seed), wanted(method, level=level, seed=seed))
    cache.disable(pipeline)
    assert not cache.is_enabled()
    assert everything(pipeline.transformer) == before
    assert not pipeline.transformer._forward_hooks
    assert not pipeline.transformer._forward_pre_hooks


def test_generations_of_other_lengths_stopped_ones_and_unknown_ones(caplog):
    pipeline = SimpleNamespace(transformer=small_dit())
    bare = sample(pipeline.transformer)
    cache = backend(interval=3, max_warmup_steps=0)
    cache.enable(pipeline)
    method = fc.fora(3)
    cache.refresh(pipeline, 8)
    sample(pipeline.transformer, stop=4)  # its client has gone
    cache.refresh(pipeline, 6)
    assert torch.equal(sample(pipeline.transformer, 6), wanted(method, 6))
    cache.refresh(pipeline, 8)
    with pytest.raises(RuntimeError):  # of torch
        pipeline.transformer(noise(1)[:, :3], timestep=torch.tensor([1]), class_labels=torch.tensor([1]))
    cache.refresh(pipeline, 8)
    assert torch.equal(sample(pipeline.transformer, lanes=1), wanted(method, lanes=1))
    cache.refresh(pipeline, 0)
    assert torch.equal(sample(pipeline.transformer), bare)
    cache.refresh(pipeline, 4)
    assert sample(pipeline.transformer, 8).isfinite().all()  # more steps than announced run as they are
    assert "makes a model call for step 4" in caplog.text
    cache.disable()


def test_two_transformers_that_take_turns_share_the_steps():
    models = [small_dit(), small_dit(seed=1)]
    pipeline = SimpleNamespace(transformer=models[0], transformer_2=models[1])

    def run(around=None):
        x, outputs = noise(1), []
        with torch.no_grad():
            for step in range(8):
                model = models[step >= 3]
                ran.clear()
                x = (
                    x
                    - 0.1
                    * model(x, timestep=torch.tensor([900 - 100 * step]), class_labels=torch.tensor([1]))[0][:, :4]
                )
                outputs.append(len(ran))
        return outputs

    ran = []
    for model in models:
        model.transformer_blocks[1].attn1.register_forward_hook(lambda *_: ran.append(1))
    cache = backend(interval=4, max_warmup_steps=0)
    cache.enable(pipeline)
    cache.refresh(pipeline, 8)
    assert run() == [1, 0, 0, 1, 1, 0, 0, 0]  # step 3 is the second one's first
    cache.disable()


def test_the_lists_that_a_model_declares_are_its_blocks():
    model = small_dit()
    assert vllm_omni.declared_blocks(model) is None
    model._layerwise_offload_blocks_attrs = ["transformer_blocks", "absent"]
    assert vllm_omni.declared_blocks(model) == ["transformer_blocks"]
    model._cache_dit_adapter_config = SimpleNamespace(block_forward_patterns={"transformer_blocks": "Pattern_0"})
    assert vllm_omni.declared_blocks(model) == ["transformer_blocks"]
    cache = backend(interval=2)
    cache.enable(SimpleNamespace(transformer=model))
    cache.refresh(None, 6)
    sample(model, 6)
    cache.disable()


def test_the_plugin_adds_the_backend_to_a_closed_selector(engine):
    for _ in range(2):
        vllm_omni.register()
    found = engine.get_cache_backend("forecache", {"speedup": 2.5, "taylorseer_order": 2})
    assert isinstance(found, CacheBackend)
    assert isinstance(found, ForecacheBackend)
    assert (found.config.speedup, found.config.taylorseer_order) == (2.5, 2)
    assert all(callable(getattr(found, name)) for name in CacheBackend.__abstractmethods__)
    assert engine.get_cache_backend("none", {}) is None
    with pytest.raises(ValueError, match="Unsupported cache backend: other"):
        engine.get_cache_backend("other", {})
    assert engine.get_cache_backend.__wrapped__.__name__ == "get_cache_backend"
    assert not hasattr(engine.get_cache_backend.__wrapped__, "adds")  # wrapped once


def test_the_entry_point_is_the_plugin():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    point = metadata.EntryPoint("forecache", groups["vllm_omni.general_plugins"]["forecache"], "vllm_omni")
    assert point.load() is vllm_omni.register


@pytest.mark.parametrize(
    ("config", "pipeline", "words"),
    [
        ({"speedup": 9}, {}, "number from 1.3 to 5"),
        ({"level": "branches", "interval": 2}, {}, '"stack" or "blocks", not \'branches\''),
        ({}, {"transformer": None}, "no transformer by the names transformer, transformer_2"),
    ],
)
def test_a_config_or_pipeline_that_cannot_work_is_refused(config, pipeline, words):
    cache = backend(**config)
    target = SimpleNamespace(transformer=pipeline.get("transformer", small_dit()))

    def start():
        cache.enable(target)
        cache.refresh(target, 4)
        sample(target.transformer, 4)

    with pytest.raises(fc.ForecacheError, match=words):
        start()
    cache.disable()
