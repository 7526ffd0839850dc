"""The node pack on the real ComfyUI: its own FLUX, SD3 and Wan with small random weights, sampled on the CPU.

python benchmarks/comfyui.py SOURCE [--commit HASH]    a folder with ComfyUI's source, whose requirements are installed
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

import forecache as fc
from forecache.environment import environment
from forecache.io import files

ROOT = Path(__file__).parent.parent
PACK = ROOT / "integrations" / "comfyui"
SAMPLERS = ("euler", "heun", "dpmpp_2m", "dpm_2", "dpmpp_sde", "uni_pc", "euler_ancestral", "lms")
WIDTH, POOLED = 12, 10
"""Width of the texts and of the pooled text."""
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": POOLED,
    "context_in_dim": WIDTH, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 3,
    "axes_dim": [4, 4, 8], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "patch_size": 2, "depth": 2, "adm_in_channels": POOLED, "pos_embed_max_size": 16,
    "num_patches": 256, "qk_norm": None,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}
    },
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 3,
    "patch_size": (1, 2, 2), "out_dim": 16, "in_dim": 16, "text_dim": WIDTH, "freq_dim": 16, "text_len": 7,
    "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "window_size": (-1, -1),
}  # fmt: skip
MODELS = {
    "FLUX": ("Flux", FLUX, (1, 16, 8, 8)),
    "SD3": ("SD3", SD3, (1, 16, 8, 8)),
    "Wan 2.1": ("WAN21_T2V", WAN, (1, 16, 1, 8, 8)),
}


class Comfy:
    """ComfyUI's modules, imported from a folder."""

    def __init__(self, source: Path) -> None:
        sys.path.insert(0, str(source))
        sys.argv = [sys.argv[0], "--cpu"]
        import comfy.options  # type: ignore[import-not-found]

        comfy.options.enable_args_parsing()
        import comfy.model_patcher  # type: ignore[import-not-found]
        import comfy.sample  # type: ignore[import-not-found]
        import comfy.supported_models  # type: ignore[import-not-found]

        self.comfy: Any = comfy

    def patcher(self, name: str, config: dict[str, Any]) -> Any:
        """A model of one of its classes, with random weights."""
        supported = getattr(self.comfy.supported_models, name)(config)
        supported.set_inference_dtype(torch.float32, None)
        model = supported.get_model({}, "").eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.diffusion_model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        cpu = torch.device("cpu")
        return self.comfy.model_patcher.ModelPatcher(model, cpu, cpu)

    def sample(self, patcher: Any, shape: tuple[int, ...], sampler: str = "euler", **how: Any) -> torch.Tensor:
        """What its own loop samples, from noise and texts of a fixed seed."""
        generator = torch.Generator().manual_seed(1)
        texts = [
            [
                [
                    torch.randn(1, 7, WIDTH, generator=generator),
                    {"pooled_output": torch.randn(1, POOLED, generator=generator)},
                ]
            ]
            for _ in range(2)
        ]
        settings = {"steps": 8, "cfg": 3.0, "denoise": 1.0, **how}
        noise = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            return self.comfy.sample.sample(
                patcher, noise, settings["steps"], settings["cfg"], sampler, "simple", *texts, torch.zeros(shape),
                denoise=settings["denoise"], disable_pbar=True, seed=1,
            )  # fmt: skip


def nodes() -> dict[str, Any]:
    """The pack's nodes, imported as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(
        "custom_forecache", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_forecache"] = module
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def check(comfy: Comfy, kinds: dict[str, Any], name: str) -> dict[str, Any]:
    """What the nodes do to one model: booleans that have to be true, and the change by skipping, per sampler."""
    kind, config, shape = MODELS[name]
    patcher = comfy.patcher(kind, dict(config))
    model = patcher.model.diffusion_model
    node = kinds["Forecache"]()
    (computed,) = node.patch(patcher, "fora", 2.0, 1, "gpu")
    (skipping,) = node.patch(patcher, "goc", 2.0, 2, "cpu")
    row: dict[str, Any] = {"model": name, "equal": {}, "change": {}}
    for sampler in SAMPLERS:
        bare = comfy.sample(patcher, shape, sampler)
        row["equal"][sampler] = torch.equal(comfy.sample(computed, shape, sampler), bare)
        change = comfy.sample(skipping, shape, sampler) - bare
        row["change"][sampler] = round(float(change.std() / bare.std()), 4)
    larger = (*shape[:-1], 2 * shape[-1])
    others: list[dict[str, Any]] = [{"denoise": 0.5}, {"steps": 5}]
    for how in others:
        wanted = comfy.sample(patcher, larger, **how)
        row["equal"][str(how)] = torch.equal(comfy.sample(computed, larger, **how), wanted)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, 8, level="stack"))
    with fc.apply(model, plan) as session:
        directly = comfy.sample(patcher, shape)
    stats = session.stats
    row["equal"]["as a session on the model"] = torch.equal(comfy.sample(skipping, shape), directly)
    row["calls"], row["skipped"] = stats.calls, stats.skipped // len(plan.grid.sites)
    row["equal"]["nothing left"] = "forward" not in vars(model) and torch.equal(
        comfy.sample(patcher, shape), comfy.sample(patcher.clone(), shape)
    )
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--commit", default="", help="of the source, for the record")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "comfyui.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = f"python benchmarks/comfyui.py SOURCE --commit {args.commit}"
    comfy, kinds = Comfy(args.source), nodes()
    version = (args.source / "comfyui_version.py").read_text().split('"')[-2]
    rows = [check(comfy, kinds, name) for name in MODELS]
    record = {"command": command, "comfyui": {"version": version, "commit": args.commit}, "models": rows}
    record |= {"diffusers_imported": "diffusers" in sys.modules, "environment": environment()}
    files.write_json(args.out, record)
    print(json.dumps(rows, indent=1))
    if not all(all(row["equal"].values()) for row in rows):
        sys.exit("Not everything is equal.")


if __name__ == "__main__":
    main()
