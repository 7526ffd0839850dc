"""What the reproductions of the tests share: real pictures, a router, and an uninterrupted run."""

import numpy as np
import pytest
import torch
from support.reproductions import ROWS, SMALL, open_projected
from support.routers import published

from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.table import open_table


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Twelve pictures of the pipelines' size as ADM keeps images."""
    path = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def router(tmp_path_factory):
    """A published file for models of three blocks at 20 steps; its first odd calls skip whole blocks."""
    path = tmp_path_factory.mktemp("router") / "ddim20.pt"
    document = published(20, 3)
    document["routers"]["18.prob"][:] = -5  # c = 1, the first call that may be skipped
    document["routers"]["16.prob"][:] = -5
    torch.save(document, path)
    return path


@pytest.fixture(scope="session")
def whole(pipe_folder, real, router, tmp_path_factory):
    """An uninterrupted run of three rows; copy it before changing it."""
    table, folder = open_table("goc-table-3"), tmp_path_factory.mktemp("whole")
    return folder, reproduce(table, open_projected(table, pipe_folder, real, router), folder, SMALL, rows=ROWS)
