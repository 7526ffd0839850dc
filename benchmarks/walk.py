"""The commands of docs/get-started.md as a new user types them: a fresh environment, and the seconds of each.

    python benchmarks/walk.py

Packages come from pip's index, so that the installs depend on the network. Writes benchmarks/results/walk.json and the
table in the page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from digits import ROOT, fill

from forecache.environment import environment

PAGE = ROOT / "docs/get-started.md"
RESULT = ROOT / "benchmarks/results/walk.json"
MEANS = {
    "python3 -m venv": "a virtual environment",
    "pip install -c constraints.txt torch": "torch",
    "pip install": "forecache, diffusers and the command line",
    "forecache sample": "the first picture, with and without a cache",
    "forecache report": "the first report",
    "forecache plan": "a plan for DiT-XL/2, and its cost",
}


def commands() -> list[str]:
    """What stands in the page's sh blocks, but for the activation."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if not line.startswith(". ")]


def timed(line: str, folder: Path) -> float:
    """Seconds of one command, in the environment that the first one makes; ends the walk if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{folder / 'venv/bin'}:{environment['PATH']}"
    line = line.replace(".venv", str(folder / "venv")).replace("out/", f"{folder}/out/")
    start = time.perf_counter()
    subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - start


def meaning(line: str) -> str:
    return next(means for start, means in MEANS.items() if line.startswith(start))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = {line: timed(line, Path(folder)) for line in commands()}
    document = {"command": "python benchmarks/walk.py", "environment": environment(), "seconds": seconds}
    document["load"] = os.getloadavg()[0]
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    rows = [f"| {meaning(line)} | {taken:.0f} |" for line, taken in seconds.items()]
    place = document["environment"]
    note = (
        f"Each command of this page in turn, {sum(seconds.values()) / 60:.1f} minutes in all, most of them pip's, "
        "from an index that was near: add your downloads. "
        f"{place['cpu']}, {place['cores']} cores (load {document['load']:.1f}: other work ran beside it), torch "
        f"{place['torch']}. `python benchmarks/walk.py` types them again."
    )
    fill(PAGE, "walk", ["| | seconds |", "|---|---|", *rows, "", note])


if __name__ == "__main__":
    main()
