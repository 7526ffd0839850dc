"""`forecache compare`."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import torch
import typer

from forecache import zoo
from forecache.cli.parameters import BUNDLED, Device, Dtype, Threads, names
from forecache.cli.terminal import app, say
from forecache.compare import Comparer
from forecache.errors import InputError, MissingExtraError


@app.command("compare")
def compare_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A model to choose from, beside {BUNDLED}; repeatable.", autocompletion=names(*zoo.models())
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the page [the first free one from 7860].")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    threads: Threads = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Open a page that shows images with a plan and without a cache, with PSNR, time, MACs and the plan file.

    This machine serves the page to itself, and the page loads nothing from elsewhere. Ctrl-C ends it.

    Example: `forecache compare`

    Example: `forecache compare --model facebook/DiT-XL-2-256 --device cuda --port 8000 --no-open`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    comparer = Comparer([*(model or ()), *zoo.models()], device, dtype)
    with tempfile.TemporaryDirectory(prefix="forecache-") as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)  # where Gradio keeps the files for download
        try:
            from forecache.compare import page
        except ImportError as error:
            raise MissingExtraError(error.name or "gradio", "page", "The comparison page") from error
        say(f"Loading {comparer.models[0]} ...")
        comparer.source(comparer.models[0])
        try:
            server, address = page.serve(comparer, Path(folder), host, port, browser=browser)
        except OSError as error:
            raise InputError(f"The page cannot be served at {host}, port {port or 'from 7860 on'}: {error}") from error
        say(f"{address}\nCtrl-C ends it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("Ended.")
        finally:
            server.close(verbose=False)
