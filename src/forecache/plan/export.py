"""Exports: schedules of plans as files that other engines run.

steps            JSON, one 0 or 1 a step, 1 for a computed one. It says nothing of a forecast: skipped steps are reused.
cache-dit        YAML for ``cache_dit.load_configs``: a static mask of steps, and its TaylorSeer calibrator for a Taylor
                 forecast. Its first block always runs, and what the other blocks add is estimated.
sglang-dpcache   JSON, "sglang-dpcache-schedule-v2": the steps at which all blocks run. At the others the output of the
                 last block lies on a straight line through those of the last two (DPCache, arXiv 2602.22654).

A plan that says more than a format can is refused. The steps alone of any plan whose sites are all computed at the same
steps can be had by ``schedule_only``. Written from the sources of cache-dit 1.5.3 and of SGLang's DPCache, as
`docs/integrations/exports.md` says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from forecache._version import __version__
from forecache.errors import PlanError
from forecache.io.text import short
from forecache.models.levels import level_of
from forecache.parts.grid import Cell
from forecache.plan.plan import Plan

Format = Literal["steps", "cache-dit", "sglang-dpcache"]
"""What a schedule is written for."""

SIGNATURE = {
    "pipeline": str,
    "checkpoint": str,
    "num_inference_steps": int,
    "height": int,
    "width": int,
    "guidance_scale": float,
    "do_classifier_free_guidance": bool,
    "quality": str,
    "attention_backend": (str, type(None)),
    "dtype": str,
    "scheduler": str,
    "scheduler_config_sha256": str,
    "timesteps": list,
    "sigmas": list,
}
"""The fields of the request that a DPCache schedule is for, with their types."""

CACHE_DIT_ORDERS = range(1, 5)
"""Orders of cache-dit's TaylorSeer calibrator that a plan is compared with."""


def exported(
    plan: Plan,
    format: Format,
    *,
    request: Mapping[str, Any] | None = None,
    schedule_only: bool = False,
) -> str:
    """The schedule of a plan, as the text of a file that another engine runs.

    format: "steps", "cache-dit" or "sglang-dpcache"; see `forecache.plan.export`.
    request: for "sglang-dpcache", the request that the schedule is for: the ``request`` of any schedule or calibration
        capture that SGLang wrote for it, or such a file's whole document. The engine runs no schedule with another
        request.
    schedule_only: whether the steps are written though the plan says more: other sites, or another forecast. False, the
        default, refuses such a plan.

    Raises PlanError for a plan that the format cannot hold.
    """
    if format not in get_args(Format):
        raise PlanError(f"A schedule is exported for {', '.join(get_args(Format))}, not for {short(format)}.")
    if request is not None and format != "sglang-dpcache":
        raise PlanError(f"request= is for sglang-dpcache; {format} schedules name no request: leave it out.")
    computed = computed_steps(plan)
    if plan.sampler is not None and not schedule_only:
        raise PlanError(
            f"The plan brings a {plan.sampler.name} of {plan.sampler.num_steps} steps with it, and no format for other "
            "engines sets a scheduler: give the engine that scheduler, and export the steps alone (--schedule-only, "
            "schedule_only=True)."
        )
    if format == "steps":
        if not schedule_only:
            _check_cells(plan, format, lambda step, past: ({past[-1]: 1.0},), "is reused")
        return json.dumps([int(step in computed) for step in range(plan.num_steps)]) + "\n"
    if format == "cache-dit":
        return _cache_dit(plan, computed, schedule_only)
    return _dpcache(plan, computed, request, schedule_only)


def computed_steps(plan: Plan) -> tuple[int, ...]:
    """The steps at which a plan computes; PlanError where sites differ, or the plan decides as it runs."""
    if plan.is_undecided:
        raise PlanError(
            "The plan decides while it runs which steps are computed, and a schedule for other engines says it before: "
            "export what a run decided, session.decided()."
        )
    if plan.looks:
        raise PlanError(
            "The plan corrects the sample in hindsight, by the scheduler, which no other engine does: make a plan "
            "without hindsight."
        )
    tables = {tuple(cell.computed for cell in row) for row in plan.rows}
    if len(tables) > 1:
        raise PlanError(
            f"The sites of this plan are computed at different steps ({len(tables)} schedules), and other engines have "
            "one schedule for all blocks: make a plan with one, such as forecache.fora, or with level='stack'."
        )
    if any(cell.tokens is not None for row in plan.rows for cell in row):
        raise PlanError(
            "The plan computes some tokens of skipped steps, and no format for other engines knows tokens: make a plan "
            "without inject or selective."
        )
    return tuple(step for step, computed in enumerate(tables.pop()) if computed)


Rule = Callable[[int, Sequence[int]], Sequence[Mapping[int, float]]]
"""(skipped step, computed steps before it) -> the weights that an engine may estimate it with, each from its state."""


