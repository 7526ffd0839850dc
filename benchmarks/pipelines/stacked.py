"""The checks of one transformer class at level stack, which needs no knowledge of the class.

A row is *right* if
(a) a plan that computes everything gives the bare run bit for bit,
(b) FORA at interval 2 skips all sites at every second step, gives other finite numbers than the bare run, and the same
    bits again,
(c) Taylor of order 1 is finite, holds as many bytes as `plan.cost` says, and runs as many MACs, where these are known,
(d) nothing is left behind.
How far FORA by stack is from FORA by blocks is told; both are the same but for rounding where the model does nothing
between its blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.errors import ForecacheError, InputError
from forecache.models.counting import first_call
from pipelines import check
from pipelines.check import Request, Row, Subject, WrongError
from pipelines.reference import counted


def stacked(subject: Subject, row: Row) -> None:
    """Fill the row in."""
    row.level = "stack"
    try:
        bare = check._run(subject)
        if not check._equal(bare, check._run(subject)):
            raise ValueError("two runs without a plan differ")
        with counted(subject.models) as counts:
            check._run(subject)
    except Exception as error:
        row.verdict, row.reason = "not built", check.does_not_run(error)
        return
    if not counts.calls or not all(torch.isfinite(part).all() for part in bare):
        row.verdict, row.reason = "not built", "no transformer was called, or the run of random weights is not finite"
        return
    before, tensors = check._state(subject), check._tensors()
    try:
        _planned(subject, row, bare)
    except ForecacheError as error:
        row.verdict, row.reason = "refused", check._sentence(error)
    except WrongError as wrong:
        row.verdict, row.reason = "WRONG", str(wrong)
    except Exception as error:
        row.verdict, row.reason = "WRONG", f"raises {check._sentence(error)}"
    else:
        row.verdict = "right"
    try:
        check._clean(subject, bare, before, tensors)
    except WrongError as wrong:
        row.verdict, row.reason = "WRONG", str(wrong)
    except Exception as error:
        row.verdict, row.reason = "WRONG", f"raises without a plan, {check._sentence(error)}"


def _planned(subject: Subject, row: Row, bare: list[torch.Tensor]) -> None:
    request = Request(subject.pipe, subject.steps)
    computed, _ = _sampled(subject, row, request, fc.fora(1))
    if not check._equal(computed, bare):
        raise WrongError(f"(a) a plan that computes everything is {check._distance(computed, bare):.1e} from no plan")
    ours, stats = _sampled(subject, row, request, fc.fora(2))
    again, _ = _sampled(subject, row, request, fc.fora(2))
    scale = check._distance(ours, bare)
    if not (stats.skipped and abs(stats.skipped - stats.computed) <= stats.computed // 2 and 0 < scale < float("inf")):
        raise WrongError(f"(b) {stats.skipped} sites skipped, {stats.computed} computed, samples change by {scale:.1e}")
    if not check._equal(ours, again):
        raise WrongError("(b) a second run of FORA differs")
    row.numbers = {"computed": stats.computed, "skipped": stats.skipped, "effect": scale}
    row.numbers["sites"] = len(_grid(request, "stack").sites)
    _counted(subject, row, request)
    try:
        by_blocks, _ = _sampled(subject, row, request, fc.fora(2), "blocks")
        row.numbers["from_blocks"] = check._distance(ours, by_blocks) / scale
    except ForecacheError:  # streams that are told by what is passed on, which no block alone shows
        pass


def _counted(subject: Subject, row: Row, request: Request) -> None:
    plan = fc.taylorseer(fc.fora(2), 1).plan(_grid(request, "stack"))
    model = subject.models[0]
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            check._run(subject)
    except Exception:  # attention that torch compiles, which its counter does not run through
        torch._dynamo.reset()
        return
    bare_flops = counter.get_total_flops()
    with (
        sdpa_kernel(SDPBackend.MATH),
        first_call(model) as calls,
        FlopCounterMode(display=False) as counter,
        fc.apply(request.target, plan, lanes=request.lanes) as session,
    ):
        if not all(torch.isfinite(part).all() for part in check._run(subject)):
            raise WrongError("(c) samples of Taylor 1 are not finite")
    if len(subject.models) > 1 or session.stats.calls != plan.num_steps:
        return  # several lanes or models, of which the cost says that of one
    try:
        cost = plan.cost(model, inputs=calls[0])
    except InputError:
        return
    held, flops = session.stats.peak_cache_bytes, counter.get_total_flops()
    if held != cost.cache_bytes:
        raise WrongError(f"(c) {held} bytes were held, and {cost.cache_bytes} said")
    saved, said = (bare_flops - flops) // 2, cost.macs_uncached - cost.macs
    if saved != said:
        raise WrongError(f"(c) {saved} MACs were saved, and {said} said")
    row.numbers |= {"bytes": held, "macs_saved": saved}


def _grid(request: Request, level: Any) -> fc.Grid:
    return fc.grid(request.target, request.steps, level=level)


def _sampled(
    subject: Subject, row: Row, request: Request, method: fc.Method, level: Any = "stack"
) -> tuple[list[torch.Tensor], fc.runtime.Stats]:
    """A run under a method; what an error advises is done, as a user would, up to four times."""
    for attempt in range(5):
        try:
            plan = method.plan(_grid(request, level))
            with fc.apply(request.target, plan, lanes=request.lanes) as session:
                output = check._run(subject)
            return output, session.stats
        except ForecacheError as error:
            if attempt == 4 or not check._advised(str(error), error, subject, request, row):
                raise
    raise AssertionError


__all__ = ["stacked"]
