"""What a router learns from one sampling run: the frozen model's calls, watched in pairs.

S sites; features have any shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import AlreadyAppliedError, ModelError, RunError, StepCountError
from forecache.models.layout import Layout
from forecache.models.mount import is_mounted, mounted


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient and nothing is in training mode inside the block; as before after it."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def mixed(kept: Tensor, computed: Tensor, p: Tensor) -> Tensor:
    """(1 - p) * kept + p * computed, for a probability p of no dimension."""
    return torch.lerp(kept, computed, p.to(computed.device, computed.dtype))


class Lesson:
    """One sampling run of a frozen model. Every odd call leaves its gradient in ``logits_KS.grad``, its figures here.

    logits_KS: one row for each odd call. lam: the price of a computed site. errors, losses: one per pair of calls.
    """

    def __init__(self, layout: Layout, logits_KS: Tensor, lam: float, num_steps: int) -> None:
        self.errors: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._layout = layout
        self._logits_KS = logits_KS
        self._lam = lam
        self._num_steps = num_steps
        self._calls = 0
        self._kept: dict[int, tuple[Tensor, int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Model calls in this block are one run: the model gives out what it always does, and the router learns."""
        model = self._layout.model
        if any(is_mounted(module) for module in model.modules()):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} samples by a plan: leave its `with forecache.apply(...)` block before "
                "training a router."
            )
        with mounted([(model, self._around(model.forward))]):
            yield
        if self._calls != self._num_steps:
            raise self._other_length(f"{self._calls}")

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._calls == self._num_steps:
                raise self._other_length(f"more than {self._calls}")
            if torch.is_inference_mode_enabled():
                raise RunError("A router cannot be trained under torch.inference_mode: sample under torch.no_grad.")
            step, self._calls = self._calls, self._calls + 1
            if step % 2 == 0:
                with mounted(self._layout.forwards(self._keep, None)):
                    return forward(*args, **kwargs)
            output = forward(*args, **kwargs)  # the bare model
            self._learn(step // 2, output, lambda: forward(*args, **kwargs))
            return output

        return call

    def _learn(self, row: int, full: Any, again: Callable[[], Any]) -> None:
        """The gradient of one pair of calls; only the mixed pass keeps activations, and only until it is done."""
        with torch.enable_grad():
            p_S = self._logits_KS[row].sigmoid()

            def mix(site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
                return mixed(self._read(site), compute(*args, **kwargs), p_S[site])

            with mounted(self._layout.forwards(mix, None)):
                output = _tensor(again())
            error = (output.float() - _tensor(full).float()).square().mean()
            loss = error + self._lam * p_S.sum()
            loss.backward()
        self._kept.clear()
        self.errors.append(error.detach())
        self.losses.append(loss.detach())

    def _keep(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        if site in self._kept:
            name = self._layout.sites[site].name
            raise RunError(f"{name} ran twice in one model call: it cannot be cached, choose other sites.")
        output = compute(*args, **kwargs)
        self._kept[site] = output, output._version
        return output

    def _read(self, site: int) -> Tensor:
        name = self._layout.sites[site].name
        if site not in self._kept:
            raise RunError(f"{name} does not run in every model call: it cannot be cached, choose other sites.")
        feature, version = self._kept[site]
        if feature._version != version:
            raise RunError(f"What {name} gave out was changed in place afterwards: choose sites inside or around it.")
        return feature

    def _other_length(self, found: str) -> StepCountError:
        return StepCountError(
            f"The router is trained for {self._num_steps} steps, and the run made {found} model calls: train it with "
            "the number of calls that a run makes. Pipelines that call the model twice a step are not supported."
        )


def _tensor(output: Any) -> Tensor:
    """The model's prediction: its output, or the first part of it."""
    first = output if isinstance(output, Tensor) else next(iter(_parts(output)), None)
    if not isinstance(first, Tensor):
        raise ModelError(
            f"The model gives out a {type(output).__name__} that does not begin with a tensor: a router is trained on "
            "the model's prediction."
        )
    return first


def _parts(output: Any) -> Any:
    return output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
