"""Pipelines of FLUX: how each is built and called."""

from __future__ import annotations

from pipelines.build import Case
from pipelines.pools import IMAGE

CONTROL = {"in_channels": 32, "out_channels": 16}
TRUE = {"true_cfg_scale": 2.5}

CASES: dict[str, Case] = {
    "FluxPipeline": Case(IMAGE),
    "FluxImg2ImgPipeline": Case(IMAGE),
    "FluxInpaintPipeline": Case(IMAGE),
    "FluxKontextPipeline": Case(IMAGE, {"max_area": 64 * 64}),
    "FluxKontextInpaintPipeline": Case(IMAGE, {"max_area": 64 * 64}),
    "FluxControlPipeline": Case(IMAGE, config=CONTROL),
    "FluxControlImg2ImgPipeline": Case(IMAGE, config=CONTROL),
    "FluxControlInpaintPipeline": Case(IMAGE, config={"in_channels": 32 + 16, "out_channels": 16}),
    "FluxFillPipeline": Case(IMAGE, config={"in_channels": 16 + 16 + 256, "out_channels": 16}),
    "FluxControlNetPipeline": Case(IMAGE),
    "FluxControlNetImg2ImgPipeline": Case(IMAGE),
    "FluxControlNetInpaintPipeline": Case(IMAGE),
    "VisualClozeGenerationPipeline": Case(IMAGE, config={"in_channels": 16 + 16 + 256, "out_channels": 16}),
    "VisualClozePipeline": Case(IMAGE, config={"in_channels": 16 + 16 + 256, "out_channels": 16}),
    "Flux2Pipeline": Case(IMAGE),
    "Flux2KleinPipeline": Case(IMAGE),
    "Flux2KleinInpaintPipeline": Case(IMAGE),
    "Flux2KleinKVPipeline": Case(IMAGE),
    "FluxPriorReduxPipeline": Case(not_built="makes embeddings for FluxPipeline, and samples nothing"),
}
