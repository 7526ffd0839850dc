"""`forecache compare`."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import torch
import typer

from forecache.cli.terminal import app, say
from forecache.compare.choices import BUNDLED
from forecache.compare.comparer import Comparer
from forecache.errors import InputError, MissingExtraError


@app.command("compare")
def compare_command(
    model: Annotated[
        list[str] | None, typer.Option(help="A model that may be picked, beside digits and digits-text; repeatable.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the page [the first free one from 7860].")
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in, without any password.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
) -> None:
    """Open a page on which plans are picked and seen: images with a cache and without, PSNR, time, MACs, the plan file.

    It is served by this machine, for this machine, and fetches nothing. Ctrl-C ends it.

    Example: `forecache compare`

    Example: `forecache compare --model facebook/DiT-XL-2-256 --device cuda --port 8000 --no-open`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    comparer = Comparer([*(model or ()), *BUNDLED], device, dtype)
    with tempfile.TemporaryDirectory(prefix="forecache-") as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)  # where Gradio puts what can be downloaded
        try:
            from forecache.compare import page
        except ImportError as error:
            raise MissingExtraError(error.name or "gradio", "page", "The comparison page") from error
        say(f"Loading {comparer.models[0]} ...")
        comparer.source(comparer.models[0])
        try:
            shown, address = page.serve(comparer, Path(folder), host, port, browser=browser)
        except OSError as error:
            raise InputError(f"The page cannot be served at {host}, port {port or 'from 7860 on'}: {error}") from error
        say(f"{address}\nCtrl-C ends it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("Ended.")
        finally:
            shown.close(verbose=False)
