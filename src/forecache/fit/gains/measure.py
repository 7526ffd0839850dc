"""Gains by back-propagation through a run without a cache or with a plan, a step at a time.

A zero perturbation is put on the stream in front of the last layer at every step. For a random direction v on the last
sample, lambda(s) is the derivative of v . sample by the perturbation of step s; it goes through the last layer, the
sampler and all later calls. The estimate of site i at a skipped step s adds the gate of step s times a sum of features
of computed steps j, so that <lambda(s), gate(s, i) * feature(j, i)> is all that has to be kept. Sites are not
perturbed: later sites of the same step would respond, which do not where they are skipped.

Around a run with a plan the later calls respond as they do under it: an estimate does not answer to the sample of its
own step, but to those of the steps that it reads, through their features. Features are those of the cached run's
samples, computed at every step.

B samples, D directions, T steps, S sites, R steps that an estimate reaches back, N tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forecache.errors import InputError
from forecache.fit.gains.gains import Gains, Origin, estimates_in
from forecache.fit.gains.record import Run, StepRecord, recording
from forecache.fit.gains.sampler import Response, response
from forecache.models.blocks import Block
from forecache.models.find import find, grid, layout_for, measure
from forecache.models.layout import Layout
from forecache.models.mount.replace import mounted
from forecache.models.span import Span
from forecache.parts.grid import Grid
from forecache.plan.plan import Plan
from forecache.runtime.apply import apply
from forecache.sampling.loop import generators
from forecache.sampling.sources import (
    Condition,
    Sampling,
    Source,
    as_source,
    call_inputs,
    check_conditions,
    options_of,
)

REACH = 8
"""Steps that an estimate reaches back, by default."""


class GainsBytes(NamedTuple):
    """Memory of a measurement for one batch.

    features: bytes of the features of all steps, on the host.
    products: bytes of the vector-Jacobian products of one step, on the model's device.
    kept: bytes of the numbers that are kept.
    """

    features: int
    products: int
    kept: int


def gains_bytes(
    target: Any,
    num_steps: int,
    *,
    batch: int = 1,
    directions: int = 4,
    reach: int = REACH,
    paired: bool = False,
    whole: Grid | None = None,
) -> GainsBytes:
    """The memory of `measure_gains` beside the model and one backward pass of it, from shapes alone.

    paired: whether a call has two rows a sample. whole: the grid of sites, the model's finest by default.
    """
    source = as_source(target)
    sites = whole or grid(source.target, num_steps)
    rows = batch * (1 + paired)
    feature = list(measure(source.target, sites, 1, call_inputs(source, 1)).site_bytes)
    reached = min(reach, num_steps - 1) + 1
    kept = 8 * batch * directions * num_steps * len(sites.sites) * reached
    return GainsBytes(sum(feature) * rows * num_steps, max(feature) * rows * directions, kept)


def measure_gains(
    target: Any,
    conditions: Sequence[Condition],
    *,
    num_steps: int,
    guidance: float = 1.5,
    seed: int = 0,
    batch: int = 8,
    directions: int = 4,
    reach: int = REACH,
    sites: Grid | None = None,
    around: Plan | None = None,
    path: Path | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Gains:
    """The gains of a model over one sample per condition; about 1 + 3 x ``directions`` forward passes of every run.

    target: a DiTPipeline, a text-to-image pipeline, a bundled model, or any `sources.Source`.
    batch: samples of a generation. directions: random directions on every sample.
    reach: steps that an estimate may reach back; a farther one cannot be predicted.
    sites: a grid, such as ``fc.grid(pipe, num_steps, level="blocks")``; the model's finest by default.
    around: a plan whose run is the one that gains are measured around, in the place of one without a cache. Then what
        they leave out grows with the distance from this plan, not from no cache; predictions are still of the PSNR to
        no cache. It costs a run more, and memory for a direction's part of every feature that later estimates read.
    path: a file, written after every batch; a measurement that was interrupted continues from it.
    on_start: called with the number of steps to come. on_step: after each.

    Only one step is held with its graph at a time. Raises InputError for samplers that are not linear, for
    models whose last block gives out several streams, and for sites whose features are outputs.
    """
    source = as_source(target)
    given = check_conditions(source, conditions)
    if not given or min(batch, directions, reach) < 1:
        raise InputError(
            f"Gains need a condition, and a batch, directions and a reach of at least 1; there are {len(given)} "
            f"conditions, batch={batch}, directions={directions} and reach={reach}."
        )
    whole = sites or grid(source.target, num_steps)
    if whole.num_steps != num_steps:
        raise InputError(f"The grid has {whole.num_steps} steps and num_steps is {num_steps}: make both the same.")
    reach = min(reach, num_steps - 1)
    origin = Origin(
        whole.model,
        whole.fingerprint,
        whole.scheduler,
        float(guidance),
        seed,
        directions,
        reach,
        given,
        options_of(source),
    )
    gains = Gains.empty(whole, origin, around)
    if around is not None:
        gains.check(around.grid)
    if path is not None and path.exists():
        gains = Gains.load(path)
        gains.check_same(whole, origin, path, around)
    starts = range(gains.count, len(given), batch)
    if on_start is not None:
        on_start(len(starts) * num_steps)
    how = Sampling(num_steps, guidance, seed)
    for first in starts:
        labels = given[first : first + batch]
        gains = gains.merged(_of_batch(source, whole, origin, around, labels, how, first, on_step))
        if path is not None:
            gains.save(path)
    return gains


def _of_batch(
    source: Source,
    whole: Grid,
    origin: Origin,
    around: Plan | None,
    labels: Sequence[Condition],
    how: Sampling,
    first: int,
    on_step: Callable[[int], None] | None,
) -> Gains:
    model = find(source.target)
    layout = layout_for(model, whole)
    _check(layout)
    kind = type(source.target.scheduler)
    with recording(model, kind) as run:
        images = source.generate(labels, how, first, None)
    bare = run.last
    cached = None
    if around is not None:
        with apply(source.target, around), recording(model, kind) as run:
            cached = source.generate(labels, how, first, None)
    if len(run.steps) != how.num_steps:
        raise InputError(
            f"The scheduler takes {len(run.steps)} steps in a run of {how.num_steps}: gains are measured for "
            "schedulers of one step a call, such as DDIM, Euler, DPM-Solver++ and UniPC."
        )
    args, kwargs = run.settings
    own = type(run.scheduler).from_config(run.scheduler.config)
    timesteps = torch.stack([torch.as_tensor(step.timestep).cpu() for step in run.steps])
    table = response(own, timesteps, lambda scheduler: scheduler.set_timesteps(*args, **{**kwargs, "device": "cpu"}))
    samples = [*(step.sample for step in run.steps), run.last]
    table.check(samples, [step.prediction for step in run.steps], type(own).__name__)
    seeds = generators(origin.seed + 0x9E37, range(first, first + len(labels)))
    shape = run.last.shape[1:]
    v_DBX = torch.stack([torch.randn((origin.directions, *shape), generator=one) for one in seeds], 1).to(run.last)
    rows = [dict(estimates_in(row)) for row in around.rows] if around is not None else [{} for _ in layout.sites]
    products = _back(layout, run, table, v_DBX, origin.reach, rows, on_step)
    size = float(run.last[0].numel())
    offset = (v_DBX * (run.last - bare)).double().flatten(2).sum(2).T.cpu() / size**0.5
    scale, error = _scale(bare, images), float(offset.square().mean())
    if cached is not None and error:  # the plan's own prediction is then what it measured, clipping included
        scale = float((cached - images).double().square().mean() / error) ** 0.5
    base = Gains.empty(whole, origin, around).base
    return Gains(whole.sites, whole.num_steps, origin, products.double() / size**0.5, scale, base, offset)


def _check(layout: Layout) -> None:
    last = _last(layout) if layout.blocks else None
    if last is None or len([output for output in last.outputs if output is not None]) != 1:
        raise InputError(
            f"The last block of a {type(layout.model).__name__} gives out several streams, or its sites belong to no "
            "blocks: gains are measured for models that end in blocks with one stream."
        )
    if any(site.name.endswith(".output") for site in layout.sites):
        raise InputError("Gains are measured of residuals: make the grid without of='output'.")


def _last(layout: Layout) -> Block:
    """The last block of a model, also where a site spans several."""
    block = layout.blocks[-1][1]
    return block.parts[-1] if isinstance(block, Span) else block


def _scale(last: Tensor, images: Tensor) -> float:
    """The slope of the images by the last samples, where both have one shape; else the ratio of their spreads."""
    x, y = last.float().cpu().flatten(), images.float().cpu().flatten()
    if x.shape == y.shape:
        inside = (y > 0) & (y < 1)
        if int(inside.sum()) > 1:
            x, y = x[inside], y[inside]
            return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return float(y.std() / x.std())


def _back(
    layout: Layout,
    run: Run,
    table: Response,
    v_DBX: Tensor,
    reach: int,
    rows: Sequence[Mapping[int, Mapping[int, float]]],
    on_step: Callable[[int], None] | None,
) -> Tensor:
    """The inner products (B, D, T, S, R + 1), from the last step to the first; entry r reads the step r before.

    rows: of every site, by skipped step of the run, the weights of computed steps in its estimate.
    """
    steps, features = run.steps, _features(layout, run)
    count, directions = v_DBX.shape[1], len(v_DBX)
    products = torch.zeros(count, directions, len(steps), len(layout.sites), reach + 1, dtype=torch.float64)
    through: dict[int, Tensor] = {}  # by step, the derivative by its sample through its own prediction, (D, B, ...)
    read: dict[tuple[int, int, int], Tensor] = {}  # by step, call and site, that by its feature through later estimates
    for number in reversed(range(len(steps))):
        weights = table.of_predictions[:, number].tolist()
        w_DBX = weights[-1] * v_DBX
        for later, xi_DBX in through.items():
            w_DBX = w_DBX + weights[later] * xi_DBX
        estimates = [
            {
                site: torch.stack(
                    [weight * features[source][call][site] for source, weight in row[number].items()]
                ).sum(0)
                for site, row in enumerate(rows)
                if number in row
            }
            for call in range(len(steps[number].calls))
        ]
        later = [
            {site: read.pop((number, call, site)) for site in range(len(rows)) if (number, call, site) in read}
            for call in range(len(steps[number].calls))
        ]
        lambdas, through[number], gates, by_estimate = _through(layout, steps[number], w_DBX, estimates, later)
        for call, derivatives in enumerate(by_estimate):
            for site, f_DRNW in derivatives.items():
                for source, weight in rows[site][number].items():
                    if weight:
                        before = read.get((source, call, site), 0.0)
                        read[source, call, site] = before + weight * f_DRNW
        for call, lambda_DRNW in enumerate(lambdas):
            for site, gate in enumerate(gates[call]):
                gated = lambda_DRNW if isinstance(gate, float) else lambda_DRNW * gate
                for back in range(min(reach, number) + 1):
                    f_RNW = features[number - back][call][site].to(gated)
                    inner_DR = torch.einsum("drnw,rnw->dr", gated, f_RNW).double().cpu()
                    parts = inner_DR.reshape(directions, -1, count).sum(1)  # both halves of a guidance pair
                    products[:, :, number, site, back] += parts.T
        if on_step is not None:
            on_step(len(steps) - 1 - number)
    return products


def _weighted(weights: Mapping[int, float], features: list[list[list[Tensor]]], call: int, site: int) -> Tensor:
    """The sum of a site's features, with weights by step."""
    return torch.stack([weight * features[step][call][site] for step, weight in weights.items()]).sum(0)


