"""The comparison page, built with Gradio: it sends the selection to a `Comparer` and displays the `Comparison`.

The page loads nothing from other machines: no analytics, no remote fonts or scripts, no public link. A content security
policy enforces it. Needs the extra ``page``.
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

from forecache.compare.comparer import GAIN, Comparer, Comparison
from forecache.compare.controls import USUAL, Controls
from forecache.errors import ForecacheError
from forecache.plan.plan import Plan
from forecache.report.figures import tile
from forecache.report.html.markup import Html, tag

CSS = Path(__file__).parent / "page.css"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'"
)
CANCELLED = "Cancelled. Results below, if there are any, are of the comparison before."
CHANGED = "The selection has changed: the results below are of the comparison before. Press Compare."


class _SecurityPolicy:
    """Middleware that adds the content security policy to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def build(comparer: Comparer, folder: Path) -> gr.Blocks:
    """The page. folder: where plans are kept for download."""
    with gr.Blocks(title="forecache compare", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(tag("h1", "The same images, with a cache and without"))
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=300):
                controls = Controls(comparer.models)
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    go = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
                    cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
                results = _results()
        go.click(
            _compares(comparer, controls, folder),
            inputs=controls.all,
            outputs=results,
            concurrency_limit=None,  # the comparer has its own queue, in which waiting comparisons can be cancelled
            show_progress_on=results[:1],
            api_visibility="private",
        )
        cancel.click(
            _cancels(comparer), outputs=results[:1], queue=False, show_progress="hidden", api_visibility="private"
        )
        gr.on(
            [control.change for control in controls.all],
            _marks_as_old,
            inputs=results[4:5],
            outputs=results[:1],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        page.unload(_leaves(comparer))
    return page.queue()


def _results() -> list[Any]:
    """The components that display a comparison, in the order of what `_compares` returns."""
    status = gr.HTML(tag("p", "Select a plan, then press Compare."), elem_id="said", min_height=72)
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
    return [status, *pictures, figures, plan, constants, cells, command]


def _compares(comparer: Comparer, controls: Controls, folder: Path) -> Any:
    """The handler of the button Compare."""

    def compare(values: dict[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        user = request.session_hash or ""

        def step(finished: int, total: int) -> None:
            run = "without a cache" if 2 * finished <= total else "with the plan"
            progress((finished, total), desc=run, unit="steps")

        def wait(before: int) -> None:
            progress((0, 2 * USUAL.steps), desc=f"waiting for the model, {before} before you")

        progress((0, 2 * USUAL.steps), desc="waiting for the model")
        try:
            comparison = comparer.compare(controls.selection(values), user, step, wait)
        except ForecacheError as error:
            title = "This plan cannot be run"
            raise gr.Error(str(error), duration=20, print_exception=False, title=title) from error
        if comparison is None:
            return [tag("p", CANCELLED), *[gr.skip()] * 8]
        return _shown(comparison, folder / _folder_name(user))

    return compare


def _cancels(comparer: Comparer) -> Any:
    """The handler of the button Cancel."""

    def cancel(request: gr.Request) -> Any:
        return tag("p", CANCELLED) if comparer.stop(request.session_hash or "") else gr.skip()

    return cancel


def _marks_as_old(figures: str | None) -> Any:
    """The status after a change of any control: results that are there are of another selection."""
    return tag("p", CHANGED) if figures else gr.skip()


def _leaves(comparer: Comparer) -> Any:
    """The handler of a page that is closed: nobody waits for its comparison any more."""

    def leave(request: gr.Request) -> None:
        comparer.stop(request.session_hash or "")

    return leave


def _folder_name(user: str) -> str:
    return hashlib.sha256(user.encode()).hexdigest()[:16]


def _shown(comparison: Comparison, folder: Path) -> list[Any]:
    """The values that display a comparison, in the order of `_results`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan, *constants = comparison.save(folder)
    method = comparison.plan.provenance.get("method", "plan")
    images = (comparison.uncached.images, comparison.cached.images, comparison.difference)
    return [
        tag("p", method),
        *map(picture, images),
        table(comparison),
        gr.DownloadButton(value=plan, interactive=True),
        gr.DownloadButton(value=constants[0] if constants else None, visible=bool(constants)),
        gr.HTML(cells(comparison.ran), visible=True),
        gr.Code(comparison.command, visible=True),
    ]


def picture(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] as one 8-bit picture (H', W', 3), small images enlarged by whole pixels."""
    pixels_HWC = (tile(images) * 255).round().astype(np.uint8)
    scale = max(1, 480 // pixels_HWC.shape[1])
    return np.repeat(pixels_HWC.repeat(scale, 0).repeat(scale, 1), 3 // pixels_HWC.shape[2], 2)


def table(comparison: Comparison) -> Html:
    """The results of a comparison as a table."""
    heads = [tag("th", name, scope="col") for name in ("", "without a cache", "with the plan", "")]
    rows = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", value) for value in values))
        for name, *values in comparison.figures()
    ]
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows)), class_="scroll")


def cells(plan: Plan) -> Html:
    """The plan as text, site by site and step by step, folded."""
    return tag("details", tag("summary", "What every site does in every step"), tag("pre", plan.show(), tabindex=0))


def serve(
    comparer: Comparer, folder: Path, host: str, port: int | None, *, browser: bool = False
) -> tuple[gr.Blocks, str]:
    """Start the page in background threads; returns the page, which the caller closes, and its address.

    folder: where plans are kept for download.
    port: None takes the first free one from 7860 on.
    browser: open the page in a browser.

    Raises OSError if the port is taken.
    """
    page = build(comparer, folder)
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
        app_kwargs={"middleware": [Middleware(_SecurityPolicy)]},
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css_paths=CSS,
    )
    return page, address
