"""The controls of the comparison page; those of a method are made from its parameters, and shown while it is picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from forecache.compare.selection import NONE, ROUTERS, Selection, bases, controls, corrections, limits
from forecache.methods.flags import Flag
from forecache.zoo.bundled import models, record

USUAL = Selection()
IMAGES: Mapping[str, tuple[str, str]] = {name: (record(name).ask, record(name).example) for name in models()}
OTHER = ("Classes as 207,360, or texts, one a line", "207,360")
GUIDANCE = {name: record(name).guidance for name in models()}
STARTS: Mapping[str, Any] = {"skip": "1,3,5,7,9,11,13,15,17,19", "router": ROUTERS[0]}
"""Values that controls without a usual value begin with, by name of the flag."""
LONG_GAPS = ("procache", "selective")
"""Corrections that compute some tokens in every second step of a gap, so that a gap needs two steps."""


class Controls:
    """The controls of the page, made where Gradio builds it.

    names: names of the models that can be picked
    """

    def __init__(self, names: Sequence[str]) -> None:
        first = names[0]
        label, images = IMAGES.get(first, OTHER)
        model = gr.Dropdown(list(names), value=first, label="Model", elem_id="model")
        asked = gr.Textbox(images, label=label, lines=1, max_lines=6, elem_id="images")
        base = gr.Dropdown(_named(bases(first)), value=USUAL.base, label="Base", elem_id="base")
        known = {name: flag for model_name in names for name, flag in _all_controls(model_name).items()}
        of_bases = {name for model_name in names for base_name in bases(model_name) for name in controls(base_name)}
        self._of_methods: dict[str, Any] = {name: _control(flag) for name, flag in known.items() if name in of_bases}
        correction = gr.Dropdown(
            _named(corrections(first)), value=USUAL.correction, label="Correction", elem_id="correction"
        )
        self._of_methods |= {name: _control(flag) for name, flag in known.items() if name not in of_bases}
        with gr.Row():
            steps = gr.Number(USUAL.steps, precision=0, minimum=2, label="Steps", elem_id="steps", min_width=80)
            scale = gr.Number(GUIDANCE.get(first, 1.5), minimum=1, label="Guidance", elem_id="guidance", min_width=80)
            seed = gr.Number(USUAL.seed, precision=0, minimum=0, label="Seed", elem_id="seed", min_width=80)
        self._own: dict[str, Any] = {"model": model, "images": asked, "base": base, "correction": correction}
        self._own |= {"steps": steps, "guidance": scale, "seed": seed}
        self._react()

    @property
    def all(self) -> set[Any]:
        """Every control."""
        return {*self._own.values(), *self._of_methods.values()}

    def selection(self, values: Mapping[Any, Any]) -> Selection:
        """The selection of the values of all controls. Raises InputError for values that cannot be picked."""
        own = {name: values[control] for name, control in self._own.items()}
        return Selection(**own, values={name: values[control] for name, control in self._of_methods.items()})

    def _react(self) -> None:
        """Show the controls of the base and of the correction, and the methods that the model has."""
        quietly: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        own = self._own
        pair = [own["base"], own["correction"]]
        outputs = list(self._of_methods.values())
        gr.on([dropdown.change for dropdown in pair], self._visible, inputs=pair, outputs=outputs, **quietly)
        changed = [own[name] for name in ("images", "base", "correction", "guidance")]
        own["model"].change(_of_model, inputs=[own["model"], *pair], outputs=changed, **quietly)
        interval = self._of_methods["interval"]
        own["correction"].change(_longer, inputs=[own["correction"], interval], outputs=interval, **quietly)

    def _visible(self, base: str, correction: str) -> list[Any]:
        shown = controls(base) | controls(correction)
        return [_update(shown.get(name), base, correction) for name in self._of_methods]


def _all_controls(model: str) -> dict[str, Flag]:
    """The flags of every method that a model has, by name."""
    return {name: flag for method in (*bases(model), *corrections(model)) for name, flag in controls(method).items()}


def _control(flag: Flag) -> Any:
    """The control of a flag, shown while a method that has it is picked."""
    parameter, name = flag.parameter, flag.name
    value = STARTS.get(name, parameter.start)
    common: dict[str, Any] = {"elem_id": name, "visible": name in USUAL.controls}
    common |= {"label": name.replace("_", " ").capitalize(), "info": parameter.help.replace("`", "")}
    if parameter.kind == "router":
        return gr.Dropdown(list(ROUTERS), value=value, **common)
    if parameter.kind == "choice":
        words = [("as usual", ""), *((str(word), word) for word in parameter.choices)]
        return (
            gr.Dropdown(words, value=value or "", **common)
            if value is None
            else gr.Radio(words[1:], value=value, **common)
        )
    if parameter.kind == "switch":
        return gr.Checkbox(value, **common)
    if parameter.range.slider is not None and value is not None:
        least, most, step = parameter.range.slider
        return gr.Slider(least, most, value, step=step, **common)
    if parameter.kind in ("whole", "number", "block"):
        least, most = limits(parameter)
        whole = {"precision": 0} if parameter.kind == "whole" else {}
        return gr.Number(value, minimum=least, maximum=most, **whole, **common)
    return gr.Textbox(value or "", **common)


def _update(flag: Flag | None, base: str, correction: str) -> Any:
    """Hides a control, or shows it: with the usual value of the method where others that share it have another."""
    if flag is None:
        return gr.update(visible=False)
    if flag.is_uniform:
        return gr.update(visible=True)
    owner = correction if correction in flag.owners else base
    return gr.update(visible=True, value=flag.owners[owner].start)


def _longer(correction: str, interval: int) -> int:
    """An interval whose gaps have two steps, for a correction that needs them."""
    return max(interval, 4) if correction in LONG_GAPS else interval


def _of_model(model: str, base: str, correction: str) -> list[Any]:
    """Updates of the images, the base, the correction and the guidance for another model."""
    label, images = IMAGES.get(model, OTHER)
    known, corrected = bases(model), corrections(model)
    return [
        gr.update(label=label, value=images),
        gr.update(choices=_named(known), value=base if base in known else USUAL.base),
        gr.update(choices=_named(corrected), value=correction if correction in corrected else NONE),
        GUIDANCE.get(model, 1.5),
    ]


def _named(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(label, name) for name, label in labels.items()]
