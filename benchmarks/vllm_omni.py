"""The backend on the classes of a published vLLM-Omni, with a small random transformer on the CPU.

python benchmarks/vllm_omni.py FOLDER    a wheel of vllm-omni, unpacked; the engine's own dependencies are not needed

Its cache base, its selector and its cache config are taken from the wheel as they are. What these import and a CPU has
not (its other backends, vLLM) is replaced by empty modules.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

import forecache as fc
from forecache.environment import environment
from forecache.integrations import vllm_omni
from forecache.io import files

ROOT = Path(__file__).parent.parent
OTHERS = {
    "cachedit": "CacheDiTBackend",
    "magcache": "MagCacheBackend",
    "seacache": "SeaCacheBackend",
    "stepcache": "StepCacheBackend",
    "teacache": "TeaCacheBackend",
}
"""The engine's own backends, by package."""


def module(name: str, **values: Any) -> types.ModuleType:
    """A module of this name that holds these values."""
    made = types.ModuleType(name)
    vars(made).update(values)
    sys.modules[name] = made
    return made


def loaded(folder: Path, name: str) -> Any:
    """A module of the wheel, run as it is."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def cache_config(folder: Path) -> type:
    """The class DiffusionCacheConfig of the wheel, without the module around it, which needs vLLM."""
    tree = ast.parse((folder / "vllm_omni/diffusion/data.py").read_text(encoding="utf-8"))
    (node,) = [entry for entry in tree.body if getattr(entry, "name", "") == "DiffusionCacheConfig"]
    values = {"dataclass": dataclasses.dataclass, "field": dataclasses.field, "fields": dataclasses.fields, "Any": Any}
    names = {"__name__": "vllm_omni.diffusion.data", **values}
    sys.modules["vllm_omni.diffusion.data"] = types.ModuleType("vllm_omni.diffusion.data")
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, node], []), "data.py", "exec"), names)
    return names["DiffusionCacheConfig"]  # type: ignore[return-value]


def selector(folder: Path) -> tuple[Any, Any]:
    """The engine's cache base and its selector."""
    for name in ("vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.cache"):
        module(name, __path__=[])
    config = cache_config(folder)
    module("vllm_omni.diffusion.data", DiffusionCacheConfig=config)
    base = loaded(folder, "vllm_omni.diffusion.cache.base")
    for package, kind in OTHERS.items():
        module(f"vllm_omni.diffusion.cache.{package}", **{kind: type(kind, (), {})})
    return base, loaded(folder, vllm_omni.SELECTOR)


class Pipeline:
    """The part of a pipeline that a backend sees, with a loop of guidance in two calls."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=4,
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=10,
        ).eval()

    def sample(self, num_steps: int) -> torch.Tensor:
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for step in range(num_steps):
                t = torch.tensor([950 - 900 * step // num_steps])
                outputs = [
                    self.transformer(x, timestep=t, class_labels=torch.tensor([label]), return_dict=False)[0][:, :4]
                    for label in (3, 10)
                ]
                x = x - 0.1 * (outputs[1] + 2 * (outputs[0] - outputs[1]))
        return x


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "vllm_omni.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base, select = selector(args.folder)
    vllm_omni.register()
    checks: dict[str, bool] = {}
    backend = select.get_cache_backend("forecache", {"interval": 2, "max_warmup_steps": 0})
    checks["the selector gives the backend"] = isinstance(backend, vllm_omni.ForecacheBackend)
    checks["it is a CacheBackend"] = isinstance(backend, base.CacheBackend)
    checks["it has its abstract methods"] = all(
        hasattr(backend, name) for name in base.CacheBackend.__abstractmethods__
    )
    checks["others are selected as before"] = select.get_cache_backend("none", {}) is None
    pipeline = Pipeline()
    bare = pipeline.sample(10)
    backend.enable(pipeline)
    checks["nothing is skipped before refresh"] = torch.equal(pipeline.sample(10), bare)
    backend.refresh(pipeline, 10)
    skipping = pipeline.sample(10)
    backend.disable(pipeline)
    plan = fc.fora(2).plan(fc.grid(pipeline.transformer, 10, level="stack"))
    with fc.apply(pipeline.transformer, plan, lanes=["cond", "uncond"]) as session:
        checks["a generation is that of a session"] = torch.equal(pipeline.sample(10), skipping)
    checks["it differs from one without"] = not torch.equal(skipping, bare)
    checks["nothing is left"] = torch.equal(pipeline.sample(10), bare)
    version = next(args.folder.glob("vllm_omni-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    stats = session.stats
    record = {
        "command": "python benchmarks/vllm_omni.py FOLDER",
        "vllm_omni": version,
        "checks": checks,
        "calls": stats.calls,
        "skipped": stats.skipped,
        "environment": environment(),
    }
    files.write_json(args.out, record)
    print(json.dumps({**checks, "version": version}, indent=1))
    if not all(checks.values()):
        sys.exit("Not every check holds.")


if __name__ == "__main__":
    main()
