"""Processes that sample parts of one request together decide alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ranks
from support.small import small_dit

import forecache as fc

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
def test_two_processes_decide_alike_and_as_one(tmp_path):
    """Halves of a batch, and halves of the tokens of a FLUX in diffusers' context parallelism, on gloo."""
    folders = os.pathsep.join([str(TESTS), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "support.ranks", str(rank), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, (method, level) in ranks.RULES.items():
        sample, decided = ranks.halves([0, 1], method, level)
        assert first[f"{name} together"] == second[f"{name} together"] == decided
        parts = [torch.load(tmp_path / f"{name} together {rank}.pt") for rank in (0, 1)]
        torch.testing.assert_close(torch.cat(parts), sample, atol=1e-5, rtol=1e-5)
        assert first[f"{name} apart"] != second[f"{name} apart"]
    sample, decided = ranks.flux(parallel=False)
    assert first["FLUX"] == second["FLUX"] == decided
    assert {"#", "."} == set(decided)
    torch.testing.assert_close(torch.load(tmp_path / "FLUX 0.pt"), sample, atol=1e-4, rtol=1e-4)


def test_what_is_no_group_is_refused():
    with pytest.raises(fc.errors.PlanError, match=r"torch.distributed is not initialised"):
        fc.apply(small_dit(1), fc.easycache(0.2), num_steps=9, process_group="all")
