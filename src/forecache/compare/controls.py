"""What can be picked on the page; a control that the base and the correction do not use is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from forecache.compare.choices import BASES, CORRECTIONS, NONE, ROUTERS, USES, Choices, bases, corrections
from forecache.zoo.bundled import models, record

USUAL = Choices()
IMAGES: Mapping[str, tuple[str, str]] = {name: (record(name).ask, record(name).example) for name in models()}
OTHER = ("Classes as 207,360, or texts, one a line", "207,360")
GUIDANCE = {name: record(name).guidance for name in models()}
SLIDERS: Mapping[str, tuple[float, float, float, str]] = {
    "interval": (1, 10, 1, "Interval"),
    "change": (0, 1, 0.01, "Reused below this change"),
    "eta": (0, 2, 0.05, "eta"),
    "order": (0, 4, 1, "Order"),
    "share": (0, 1, 0.01, "Share of tokens computed"),
}
"""Least, most, step and label."""


class Controls:
    """The controls, made where Gradio builds a page, and what they say."""

    def __init__(self, models: Sequence[str]) -> None:
        first = models[0]
        label, images = IMAGES.get(first, OTHER)
        model = gr.Dropdown(list(models), value=first, label="Model", elem_id="model")
        asked = gr.Textbox(images, label=label, lines=1, max_lines=6, elem_id="images")
        base = gr.Dropdown(_named(BASES, bases(first)), value=USUAL.base, label="Base", elem_id="base")
        of_base = {name: _optional(name) for each in BASES for name in USES[each]}
        named = _named(CORRECTIONS, corrections(first))
        correction = gr.Dropdown(named, value=USUAL.correction, label="Correction", elem_id="correction")
        of_correction = {name: _optional(name) for name in dict.fromkeys(n for each in CORRECTIONS for n in USES[each])}
        with gr.Row():
            steps = gr.Number(USUAL.steps, precision=0, minimum=2, label="Steps", elem_id="steps", min_width=80)
            scale = gr.Number(GUIDANCE.get(first, 1.5), minimum=1, label="Guidance", elem_id="guidance", min_width=80)
            seed = gr.Number(USUAL.seed, precision=0, minimum=0, label="Seed", elem_id="seed", min_width=80)
        self._optional = of_base | of_correction
        self._by_name: dict[str, Any] = {"model": model, "images": asked, "base": base, "correction": correction}
        self._by_name |= {**self._optional, "steps": steps, "guidance": scale, "seed": seed}
        self._react()

    @property
    def all(self) -> set[Any]:
        """Every control."""
        return set(self._by_name.values())

    def values(self, picked: Mapping[Any, Any]) -> dict[str, Any]:
        """What was picked, by name."""
        return {name: picked[control] for name, control in self._by_name.items()}

    def _react(self) -> None:
        """Show what the base and the correction use, and what the model has."""
        quietly: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        own = self._by_name
        pair = [own["base"], own["correction"]]
        optional = list(self._optional.values())
        gr.on([each.change for each in pair], self._shown, inputs=pair, outputs=optional, **quietly)
        changed = [own[name] for name in ("images", "base", "correction", "guidance")]
        own["model"].change(_of_model, inputs=[own["model"], *pair], outputs=changed, **quietly)
        own["form"].change(_strength, inputs=own["form"], outputs=own["theta"], **quietly)
        own["correction"].change(
            _apart, inputs=[own["correction"], own["interval"]], outputs=own["interval"], **quietly
        )

    def _shown(self, base: str, correction: str) -> list[Any]:
        used = {*USES[base], *USES[correction]}
        return [gr.update(visible=name in used) for name in self._optional]


def _optional(name: str) -> Any:
    """The control that a base or a correction brings, shown where it is picked."""
    common: dict[str, Any] = {"elem_id": name, "visible": name in {*USES[USUAL.base], *USES[USUAL.correction]}}
    value = getattr(USUAL, name)
    match name:
        case "by_hand":
            return gr.Textbox("1,3,5,7,9,11,13,15,17,19", label="Skipped steps, or a pattern: #.#.", **common)
        case "router":
            return gr.Dropdown(list(ROUTERS), value=value, label="Router", **common)
        case "form":
            return gr.Radio(["relative", "additive"], value=value, label="Form", **common)
        case "theta":
            return gr.Number(value, label="theta: strength", **common)
    least, most, step, label = SLIDERS[name]
    return gr.Slider(least, most, value, step=step, label=label, **common)


def _strength(form: str) -> float:
    """The usual theta of a form of EOC."""
    return 1.0 if form == "additive" else 0.01


def _apart(correction: str, interval: int) -> int:
    """ProCache computes some tokens in every second step of a gap, so a gap has to have two."""
    return max(interval, 4) if correction == "procache" else interval


def _of_model(model: str, base: str, correction: str) -> list[Any]:
    """What the model is asked for, and what there is for it."""
    label, images = IMAGES.get(model, OTHER)
    known, corrected = bases(model), corrections(model)
    return [
        gr.update(label=label, value=images),
        gr.update(choices=_named(BASES, known), value=base if base in known else USUAL.base),
        gr.update(choices=_named(CORRECTIONS, corrected), value=correction if correction in corrected else NONE),
        GUIDANCE.get(model, 1.5),
    ]


def _named(names: Mapping[str, str], keys: Sequence[str]) -> list[tuple[str, str]]:
    return [(names[key], key) for key in keys]
