"""What users combine with a plan, at every level of sites: the cases of docs/combining.md and of their tests.

A combination is a pipeline, small and of its real classes, that something else was done to. A cell is a combination at
one level, and it *works* if

(a) a plan that computes everything gives the run without a plan, bit for bit,
(b) FORA at interval 2 gives what a FORA gives that is written out by hand on the same prepared pipeline, up to
    rounding, and not the run without a plan,
(c) as many sites were computed and skipped as there, and a second run gives the same bits,
(d) afterwards the run without a plan is the same as before, bit for bit.

*refused* is an error of forecache, with its sentence. Everything else is *WRONG*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from peft import LoraConfig
from PIL import Image
from torch import Tensor

import forecache as fc
from forecache.errors import ForecacheError
from pipelines import build
from pipelines.cases import CASES
from pipelines.check import ROUNDING, Subject
from pipelines.reference import Sites, Stack, Whole, fora
from pipelines.transformers import FLUX, SD3, TURNED, WAN

LEVELS = ("branches", "blocks", "stack")
NATIVE = AttentionBackendName.NATIVE
BY_BLOCKS: Mapping[str, tuple[Stack, ...]] = {
    "FluxTransformer2DModel": (Stack("transformer_blocks", TURNED), Stack("single_transformer_blocks", TURNED)),
    "SD3Transformer2DModel": (Stack("transformer_blocks", TURNED),),
    "QwenImageTransformer2DModel": (Stack("transformer_blocks", TURNED),),
    "WanTransformer3DModel": (Stack("blocks"),),
}
BY_BRANCHES: Mapping[str, Sites] = {
    "FluxTransformer2DModel": FLUX,
    "SD3Transformer2DModel": SD3,
    "QwenImageTransformer2DModel": tuple(f"transformer_blocks.*.{part}" for part in ("attn", "img_mlp", "txt_mlp")),
    "WanTransformer3DModel": WAN,
}
"""Sites of the hand-written FORA, by class of the transformer."""
LORA_TARGETS = ["to_q", "to_k", "to_v", "ff.net.0.proj", "norm1.linear"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Combination:
    """A pipeline that something else was done to.

    pipeline: name of its class.
    prepare: what is done to it.
    variant: of its call, see `build.VARIANTS`.
    tolerance: (a) and (d) hold up to this difference; 0 for bit for bit.
    untested: why it is not tested; "" where it is.
    """

    pipeline: str = "FluxPipeline"
    prepare: Callable[[Any], None] | None = None
    variant: str = "default"
    tolerance: float = 0.0
    untested: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)

    def subject(self) -> Subject:
        """The prepared pipeline and its call."""
        case = CASES[self.pipeline]
        subject = build.subject(self.pipeline, replace(case, call={**case.call, **self.call}), self.variant)
        if self.prepare is not None:
            self.prepare(subject.pipe)
        return subject


def add_lora(model: Any, seed: int = 5, name: str = "default") -> None:
    """Load an adapter of random weights."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)
    model.add_adapter(config, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path and f".{name}." in path:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def lora(pipe: Any) -> None:
    add_lora(pipe.transformer)


def switched_lora(pipe: Any) -> None:
    add_lora(pipe.transformer)
    add_lora(pipe.transformer, 6, "other")
    pipe.transformer.set_adapter("other")


def fused_lora(pipe: Any) -> None:
    add_lora(pipe.transformer)
    pipe.transformer.fuse_lora()


def by_leaves(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def by_groups(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device=CPU)


def layerwise(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


def fused_qkv(pipe: Any) -> None:
    pipe.transformer.fuse_qkv_projections()


def math_attention(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("_native_math")


def shared(pipe: Any) -> None:
    """Another pipeline with the same parts, which samples by a plan of its own until the pipeline is forgotten."""
    other = type(pipe)(**pipe.components)
    pipe.other = fc.apply(other, fc.fora(3)).__enter__()


def _without(package: str) -> str:
    return "" if find_spec(package) else f"{package} is not installed where the table was made"


COMBINATIONS: Mapping[str, Combination] = {
    "nothing": Combination(),
    "LoRA, loaded": Combination(prepare=lora),
    "LoRA, switched": Combination(prepare=switched_lora),
    "LoRA, fused": Combination(prepare=fused_lora),
    "group offload by leaves": Combination(prepare=by_leaves),
    "group offload by blocks": Combination(prepare=by_groups),
    "model offload": Combination(prepare=model_offload),
    "layerwise casting": Combination(prepare=layerwise),
    "torchao int8": Combination(untested=_without("torchao") or "no case is written yet"),
    "bitsandbytes": Combination(untested=_without("bitsandbytes") or "no case is written yet"),
    "torch.compile": Combination(untested="by branches it is tested in `tests/runtime/test_graphs.py`"),
    "fused QKV": Combination(prepare=fused_qkv),
    "attention backend": Combination(prepare=math_attention),
    "distilled guidance": Combination(),
    "true guidance": Combination(variant="guided"),
    "guidance in two calls": Combination("WanPipeline", variant="guided"),
    "PAG": Combination("StableDiffusion3PAGPipeline"),
    "skip-layer guidance": Combination(untested="by branches it is tested in `tests/runtime/test_beside.py`"),
    "ControlNet": Combination("FluxControlNetPipeline"),
    "ControlNet-Union": Combination(untested="no small builder is written yet"),
    "IP-Adapter": Combination(untested="no small builder is written yet"),
    "image to image": Combination("FluxImg2ImgPipeline"),
    "inpaint": Combination("FluxInpaintPipeline"),
    "Fill": Combination("FluxFillPipeline"),
    "Kontext": Combination("FluxKontextPipeline"),
    "Edit": Combination("QwenImageEditPipeline"),
    "several images a prompt": Combination(variant="batch of two"),
    "masked texts": Combination("QwenImagePipeline"),
    "two pipelines on one transformer": Combination(prepare=shared),
    "context parallelism": Combination(untested="it needs several processes"),
}
"""By what a user would call it."""


def cells(names: Sequence[str] = tuple(COMBINATIONS)) -> Iterator[dict[str, str]]:
    """The verdict of every combination at every level."""
    for name in names:
        for level in LEVELS:
            verdict, reason = cell(COMBINATIONS[name], level)
            yield {"combination": name, "pipeline": COMBINATIONS[name].pipeline, "level": level, "verdict": verdict,
                   "reason": reason}  # fmt: skip


def cell(combination: Combination, level: str) -> tuple[str, str]:
    """The verdict of a combination at a level, and its reason."""
    if combination.untested:
        return "untested", combination.untested
    with attention_backend(NATIVE):  # a model's set_attention_backend sets it for the whole process as well
        return _tested(combination, level)


def _tested(combination: Combination, level: str) -> tuple[str, str]:
    subject = combination.subject()
    bare = outputs(subject)
    try:
        faults = list(_faults(subject, level, bare, combination.tolerance))
    except ForecacheError as error:
        verdict, faults = "refused", [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
    else:
        verdict = "WRONG" if faults else "works"
    if distance(outputs(subject), bare) > combination.tolerance:
        return "WRONG", "(d) something is left behind"
    if (other := getattr(subject.pipe, "other", None)) is not None:
        other.close()
    return verdict, "; ".join(faults)


def _faults(subject: Subject, level: Any, bare: list[Tensor], tolerance: float) -> Iterator[str]:
    grid = fc.grid(subject.pipe, subject.steps, level=level)
    computed, _ = planned(subject, fc.fora(1).plan(grid))
    if (far := distance(computed, bare)) > tolerance:
        yield f"(a) computing everything differs by {far:.1e}"
    plan = fc.fora(2).plan(grid)
    ours, stats = planned(subject, plan)
    kind = type(subject.models[0]).__name__
    sites = {"branches": BY_BRANCHES[kind], "blocks": BY_BLOCKS[kind], "stack": (Whole(BY_BLOCKS[kind]),)}
    with fora(subject.models, sites[level]) as run:
        theirs = outputs(subject)
    effect, far = distance(theirs, bare), distance(ours, theirs)
    if not effect > 0:
        yield "(b) reuse changes nothing, so that the check is empty"
    if not far <= ROUNDING * effect:
        yield f"(b) FORA is {far:.1e} from the hand-written one; reuse changes {effect:.1e}"
    if stats.skipped == 0 or (stats.computed, stats.skipped) != (run.computed, run.reused):
        yield f"(c) {stats.computed} computed and {stats.skipped} skipped; by hand {run.computed} and {run.reused}"
    if distance(planned(subject, plan)[0], ours) > tolerance:
        yield "(c) a second run differs"


def planned(subject: Subject, plan: fc.Plan | None) -> tuple[list[Tensor], Any]:
    """What a run under a plan gives out, and its statistics."""
    with fc.apply(subject.pipe, plan) if plan is not None else nullcontext() as session:
        result = outputs(subject)
    return result, session.stats if session is not None else None


@torch.no_grad()
def outputs(subject: Subject) -> list[Tensor]:
    """What a run gives out, as tensors."""
    torch.manual_seed(0)
    np.random.seed(0)
    return list(_tensors(subject.sample()))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach().double().clone()
    elif isinstance(value, (np.ndarray, Image.Image)):
        yield torch.from_numpy(np.array(value)).double()
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two runs' outputs."""
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
