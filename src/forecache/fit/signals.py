"""Signals of one generation without a cache, taken by hooks of torch while `calibrate` samples.

B samples, R rows of a model call, N tokens, D width, T steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import ForecacheError
from forecache.models.arguments import named_arguments
from forecache.models.blocks import Residual
from forecache.models.chain import chain_of
from forecache.models.mount.contract import MEASURES
from forecache.parts.decide import filtered_by_noise
from forecache.runtime.deciding import first_attention, first_tensor, stream_of
from forecache.runtime.pipelines import noise_at

MOST = 2**16
"""Numbers of a row that are looked at."""
IMAGE, VIDEO = 2.0, 3.0
"""Powers of the spectra of images (B, C, H, W) and of videos."""


class Recorder:
    """What the calls of one generation show, for the block of a ``with`` statement.

    target: what is sampled from, with the scheduler where it has one.
    model: its transformer.
    """

    def __init__(self, target: Any, model: nn.Module) -> None:
        self._scheduler = getattr(target, "scheduler", None)
        self._model = model
        self._seen: dict[str, list[Tensor]] = defaultdict(list)
        self._before: Tensor | None = None
        self._stack = ExitStack()
        self.power = IMAGE

    def __enter__(self) -> Recorder:
        self._watch(self._model.register_forward_pre_hook, self._on_call, with_kwargs=True)
        self._watch(self._model.register_forward_hook, self._on_output)
        with suppress(ForecacheError):  # a model without blocks that are known shows no more
            blocks = list(chain_of(self._model).blocks)
            self._watch(blocks[0].module.register_forward_pre_hook, self._on_first, with_kwargs=True)
            if len(blocks) > 1:
                self._watch(blocks[1].module.register_forward_pre_hook, self._on_second, with_kwargs=True)
            last = blocks[len(blocks) - 1]
            self._watch(last.module.register_forward_hook, lambda block, args, output: self._on_last(last, output))
            attention = first_attention(blocks[0].module)
            self._watch(attention.register_forward_pre_hook, self._on_attention, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def tables(self, samples: int, num_steps: int) -> dict[str, Tensor]:
        """The tables of `forecache.parts.signals.Signals` of this generation, float32; without what was not shown.

        Where the model is called several times a step, its first call is measured.
        """
        calls, rest = divmod(len(self._seen["outputs"]), num_steps)
        if rest or not calls:
            return {}
        seen: dict[str, list[Tensor]] = {}
        for name, values in self._seen.items():
            if len(values) == calls * num_steps and all(len(value) in (samples, 2 * samples) for value in values):
                seen[name] = [_by_sample(value, samples) for value in values[::calls]]
        if "outputs" not in seen:
            return {}
        tables = {name: _distances(seen[name]) for name in ("outputs", "inputs") if name in seen}
        tables["squares"] = _squares(seen["outputs"])
        for name in ("modulated", "stream", "probe"):
            if name in seen:
                tables[name] = _changes(seen[name])
        if "filtered" in seen:
            tables["filtered"] = _changes_of_rows(self._seen["filtered"][::calls], samples)
        if "stream" in seen and "probe" in seen:
            pairs = zip(seen["probe"], seen["stream"], strict=True)
            tables["residuals"] = _distances([after - before for after, before in pairs])
        if "norms" in seen:
            tables["ratios"] = _ratios(seen["norms"])
        return {name: table.float().cpu() for name, table in tables.items() if bool(table.isfinite().all())}

    def _watch(self, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
        def measuring(*args: Any) -> None:
            hook(*args)

        setattr(measuring, MEASURES, True)
        self._stack.callback(register(measuring, **options).remove)

    def _on_call(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        given = named_arguments(model, args, kwargs)
        timestep = given.pop("timestep", None)
        with suppress(ForecacheError):
            sample = first_tensor(list(given.values()))
            self._seen["inputs"].append(_some(sample))
            sigma = self._sigma(timestep)
            if sigma is not None and sample.ndim > 2:
                self.power = IMAGE if sample.ndim == 4 else VIDEO
                self._seen["filtered"].append(_some(filtered_by_noise(sample, sigma, self.power)))

    def _sigma(self, timestep: Any) -> float | None:
        """The noise level of a call, whose timestep is the scheduler's, or a thousandth of it."""
        known = getattr(self._scheduler, "timesteps", None)
        if timestep is None or known is None:
            return None
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        nearest = min(known.tolist(), key=lambda time: min(abs(time - value), abs(time - 1000 * value)))
        return noise_at(self._scheduler, nearest)

    def _on_output(self, model: nn.Module, args: Any, output: Any) -> None:
        named = output.values() if isinstance(output, Mapping) else output
        with suppress(ForecacheError):
            self._seen["outputs"].append(_some(first_tensor([output] if isinstance(output, Tensor) else list(named))))

    def _on_first(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        with suppress(ForecacheError):
            self._before = stream_of(block, args, kwargs).detach().clone()
            self._seen["stream"].append(_some(self._before))

    def _on_second(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        with suppress(ForecacheError):
            self._seen["probe"].append(_some(stream_of(block, args, kwargs)))

    def _on_attention(self, attention: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        first = [kwargs["hidden_states"]] if "hidden_states" in kwargs else []
        with suppress(ForecacheError):
            self._seen["modulated"].append(_some(first_tensor([*first, *args, *kwargs.values()])))

    def _on_last(self, last: Residual, output: Any) -> None:
        before = self._before
        if before is None:
            return
        with suppress(ForecacheError):
            inputs = dict.fromkeys(range(len(last.inputs)), before)
            after = last.streams_of(output, inputs) if last.inputs else {}
            place = last.inputs.index("hidden_states") if "hidden_states" in last.inputs else 0
            stream = after.get(place, first_tensor([output] if isinstance(output, Tensor) else list(output)))
            if stream.shape == before.shape:
                self._seen["norms"].append((stream - before).detach().float().norm(dim=-1).flatten(1))


def _some(tensor: Tensor) -> Tensor:
    """At most `MOST` numbers of every row, always the same ones, (R, E) in float32."""
    rows = tensor.detach().flatten(1)
    chosen = rows.clone() if rows.shape[1] <= MOST else rows[:, _places(rows.shape[1]).to(rows.device)]
    return chosen.float()


@lru_cache(maxsize=16)
def _places(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:MOST].sort().values


def _by_sample(rows: Tensor, samples: int) -> Tensor:
    """The rows of a sample side by side, (B, E): both halves of a guidance pair, or its one row."""
    return rows.reshape(-1, samples, rows.shape[1]).transpose(0, 1).flatten(1)


def _distances(steps: Sequence[Tensor]) -> Tensor:
    """(B, T (T + 1) / 2): mean absolute differences of all pairs of steps, mean absolute values of single ones."""
    return _of_pairs(steps, lambda now, before: (now - before).abs(), torch.abs)


def _squares(steps: Sequence[Tensor]) -> Tensor:
    return _of_pairs(steps, lambda now, before: (now - before).square(), torch.square)


def _of_pairs(
    steps: Sequence[Tensor], between: Callable[[Tensor, Tensor], Tensor], own: Callable[[Tensor], Tensor]
) -> Tensor:
    columns = [
        (own(earlier) if later is earlier else between(later, earlier)).mean(1)
        for number, earlier in enumerate(steps)
        for later in steps[number:]
    ]
    return torch.stack(columns, dim=1)


def _changes(steps: Sequence[Tensor]) -> Tensor:
    """(B, T): changes from the step before, relative to it."""
    changes = [(now - before).abs().mean(1) / before.abs().mean(1) for before, now in pairwise(steps)]
    return torch.stack([torch.zeros_like(changes[0]), *changes], dim=1)


def _changes_of_rows(steps: Sequence[Tensor], samples: int) -> Tensor:
    """The same, of every row, and the mean over the rows of a sample, as SeaCache has it."""
    changes_TR = _changes(steps)
    return changes_TR.reshape(-1, samples, len(steps)).mean(0)


def _ratios(norms: Sequence[Tensor]) -> Tensor:
    """(B, T): mean over tokens of the ratio of norms to those of the step before, as diffusers' calibration has it."""
    ratios = [(now / (before + 1e-8)).mean(1) for before, now in pairwise(norms)]
    return torch.stack([torch.ones_like(ratios[0]), *ratios], dim=1)
