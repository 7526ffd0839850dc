"""A session at the end of a process."""

import subprocess
import sys

ENDS = """
import torch, forecache as fc
from support.tiny import TINY
model = TINY["SD3"].model()
session = fc.enable(model, fc.fora(2).plan(fc.grid(model, 8)))
TINY["SD3"].generate(model)
"""


def test_a_process_may_end_with_a_model_enabled():
    """As the first example of the README does."""
    paths = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ENDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    assert (done.returncode, done.stderr) == (0, "")
