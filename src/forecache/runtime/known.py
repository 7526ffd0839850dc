"""Known predictions: what a model computed, with what would have been estimated, through a pipeline's own code.

A pipeline makes one prediction of the calls of a step: it splits a guidance pair, adds multiples of both halves, casts.
A `Known` tensor goes through that code twice, once as what was computed and once as the estimate, so that the scheduler
gets both of the guided prediction, whatever the pipeline does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from forecache.errors import RunError


class Known(Tensor):
    """A computed tensor that carries its estimate; every function is called on both.

    estimate: of the same shape, dtype and device.
    """

    estimate: Tensor

    @staticmethod
    def of(computed: Tensor, estimate: Tensor) -> Known:
        """The computed tensor, in the same memory, with its estimate."""
        known = computed.as_subclass(Known)
        known.estimate = estimate
        return known

    @property
    def computed(self) -> Tensor:
        """The computed tensor alone."""
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if _writes(func, kwargs) and not isinstance(_written(args, kwargs), Known):
                raise RunError(
                    f"The pipeline writes a prediction into another tensor ({getattr(func, '__name__', func)}), so its "
                    "estimate cannot follow: leave hindsight out for this pipeline."
                )
            computed = func(*tree_map(_computed, args), **tree_map(_computed, kwargs))
            leaves, structure = tree_flatten(computed)
            if not any(isinstance(leaf, Tensor) for leaf in leaves):
                return computed
            estimate, _ = tree_flatten(func(*tree_map(_estimate, args), **tree_map(_estimate, kwargs)))
            pairs = zip(leaves, estimate, strict=True)
            return tree_unflatten(
                [Known.of(*pair) if isinstance(pair[0], Tensor) else pair[0] for pair in pairs], structure
            )


def _computed(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Known) else value


def _estimate(value: Any) -> Any:
    return value.estimate if isinstance(value, Known) else value


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into a tensor that it is given."""
    name = getattr(func, "__name__", "")
    return (
        name == "__setitem__"
        or kwargs.get("out") is not None
        or (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name[3:].rstrip("_") in INPLACE)
    )


INPLACE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"}
"""What Python's in-place operators are called, after ``__i``."""


def _written(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return kwargs["out"] if kwargs.get("out") is not None else args[0] if args else None


def with_estimate(computed: Any, estimate: Any) -> Any:
    """The output of a model call with its estimate, the output of the same call where it is skipped.

    Raises RunError for a model that gives out anything else than one tensor, alone, in a tuple or in an output class.
    """
    (leaves, structure), (others, _) = tree_flatten(computed), tree_flatten(estimate)
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or len(others) != len(leaves):
        raise RunError(
            f"Hindsight corrects the prediction of a model, and this one gives out {len(tensors)} tensors: leave "
            "hindsight out for this model."
        )
    leaves[tensors[0]] = Known.of(leaves[tensors[0]], others[tensors[0]])
    return tree_unflatten(leaves, structure)


def nbytes(output: Any) -> int:
    """Bytes of the tensors of a model's output."""
    return sum(leaf.nbytes for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))