def _check_cells(plan: Plan, format: str, rule: Rule, what: str) -> None:
    """Raises PlanError where a skipped cell is estimated otherwise than by the rule of an engine."""
    past: list[int] = []
    cells: list[set[Cell]] = [set(column) for column in zip(*plan.rows, strict=True)]
    for step, distinct in enumerate(cells):
        if all(cell.computed for cell in distinct):
            past.append(step)
            continue
        known = rule(step, past)
        for cell in distinct:
            if cell.constants:
                raise PlanError(
                    f"The plan corrects step {step} by calibrated constants, which {format} cannot hold: make a plan "
                    "without eoc, or export its steps alone (--schedule-only, schedule_only=True)."
                )
            if not all(_is_same(dict(cell.reads), weights) for weights in known):
                own, others = _sum(dict(cell.reads)), " or ".join(dict.fromkeys(map(_sum, known)))
                raise PlanError(
                    f"The format {format} cannot say how the plan estimates step {step}, {own}; there it {what}, "
                    f"{others}: take that forecast, or export the steps alone (--schedule-only, schedule_only=True)."
                )


def _is_same(reads: Mapping[int, float], weights: Mapping[int, float]) -> bool:
    """Whether two weighted sums of steps are the same within 1e-6."""
    return all(abs(reads.get(step, 0.0) - weights.get(step, 0.0)) < 1e-6 for step in {*reads, *weights})


def _sum(weights: Mapping[int, float]) -> str:
    """A weighted sum of steps in words."""
    terms = [f"{weight:+.3g} x step {step}" for step, weight in sorted(weights.items(), reverse=True) if weight]
    return " ".join(terms) or "nothing"


def _check_level(plan: Plan, format: str, of: str) -> None:
    """Raises PlanError for a plan whose sites are not the stack of blocks, with the feature of an engine."""
    if level_of(plan.grid.sites) != ("stack", of):
        raise PlanError(
            f"The plan is on {len(plan.grid.sites)} sites, {plan.grid.sites[0].name} first, and {format} estimates one "
            f"feature of all blocks: make the plan on forecache.grid(model, num_steps, level='stack', of='{of}') "
            f"(forecache plan --level stack --of {of}), or export its steps alone (--schedule-only, "
            "schedule_only=True)."
        )


# ---- cache-dit ------------------------------------------------------------------------------------------------------


def _cache_dit(plan: Plan, computed: Sequence[int], schedule_only: bool) -> str:
    order = None if schedule_only else _cache_dit_order(plan, computed)
    if not schedule_only:
        _check_level(plan, "cache-dit", "residual")
    mask = [int(step in computed) for step in range(plan.num_steps)]
    lines = [
        f"# A schedule of forecache {__version__}: {len(computed)} of {plan.num_steps} steps are computed.",
        "# cache_dit.enable_cache(pipe, **cache_dit.load_configs(path)); its first block runs at every step.",
        "cache_config:",
        "  Fn_compute_blocks: 1",
        "  Bn_compute_blocks: 0",
        "  max_warmup_steps: 1",
        f"  num_inference_steps: {plan.num_steps}",
        f"  steps_computation_mask: {json.dumps(mask)}",
        "  steps_computation_policy: static",
    ]
    if order is not None:
        lines += [
            "  enable_taylorseer: true",
            "  enable_encoder_taylorseer: true",
            "  taylorseer_cache_type: residual",
            f"  taylorseer_order: {order}",
        ]
    return "\n".join(lines) + "\n"


def _cache_dit_order(plan: Plan, computed: Sequence[int]) -> int | None:
    """The order of cache-dit's Taylor forecast that a plan has; None for reuse. PlanError for anything else."""
    skipped = [cell for cell in plan.rows[0] if not cell.computed]
    if all(cell.is_reuse for cell in skipped):
        _check_cells(plan, "cache-dit", lambda step, past: ({past[-1]: 1.0},), "is reused")
        return None
    error: PlanError | None = None
    for order in CACHE_DIT_ORDERS:

        def rule(step: int, past: Sequence[int], order: int = order) -> Sequence[Mapping[int, float]]:
            return [cache_dit_weights(order, past, step, first) for first in (True, False)]

        try:
            _check_cells(plan, "cache-dit", rule, f"takes its Taylor forecast of order {order}")
            return order
        except PlanError as reason:
            error = error or reason
    order = max(len(cell.reads) for cell in skipped) - 1
    raise PlanError(
        f"{error} Its calibrator leaves out differences at the first steps, so {order + 3} steps have to be computed "
        f"first: fc.taylorseer(fc.warmup(base, {order + 3}), {order})."
    )


