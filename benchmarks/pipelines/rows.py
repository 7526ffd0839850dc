"""The rows of a pipeline: one a variant of its call."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import diffusers
import torch

from pipelines import build, transformers
from pipelines.cases import CASES
from pipelines.check import Row, check, does_not_run
from pipelines.walk import pipeline_classes

NAMES = ("transformer", "prior", "decoder")


def transformer_of(kind: type) -> str:
    """The class of a pipeline's transformer, by its signature; "" if it has none."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in NAMES:
            for word in build.kinds(parameter.annotation):
                if word in transformers.classes():
                    return word
    return ""


def rows(name: str, variants: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of the pipeline of this name."""
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("forecache").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    kind, case = pipeline_classes()[name], CASES.get(name)
    transformer = transformer_of(kind)
    gc.collect()
    gc.freeze()  # what is there before the pipeline is not counted
    for variant in variants or build.VARIANTS:
        row = Row(name, variant, transformer=transformer)
        if not transformer:
            row.verdict, row.reason = "no transformer", "no class of diffusers.models.transformers"
        elif case is None:
            row.verdict, row.reason = "not built", "no builder is written for it yet"
        elif case.not_built:
            row.verdict, row.reason = "not built", case.not_built
        else:
            _sampled(row, case)
        yield row
        if row.verdict == "no transformer":
            return


def _sampled(row: Row, case: build.Case) -> None:
    if row.variant == "guided" and not _guided(row.name, case):
        row.verdict, row.reason = "none", "has no guidance"
        return
    for attempt in range(len(build.WAYS) if row.variant == "batch of two" and case.two is None else 1):
        try:
            subject: Any = build.subject(row.name, case, row.variant, attempt)
        except Exception as error:
            row.verdict, row.reason = "not built", does_not_run(error)
            return
        row.reason = ""
        check(subject, row)
        if row.verdict != "not built":
            return


def _guided(name: str, case: build.Case) -> bool:
    if case.guided is not None:
        return bool(case.guided)
    return bool(build.guidance(set(inspect.signature(pipeline_classes()[name].__call__).parameters)))
