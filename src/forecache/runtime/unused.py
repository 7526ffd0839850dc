"""The warning about a session that was made and never entered, so that nothing was faster."""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from types import FrameType

PACKAGE = __name__.partition(".")[0]
LOGGER = logging.getLogger(PACKAGE)
SENTENCE = r"A session on \S+ was never entered"
"""Pattern of the warning, for filters."""


def warning_if_unused(session: object, model: str) -> weakref.finalize:
    """A finalizer of the session that warns, with the line that made it; ``detach()`` it when the session is entered.

    model: name of the model, for the sentence

    Python hides ResourceWarning by default, so that the warning goes to the log as well, as every session that did
    nothing is a mistake.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame = frame.f_back
    place = ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    return weakref.finalize(session, _warn, model, *place)


def _warn(model: str, filename: str, line: int) -> None:
    text = (
        f"A session on {model} was never entered, so it did nothing: write `with forecache.apply(pipe, ...):` around "
        "the calls of the pipeline, or forecache.enable(pipe, ...) instead."
    )
    LOGGER.warning("%s:%d: %s", filename, line, text)
    warnings.warn_explicit(text, ResourceWarning, filename, line)
