"""Cost and cache memory of plans on FLUX.1-dev, Qwen-Image and Wan 2.2, from their configs on the meta device.

    python benchmarks/memory.py                  a minute on one core; no weights, no network
    python benchmarks/memory.py --no-more        the tables again, from benchmarks/results

The configs are those that the models are published with. Nothing is sampled: cost and bytes are those of `plan.cost`,
which the tests compare with runs of small models of the same classes. Writes benchmarks/results/memory.json and the
tables of docs/in-practice.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import diffusers
import torch
from torch import nn

import forecache as fc
from forecache.environment import environment
from forecache.methods import recommended
from forecache.models import find

GIB = 2**30


@dataclass(frozen=True)
class Published:
    """A published model.

    name: as its users know it
    kind: its diffusers class
    steps: sampling steps that its card recommends
    size: of what is sampled, in pixels
    modules: the MLPs of its blocks by name, as module sites
    config: where it differs from the defaults of the class
    """

    name: str
    kind: str
    steps: int
    size: Mapping[str, int]
    modules: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The model in bfloat16, without weights."""
        with torch.device("meta"):
            model: nn.Module = getattr(diffusers, self.kind)(**self.config)
        return nn.Module.to(model, torch.bfloat16).eval()  # diffusers' own `to` warns


SQUARE = {"height": 1024, "width": 1024}
WAN_5B = {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336, "num_layers": 30}
MODELS = (
    Published("FLUX.1-dev", "FluxTransformer2DModel", 28, SQUARE, "transformer_blocks.*.ff", {"guidance_embeds": True}),
    Published("Qwen-Image", "QwenImageTransformer2DModel", 50, SQUARE, "transformer_blocks.*.img_mlp"),
    Published(
        "Wan 2.2 T2V-A14B",
        "WanTransformer3DModel",
        40,
        {"frames": 81, "height": 480, "width": 832},
        "blocks.*.ffn",
    ),
    Published(
        "Wan 2.2 TI2V-5B",
        "WanTransformer3DModel",
        50,
        {"frames": 121, "height": 704, "width": 1280},
        "blocks.*.ffn",
        WAN_5B,
    ),
)

METHODS: Mapping[str, fc.Method] = {
    "fc.enable(pipe)": recommended.method(),
    "fc.fora(2)": fc.fora(2),
    "fc.goc(fc.fora(2), 0.8)": fc.goc(fc.fora(2), 0.8),
    "fc.taylorseer(fc.fora(2), 1)": fc.taylorseer(fc.fora(2), 1),
    "fc.taylorseer(fc.fora(3), 1)": fc.taylorseer(fc.fora(3), 1),
    "fc.taylorseer(fc.fora(3), 2)": fc.taylorseer(fc.fora(3), 2),
}


def measure(published: Published) -> dict[str, Any]:
    """The size of a model, and of every method on it the MACs and the cache for one image or video."""
    model = published.model()
    grid, modules = (fc.grid(model, published.steps, sites=sites) for sites in (None, [published.modules]))
    plans = {name: method.plan(grid) for name, method in METHODS.items()}
    plans[f'fc.fora(2)` on `sites=["{published.modules}"]'] = fc.fora(2).plan(modules)
    rows = []
    for name, plan in plans.items():
        height, width, frames = map(published.size.get, ("height", "width", "frames"))
        cost = plan.cost(model, height=height, width=width, frames=frames)
        rows.append(
            {
                "method": name,
                "macs_ratio": cost.speedup,
                "macs_uncached": cost.macs_uncached,
                "cache_bytes": cost.cache_bytes,
            }
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    level = find.layout(model)
    return {
        "name": published.name,
        "class": published.kind,
        "config": dict(published.config),
        "steps": published.steps,
        "size": dict(published.size),
        "level": level.level,
        "guidance_pair": level.guided,
        "sites": len(grid.sites),
        "parameters": parameters,
        "weights_bytes": 2 * parameters,
        "rows": rows,
    }


def table(model: Mapping[str, Any]) -> list[str]:
    """The lines of one model."""
    size = " x ".join(str(value) for value in model["size"].values())
    pair = "a guidance pair" if model["guidance_pair"] else "no guidance pair"
    lines = [
        f"**{model['name']}**, {size}, {model['steps']} steps, by {model['level']}, {pair}; weights "
        f"{model['weights_bytes'] / GIB:.1f} GiB, {model['rows'][0]['macs_uncached'] / 1e15:.3g} PMACs without a cache",
        "",
        "| method | fewer MACs | cache, GiB |",
        "|---|---|---|",
    ]
    for row in model["rows"]:
        lines.append(f"| `{row['method']}` | {row['macs_ratio']:.2f}x | {row['cache_bytes'] / GIB:.2f} |")
    return [*lines, ""]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--no-more", action="store_true", help="compute nothing, write the tables")
    if not parser.parse_args(words).no_more:
        models = [measure(published) for published in MODELS]
        command = common.command("memory.py", words)
        common.save("memory", {"command": command, "environment": environment(), "models": models})
    document = common.load("memory")
    note = (
        "Computed by `plan.cost` from the published configs in bfloat16, for one image or video, both halves of a "
        "guidance pair included; not measured on a GPU. Weights: of the transformer (Wan 2.2 A14B has two); the cache "
        "comes on top of them, of activations and of encoders. `python benchmarks/memory.py` computes it again "
        f"({common.machine(document['environment'], 'diffusers')})."
    )
    common.fill_page("in practice", [line for model in document["models"] for line in table(model)] + [note])


if __name__ == "__main__":
    main(sys.argv[1:])
