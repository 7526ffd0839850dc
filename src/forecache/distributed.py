"""Processes that act as one, started by ``torchrun`` or ``accelerate launch``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from forecache.errors import InputError


@dataclass(frozen=True)
class World:
    """The processes of a run.

    rank: number of this process, 0 [default] to size - 1; rank 0 writes files and shows progress.
    size: number of processes, at least 1 [default].
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum every tensor over the processes, in place. nccl, which needs GPUs, sums copies."""
        if self.size == 1:
            return
        staged = dist.get_backend() == "nccl"
        for tensor in tensors:
            total = tensor.cuda() if staged else tensor
            dist.all_reduce(total)
            if total is not tensor:
                tensor.copy_(total)

    def totals(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of every number over the processes, bit for bit the same on all of them."""
        if self.size == 1:
            return values
        gathered: list[NDArray[np.float64]] = [values] * self.size
        dist.all_gather_object(gathered, values)
        return np.sum(gathered, axis=0)

    def agree(self, values: list[Any]) -> list[Any]:
        """For every entry of the list, the value of the first process on which it is not None."""
        gathered: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, values)
        return [next((value for value in column if value is not None), None) for column in zip(*gathered, strict=True)]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()


def current() -> World:
    """The processes that torch.distributed was started with; a single one if it was not started."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def launched() -> World:
    """The processes that a launcher names in the environment (RANK, WORLD_SIZE), without joining them.

    For work in which no process waits for another, so that one may be killed without stopping the others. Raises
    InputError if the two numbers do not name a process.
    """
    if dist.is_available() and dist.is_initialized():
        return current()
    words = [os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))]
    if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise InputError(
            f"RANK={words[0]} and WORLD_SIZE={words[1]} in the environment name no process of a run, whose rank is a "
            "number below the size of its world: start it with torchrun or accelerate launch, or unset both."
        )
    return World(int(words[0]), int(words[1]))


def take_gpu() -> bool:
    """Make the GPU of the local rank the current device of this process; False if there is no GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.cuda.is_available()


@contextmanager
def started() -> Iterator[World]:
    """The processes that the launcher started, joined for the block; a single one without a launcher.

    They communicate by gloo on CPUs, by nccl on GPUs, where every process takes the GPU of its local rank.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield current()
        return
    gpu = take_gpu()
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()
