"""The options of every command that samples from a pipeline: device, dtype, offload, size, frames, negative prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from forecache.cli.options import expanded
from forecache.cli.parameters import Device, Dtype
from forecache.sampling.call_options import CallOptions
from forecache.sampling.sources import Source, makes_videos, own_guidance, with_options
from forecache.zoo.open import OFFLOADS, open_source

PANEL = "Options of the pipeline"


@dataclass(frozen=True)
class PipelineOptions:
    """The pipeline's options of a command, as typed.

    device: where the model runs, or ``auto``
    dtype: of its weights, or ``auto``
    offload: one of `zoo.open.OFFLOADS`
    calls: options of every call
    """

    device: str
    dtype: str
    offload: str
    calls: CallOptions

    def open(self, model: str) -> Source:
        """The model of a name with these options. Raises InputError for options that its pipeline does not have."""
        return with_options(open_source(model, self.device, self.dtype, self.offload), self.calls)


def takes_pipeline_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a pipeline in the place of its parameter ``pipeline``."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    return expanded(command, own, "pipeline", _parameters(), _options)


def guidance_of(source: Source, guidance: float | None) -> float:
    """The guidance scale that was typed, else the source's own."""
    return own_guidance(source) if guidance is None else guidance


def nouns(source: Source) -> str:
    """The plural of what a source makes: images or videos."""
    return "videos" if makes_videos(source) else "images"


def _options(values: dict[str, Any]) -> PipelineOptions:
    device, dtype, offload = (values.pop(name) for name in ("device", "dtype", "offload"))
    return PipelineOptions(device, dtype, offload, CallOptions(**values))


def _parameters() -> dict[str, inspect.Parameter]:
    """The options, by name of the parameter. Those of a call are refused where the pipeline's call has no such one."""
    names: Any = Literal[*OFFLOADS]
    offload = "Keep weights on the CPU while a GPU does not need them: by model or by leaves (group)."
    return {
        "height": _option("height", int | None, None, min=1, help="Height in pixels [the pipeline's]."),
        "width": _option("width", int | None, None, min=1, help="Width in pixels [the pipeline's]."),
        "frames": _option("frames", int | None, None, min=1, help="Frames of a video [the pipeline's]."),
        "negative_prompt": _option("negative_prompt", str | None, None, help="A text that guidance leads away from."),
        "device": _parameter("device", Device, "auto"),
        "dtype": _parameter("dtype", Dtype, "auto"),
        "offload": _option("offload", names, "none", help=offload),
    }


def _option(name: str, kind: Any, default: Any, **option: Any) -> inspect.Parameter:
    return _parameter(name, Annotated[kind, typer.Option(rich_help_panel=PANEL, **option)], default)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
