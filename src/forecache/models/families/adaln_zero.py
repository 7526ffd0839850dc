"""The adaLN-Zero gates of many diffusers blocks from one batched product, so that skipped blocks cost next to nothing.

Every block has its own timestep embedder, class table and modulation; a skipped block needs two of the modulation's six
rows. The weights are stacked once a session. L blocks, B batch, F frequencies, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PARTS = {
    "emb.timestep_embedder": "TimestepEmbedding",
    "emb.timestep_embedder.linear_1": "Linear",
    "emb.timestep_embedder.act": "SiLU",
    "emb.timestep_embedder.linear_2": "Linear",
    "emb.class_embedder": "LabelEmbedding",
    "emb.class_embedder.embedding_table": "Embedding",
    "emb": "CombinedTimestepLabelEmbeddings",
    "silu": "SiLU",
    "linear": "Linear",
}
"""The modules of an adaLN-Zero norm, by path."""


def stack(blocks: Sequence[nn.Module]) -> StackedGates | None:
    """The gates of blocks; None if a module is not the plain one (LoRA, quantised, offloaded, hooked)."""
    norms: list[Any] = [block.norm1 for block in blocks]
    if not all(_is_plain(norm.get_submodule(path), kind) for norm in norms for path, kind in PARTS.items()):
        return None
    embedder = norms[0].emb.timestep_embedder
    if embedder.cond_proj is not None or embedder.post_act is not None or any(norm.training for norm in norms):
        return None
    kinds = {(type(weight), weight.dtype, weight.device) for norm in norms for weight in norm.parameters()}
    return StackedGates(norms) if len(kinds) == 1 and kinds.pop()[0] is nn.Parameter else None


def _is_plain(module: nn.Module, kind: str) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    origin = type(module).__module__.split(".")[0]
    return (
        type(module).__name__ == kind and origin in ("torch", "diffusers") and not any(hooks)
    ) and "forward" not in vars(module)


TIMESTEPS = 128
"""Most timesteps whose embeddings, (L, 1, D) each, are stored; then all are discarded."""


class StackedGates:
    """A function from the arguments of a block's forward to the gates of all branches, (2 L, B, 1, D).

    On the CPU, where reading weights is slow, the embedding of a timestep is computed once.
    """

    def __init__(self, norms: Sequence[Any]) -> None:
        embedders = [norm.emb.timestep_embedder for norm in norms]
        self._time_proj = norms[0].emb.time_proj
        self._first_LFD, self._first_L1D = _stack([embedder.linear_1 for embedder in embedders])
        self._second_LDD, self._second_L1D = _stack([embedder.linear_2 for embedder in embedders])
        self._table_LCD = torch.stack([norm.emb.class_embedder.embedding_table.weight.detach() for norm in norms])
        width = self._table_LCD.shape[-1]
        rows = torch.tensor([2, 5])  # of shift, scale, gate of the attention, and of the MLP
        weights, biases = zip(*(_rows(norm.linear, rows) for norm in norms), strict=True)
        self._gates_LED, self._gates_LE1 = torch.stack(weights), torch.stack(biases)[..., None]
        self._width = width
        self._known: dict[tuple[float, torch.dtype, bool], Tensor] = {}

    def part(self, first: int, count: int) -> StackedGates:
        """The gates of ``count`` blocks from ``first`` on, as views of the stacked weights."""
        part = copy.copy(self)
        for name, stacked in vars(self).items():
            if isinstance(stacked, Tensor):
                setattr(part, name, stacked.narrow(0, first, count))
        part._known = {}
        return part

    def __call__(self, x_BND: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x_BND.device != self._table_LCD.device:
            self._move(x_BND.device)
        timestep_B, labels_B = _conditions(args, kwargs)
        embedded_LBD = self._table_LCD[:, labels_B] + self._time(timestep_B, x_BND.dtype)
        condition_LDB = nn.functional.silu(embedded_LBD).transpose(1, 2)
        gates_LEB = torch.baddbmm(self._gates_LE1, self._gates_LED, condition_LDB)  # weights as in memory: fast
        gates_L2BD = gates_LEB.unflatten(1, (2, -1)).transpose(2, 3).contiguous()
        return gates_L2BD.view(-1, len(labels_B), 1, self._width)

    def _move(self, device: torch.device) -> None:
        """Move weights that were offloaded when they were stacked to the device that the model runs on."""
        self._first_LFD, self._first_L1D = self._first_LFD.to(device), self._first_L1D.to(device)
        self._second_LDD, self._second_L1D = self._second_LDD.to(device), self._second_L1D.to(device)
        self._table_LCD = self._table_LCD.to(device)
        self._gates_LED, self._gates_LE1 = self._gates_LED.to(device), self._gates_LE1.to(device)
        self._known.clear()

    def _time(self, timestep_B: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedded timesteps, (L, B, D), or (L, 1, D) if all are known to be equal."""
        if timestep_B.is_meta or timestep_B.stride(0) == 0 or len(timestep_B) == 1:
            timestep_B = timestep_B[:1]
        if timestep_B.device.type != "cpu" or torch.compiler.is_compiling():
            return self._embedded(timestep_B, dtype)
        values = set(timestep_B.tolist())
        if len(values) != 1:
            return self._embedded(timestep_B, dtype)
        key = values.pop(), dtype, torch.is_inference_mode_enabled()
        embedded_L1D = self._known.get(key)
        if embedded_L1D is None:
            if len(self._known) >= TIMESTEPS:
                self._known.clear()
            embedded_L1D = self._known[key] = self._embedded(timestep_B[:1], dtype)
        return embedded_L1D

    def _embedded(self, timestep_B: Tensor, dtype: torch.dtype) -> Tensor:
        time_BF = self._time_proj(timestep_B).to(dtype)
        hidden_LBD = torch.baddbmm(self._first_L1D, time_BF.expand(len(self._first_L1D), -1, -1), self._first_LFD)
        return torch.baddbmm(self._second_L1D, nn.functional.silu(hidden_LBD), self._second_LDD)


def _conditions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Timestep and class labels among the arguments of a block's forward after the first."""
    names = (
        "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "timestep", "cross_attention_kwargs",
        "class_labels",
    )  # fmt: skip
    arguments = dict(zip(names, args, strict=False)) | dict(kwargs)
    return arguments["timestep"], arguments["class_labels"]


def _stack(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weights (L, in, out) and biases (L, 1, out)."""
    weights = torch.stack([linear.weight.detach() for linear in linears]).transpose(1, 2)
    return weights, torch.stack([linear.bias.detach() for linear in linears])[:, None]


def _rows(linear: nn.Linear, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of some of the six parts of a modulation."""
    rows = rows.to(linear.weight.device)
    weight = linear.weight.detach().unflatten(0, (6, -1)).index_select(0, rows).flatten(0, 1)
    return weight, linear.bias.detach().unflatten(0, (6, -1)).index_select(0, rows).flatten()
