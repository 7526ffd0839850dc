"""The loss of a router on one sampling run of the frozen model, whose calls are taken in pairs.

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
from forecache.models.mount.contract import refuse_patched
from forecache.models.mount.replace import is_mounted, mounted


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter requires a gradient and every module is in evaluation mode; restored after it."""
    with_gradient = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in with_gradient:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield
    finally:
        for parameter in with_gradient:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def mixed(cached: Tensor, computed: Tensor, p: Tensor) -> Tensor:
    """(1 - p) * cached + p * computed, for a scalar probability p."""
    return torch.lerp(cached, computed, p.to(computed.device, computed.dtype))


class RouterLoss:
    """The loss over one sampling run of a frozen model. Every odd call adds its gradient to ``logits_KS.grad``.

    logits_KS: one row for each odd call.
    lam: the price of a computed site.
    num_steps: model calls of the run.
    errors: the MSE of every pair of calls.
    losses: the loss of every pair of calls.
    """

    def __init__(self, layout: Layout, logits_KS: Tensor, lam: float, num_steps: int) -> None:
        self.errors: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._layout = layout
        self._logits_KS = logits_KS
        self._lam = lam
        self._num_steps = num_steps
        self._calls = 0
        self._cached: dict[int, tuple[Tensor, int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Takes the model calls in this block as one run. The model's outputs are not changed."""
        model = self._layout.model
        if any(is_mounted(module) for module in model.modules()):
            raise AlreadyAppliedError(
                f"This {type(model).__name__} samples by a plan: leave its `with forecache.apply(...)` block before "
                "training a router."
            )
        refuse_patched(self._layout, "training a router on")
        with mounted([(model, self._around(model.forward))]):
            yield
        if self._calls != self._num_steps:
            raise self._wrong_length(f"{self._calls}")

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._calls == self._num_steps:
                raise self._wrong_length(f"more than {self._calls}")
            if torch.is_inference_mode_enabled():
                raise RunError("A router cannot be trained under torch.inference_mode: sample under torch.no_grad.")
            step, self._calls = self._calls, self._calls + 1
            if step % 2 == 0:
                with mounted(self._layout.forwards(self._store, None)):
                    return forward(*args, **kwargs)
            output = forward(*args, **kwargs)  # the bare model
            self._backward(step // 2, output, lambda: forward(*args, **kwargs))
            return output

        return call

    def _backward(self, row: int, full: Any, again: Callable[[], Any]) -> None:
        """Adds the gradient of one pair of calls. Only the mixed pass keeps activations, and frees them at its end."""
        with torch.enable_grad():
            p_S = self._logits_KS[row].sigmoid()

            def mix(site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
                return mixed(self._load(site), compute(*args, **kwargs), p_S[site])

            with mounted(self._layout.forwards(mix, None)):
                output = _prediction(again())
            error = (output.float() - _prediction(full).float()).square().mean()
            loss = error + self._lam * p_S.sum()
            loss.backward()
        self._cached.clear()
        self.errors.append(error.detach())
        self.losses.append(loss.detach())

    def _store(self, site: int, compute: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
        if site in self._cached:
            name = self._layout.sites[site].name
            raise RunError(f"{name} ran twice in one model call: it cannot be cached, choose other sites.")
        output = compute(*args, **kwargs)
        self._cached[site] = output, output._version
        return output

    def _load(self, site: int) -> Tensor:
        name = self._layout.sites[site].name
        if site not in self._cached:
            raise RunError(f"{name} does not run in every model call: it cannot be cached, choose other sites.")
        feature, version = self._cached[site]
        if feature._version != version:
            raise RunError(
                f"The output of {name} was changed in place after it was computed: choose sites inside or around it."
            )
        return feature

    def _wrong_length(self, calls: str) -> StepCountError:
        return StepCountError(
            f"The router is trained for {self._num_steps} steps, and the run made {calls} model calls: train it with "
            "the number of calls that a run makes. Pipelines that call the model twice a step are not supported."
        )


def _prediction(output: Any) -> Tensor:
    """The model's prediction: its output, or the first entry of it."""
    first = output if isinstance(output, Tensor) else next(iter(_entries(output)), None)
    if not isinstance(first, Tensor):
        raise ModelError(
            f"The model's output is a {type(output).__name__} that does not begin with a tensor: a router is trained "
            "on the model's prediction."
        )
    return first


def _entries(output: Any) -> Any:
    return output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