def cache_dit_weights(order: int, computed: Sequence[int], step: int, first_run: bool) -> dict[int, float]:
    """The weights of cache-dit's TaylorSeer calibrator at a skipped step.

    order: of its expansion.
    computed: the computed steps before it, in order.
    first_run: whether nothing ran before. Its counter of steps begins one lower then, so that differences of one step
        more are left out.
    """
    offset = -1 if first_run else 0
    derivatives: list[dict[int, float] | None] = [None] * (order + 1)
    last = -1
    for now in computed:
        before, derivatives = derivatives, [{now: 1.0}, *[None] * order]
        for degree in range(order):
            newer, older = derivatives[degree], before[degree]
            if newer is None or older is None or now + offset <= 1:
                break
            weights = {at: newer.get(at, 0.0) - older.get(at, 0.0) for at in {*newer, *older}}
            derivatives[degree + 1] = {at: weight / (now - last) for at, weight in weights.items()}
        last = now
    total: dict[int, float] = {}
    for degree, weights in enumerate(derivatives):
        if weights is None:
            break
        factor = (step - last) ** degree / math.factorial(degree)
        for at, weight in weights.items():
            total[at] = total.get(at, 0.0) + factor * weight
    return total


# ---- SGLang's DPCache -----------------------------------------------------------------------------------------------


def _dpcache(plan: Plan, computed: Sequence[int], request: Mapping[str, Any] | None, schedule_only: bool) -> str:
    if not schedule_only:
        _check_level(plan, "sglang-dpcache", "output")
    leading = next((place for place, step in enumerate(computed) if place != step), len(computed))
    if leading < 2:
        raise PlanError(
            "sglang-dpcache draws a straight line through the last two computed steps, so the first two are computed; "
            f"this plan computes steps {list(computed[:4])} first: make it with fc.warmup(base, 2)."
        )
    if not schedule_only:
        _check_cells(plan, "sglang-dpcache", lambda step, past: (_line(step, past),), "takes a straight line")
    signature = _signature(request, plan.num_steps)
    document = {
        "schema": "sglang-dpcache-schedule-v2",
        "schedule_method": f"forecache {__version__}: {plan.provenance.get('method', 'a plan')}",
        "predictor": {
            "name": "final-feature-linear-extrapolation",
            "order": 1,
            "arithmetic": "feature-dtype-elementwise-v1",
        },
        "objective": "pact-mean-abs-final-feature-predicted-steps-only-v1",
        "source_commit": f"forecache {__version__}",
        "request": signature,
        "mandatory_full_steps": list(range(leading)),
        "force_last_full": False,
        "max_gap": None,
        "num_full_steps": len(computed),
        "full_steps": list(computed),
        "calibrated_cost": 0.0,  # DPCache's own cost was not measured
        "calibration": {"manifest_sha256": hashlib.sha256(repr(plan.rows).encode()).hexdigest(), "num_samples": 0},
    }
    return json.dumps(document, indent=2) + "\n"


def _line(step: int, past: Sequence[int]) -> dict[int, float]:
    """The weights of a straight line through the last two computed steps."""
    older, newer = past[-2:]
    slope = (step - newer) / (newer - older)
    return {newer: 1.0 + slope, older: -slope}


def _signature(request: Mapping[str, Any] | None, num_steps: int) -> dict[str, Any]:
    """The request of a DPCache schedule, checked: exactly its fields, for a run of this length."""
    if request is None:
        raise PlanError(
            "A DPCache schedule names the request that it is for, which a plan does not know: give the request of a "
            "schedule or capture that SGLang wrote for it, --request FILE (request=)."
        )
    given = request.get("request", request.get("signature", request))
    if not isinstance(given, Mapping) or set(given) != set(SIGNATURE):
        found = sorted(given) if isinstance(given, Mapping) else short(given)
        raise PlanError(f"The request of a DPCache schedule has the fields {', '.join(SIGNATURE)}; it has {found}.")
    for name, kind in SIGNATURE.items():
        value = given[name]
        is_number = kind is float and type(value) in (int, float) and math.isfinite(value)
        if not is_number and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise PlanError(f"{name} of a DPCache request cannot be {short(value)}: take it from SGLang's own file.")
    lengths = {"timesteps": num_steps, "sigmas": num_steps + 1}
    odd = [name for name, length in lengths.items() if len(given[name]) != length]
    if given["num_inference_steps"] != num_steps or odd:
        raise PlanError(
            f"The plan has {num_steps} steps, and the request is one of {given['num_inference_steps']} steps with "
            f"{len(given['timesteps'])} timesteps and {len(given['sigmas'])} sigmas (one more): make the plan for that "
            "number of steps."
        )
    if given["dtype"] != "bfloat16":
        raise PlanError(f"DPCache runs in bfloat16 alone, not in {given['dtype']}: take a request in bfloat16.")
    return dict(given)