def _features(layout: Layout, run: Run) -> list[list[list[Tensor]]]:
    """The features of every step, call and site, on the host."""
    features: list[list[list[Tensor]]] = []
    for step in run.steps:
        calls = []
        for call in step.calls:
            seen: dict[int, Tensor] = {}

            def on_site(
                site: int, compute: Callable[..., Tensor], *args: Any, seen: dict[int, Tensor] = seen, **kwargs: Any
            ) -> Tensor:
                output = compute(*args, **kwargs)
                seen[site] = output.detach().cpu().clone()
                return output

            with torch.no_grad(), mounted(layout.forwards(on_site)):
                layout.model(*call.args, **call.kwargs)
            calls.append([seen[site] for site in range(len(layout.sites))])
        features.append(calls)
    return features


class Derivatives(NamedTuple):
    """What a step passes on.

    lambdas: of every call, by the stream in front of the last layer, (D, rows, N, W).
    of_sample: by the step's sample, (D, B, ...).
    gates: of every call, by site.
    of_estimates: of every call, by skipped site, (D, rows, N, W).
    """

    lambdas: list[Tensor]
    of_sample: Tensor
    gates: list[list[Any]]
    of_estimates: list[dict[int, Tensor]]


def _through(
    layout: Layout,
    step: StepRecord,
    w_DBX: Tensor,
    estimates: Sequence[Mapping[int, Tensor]],
    later: Sequence[Mapping[int, Tensor]],
) -> Derivatives:
    """The derivatives of one step, w_DBX being those by its prediction.

    estimates: of every call, the estimates of the sites that the run skips at this step.
    later: of every call, by site, the derivatives by its feature through the estimates of later steps.
    """
    guidance = step.guidance()
    of_gates = layout.gates(range(len(layout.blocks)))
    lambdas, gates, of_estimates = [], [], []
    total_DBX = torch.zeros_like(w_DBX)
    place = 0
    for call, skipped, wanted in zip(step.calls, estimates, later, strict=True):
        given, put = _sample_argument(call, step)
        streams: list[Tensor] = []
        conditions: list[tuple[Any, Any]] = []

        def perturb(_: Any, __: Any, output: Any, streams: list[Tensor] = streams) -> Any:
            stream = output[-1] if isinstance(output, tuple) else output
            delta = torch.zeros_like(stream, requires_grad=True)
            streams.append(delta)
            moved = stream + delta
            return (*output[:-1], moved) if isinstance(output, tuple) else moved

        def note(_: Any, args: Any, kwargs: Any, conditions: list[tuple[Any, Any]] = conditions) -> None:
            conditions.append((args, kwargs))

        first, last = layout.blocks[0][1].module, _last(layout).module
        hooks = [first.register_forward_pre_hook(note, with_kwargs=True), last.register_forward_hook(perturb)]
        put_in = {site: estimate.to(given.device).requires_grad_() for site, estimate in skipped.items()}
        computed: dict[int, Tensor] = {}

        def on_site(
            site: int,
            compute: Callable[..., Tensor],
            *args: Any,
            put_in: dict[int, Tensor] = put_in,
            computed: dict[int, Tensor] = computed,
            **kwargs: Any,
        ) -> Tensor:
            if site in put_in:
                return put_in[site]
            computed[site] = compute(*args, **kwargs)
            return computed[site]

        try:
            with torch.enable_grad(), mounted(layout.forwards(on_site) if skipped or wanted else ()):
                x = given.detach().clone().requires_grad_()
                args, kwargs = put(x)
                output = layout.model(*args, **kwargs)
                first_output = output[0] if isinstance(output, tuple) else output.sample
                parts = step.parts([first_output])
                weights = guidance[place : place + len(parts)]
                share = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)
                place += len(parts)
                ends = [share, *(computed[site] for site in wanted)]
                inputs = (x, streams[0], *put_in.values())
                results = [
                    torch.autograd.grad(
                        ends,
                        inputs,
                        [w_BX.to(share), *(one[index].to(share) for one in wanted.values())],
                        retain_graph=index + 1 < len(w_DBX),
                    )
                    for index, w_BX in enumerate(w_DBX)
                ]
        finally:
            for hook in hooks:
                hook.remove()
        scale = _scale_of_input(given, step)
        rows = len(step.sample)
        for index, (of_input, *_) in enumerate(results):
            total_DBX[index] += scale * sum(of_input.split(rows))
        lambdas.append(torch.stack([of_stream for _, of_stream, *_ in results]).detach())
        of_sites = (torch.stack(parts) for parts in zip(*(rest for _, _, *rest in results), strict=True))
        of_estimates.append(dict(zip(put_in, of_sites, strict=True)))
        with torch.no_grad():
            args, kwargs = conditions[0]
            gates.append(list(of_gates(*args, **kwargs)))
    return Derivatives(lambdas, total_DBX, gates, of_estimates)


def _sample_argument(call: Any, step: StepRecord) -> tuple[Tensor, Any]:
    """The argument of a model call that is the sample, and a function that puts another in its place."""
    args, kwargs = list(call.args), dict(call.kwargs)
    if args and isinstance(args[0], Tensor):
        return args[0], lambda x: ([x, *args[1:]], kwargs)
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return kwargs["hidden_states"], lambda x: (args, {**kwargs, "hidden_states": x})
    raise InputError(
        "The model is called without hidden_states: gains are measured for models that take the sample so."
    )


def _scale_of_input(given: Tensor, step: StepRecord) -> float:
    """What the sample was multiplied with before the call; InputError where it was changed otherwise."""
    sample = step.sample.double()
    rows = len(sample)
    first = given[:rows].double()
    if first.shape == sample.shape:
        scale = float((first * sample).sum() / sample.square().sum())
        if float((first - scale * sample).norm()) <= 1e-3 * float(first.norm()) and all(
            torch.equal(part, given[:rows]) for part in given.split(rows)
        ):
            return scale
    raise InputError(
        "The model is called with something else than the scheduler's sample times a number: gains cannot be measured "
        "for pipelines that concatenate or pack on the way."
    )
