"""The comparison page, with Gradio: what is picked goes to a `Studio`, and what that makes is shown.

Everything comes from this machine: no analytics, no fonts or scripts from elsewhere, no public link; a content security
policy keeps it so. Needs the extra ``page``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from forecache.compare.choices import Choices
from forecache.compare.controls import USUAL, Controls
from forecache.compare.pairs import GAIN, Pair, Studio
from forecache.errors import ForecacheError
from forecache.plan.plan import Plan
from forecache.report.figures import tile
from forecache.report.html.markup import Html, tag

CSS = Path(__file__).parent / "page.css"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'"
)


class _Local:
    """Tells browsers that nothing of the page comes from, or goes to, anywhere else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self._app(scope, receive, answer if scope["type"] == "http" else send)


def build(studio: Studio, folder: Path) -> gr.Blocks:
    """The page of a studio. folder: where the plans that can be downloaded lie."""
    with gr.Blocks(title="forecache compare", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(tag("h1", "The same images, with a cache and without"))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=300):
                controls = Controls(studio.models)
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    go = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
                    cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
                shown = _results()
        go.click(
            _compares(studio, controls, folder),
            inputs=controls.all,
            outputs=shown,
            concurrency_limit=None,  # the studio has the queue: it can stop what waits in it and what runs
            show_progress_on=shown[:1],
            api_visibility="private",
        )
        cancel.click(_cancels(studio), outputs=shown[:1], queue=False, show_progress="hidden", api_visibility="private")
        page.unload(_leaves(studio))
    return page.queue()


def _results() -> list[Any]:
    """Where a pair is shown, in the order of what `_compares` gives."""
    said = gr.HTML(tag("p", "Pick a plan, then Compare."), elem_id="said", min_height=72)
    pictures = []
    with gr.Row(elem_id="pictures"):
        names = {"without": "Without a cache", "with": "With the plan", "difference": f"Difference x {GAIN}"}
        for key, name in names.items():
            with gr.Column(min_width=150):
                gr.HTML(tag("h2", name))
                pictures.append(
                    gr.Image(
                        elem_id=key, format="png", interactive=False, show_label=False, buttons=["fullscreen"],
                        alt_text=name,
                    )
                )  # fmt: skip
    figures = gr.HTML(elem_id="figures")
    with gr.Row():
        plan = gr.DownloadButton("Download the plan", interactive=False, elem_id="plan")
        constants = gr.DownloadButton("Download its constants", visible=False, elem_id="constants")
    cells = gr.HTML(elem_id="cells", visible=False)
    command = gr.Code(
        label="The same on the command line", language="shell", interactive=False, lines=1, wrap_lines=True,
        show_line_numbers=False, elem_id="command", visible=False,
    )  # fmt: skip
    return [said, *pictures, figures, plan, constants, cells, command]


def _compares(studio: Studio, controls: Controls, folder: Path) -> Any:
    def compare(picked: dict[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        who = request.session_hash or ""

        def step(done: int, total: int) -> None:
            progress((done, total), desc="without a cache" if 2 * done <= total else "with the plan", unit="steps")

        def wait(before: int) -> None:
            progress((0, 2 * USUAL.steps), desc=f"waiting for the model, {before} before you")

        progress((0, 2 * USUAL.steps), desc="waiting for the model")
        try:
            pair = studio.make(Choices(**controls.values(picked)), who, step, wait)
        except ForecacheError as error:
            raise gr.Error(str(error), duration=None, print_exception=False, title="Not like this") from error
        return [tag("p", "Cancelled."), *[gr.skip()] * 8] if pair is None else _shown(pair, folder / _name(who))

    return compare


def _cancels(studio: Studio) -> Any:
    def cancel(request: gr.Request) -> Any:
        return tag("p", "Cancelled.") if studio.stop(request.session_hash or "") else gr.skip()

    return cancel


def _leaves(studio: Studio) -> Any:
    def leave(request: gr.Request) -> None:
        studio.stop(request.session_hash or "")

    return leave


def _name(who: str) -> str:
    return hashlib.sha256(who.encode()).hexdigest()[:16]


def _shown(pair: Pair, folder: Path) -> list[Any]:
    """What the page shows of a pair, in the order of `_results`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, *constants = pair.save(folder)
    method = pair.plan.provenance.get("method", "plan")
    return [
        tag("p", method),
        *(picture(images) for images in (pair.uncached.images, pair.cached.images, pair.difference)),
        table(pair),
        gr.DownloadButton(value=plan, interactive=True),
        gr.DownloadButton(value=constants[0] if constants else None, visible=bool(constants)),
        gr.HTML(cells(pair.plan), visible=True),
        gr.Code(pair.command, visible=True),
    ]


def picture(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] as one of 8 bits, each pixel a square that can be seen."""
    pixels_HWC = (tile(images) * 255).round().astype(np.uint8)
    times = max(1, 480 // pixels_HWC.shape[1])
    return np.repeat(pixels_HWC.repeat(times, 0).repeat(times, 1), 3 // pixels_HWC.shape[2], 2)


def table(pair: Pair) -> Html:
    """The figures of a pair."""
    heads = [tag("th", name, scope="col") for name in ("", "without a cache", "with the plan", "")]
    rows = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", value) for value in values))
        for name, *values in pair.figures()
    ]
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)), class_="scroll")


def cells(plan: Plan) -> Html:
    """A plan, site by site and step by step."""
    return tag("details", tag("summary", "What every site does in every step"), tag("pre", plan.show(), tabindex=0))


def serve(studio: Studio, folder: Path, host: str, port: int | None, *, browser: bool = False) -> tuple[gr.Blocks, str]:
    """Start the page in threads of its own; gives it, to be closed, and its address.

    folder: where plans lie until they are downloaded. port: the first free one from 7860 on where there is none. Raises
    OSError if the port is taken.
    """
    page = build(studio, folder)
    fonts: Mapping[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=["settings"],
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(_Local)]},
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css_paths=CSS,
    )
    return page, address
