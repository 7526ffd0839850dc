"""Every pipeline that has a transformer, and how it is built and called."""

from __future__ import annotations

from pipelines import cases_audio, cases_flux, cases_image, cases_video
from pipelines.build import Case

CASES: dict[str, Case] = {**cases_image.CASES, **cases_flux.CASES, **cases_video.CASES, **cases_audio.CASES}
