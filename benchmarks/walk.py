"""The commands of docs/get-started.md as a new user types them, in a fresh environment, and the seconds of each.

    python benchmarks/walk.py                ten minutes, most of them pip's

Packages come from pip's index, so that the installs depend on the network. Writes benchmarks/results/walk.json and the
table of the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common

from forecache.environment import environment
from forecache.sampling.timing import seconds_of

PAGE = common.ROOT / "docs/get-started.md"
MEANS = {
    "python3 -m venv": "a virtual environment",
    "pip install -c constraints.txt torch": "torch",
    "pip install": "forecache, diffusers and the command line",
    "forecache sample": "the first picture, with and without a cache",
    "forecache report": "the first report",
    "forecache plan": "a plan for DiT-XL/2, and its cost",
}


def commands() -> list[str]:
    """The lines of the page's sh blocks, without the activation of the environment."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if not line.startswith(". ")]


def run(line: str, folder: Path) -> None:
    """Run one command, in the environment that the first one creates; CalledProcessError if it fails."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = f"{folder / 'venv/bin'}:{variables['PATH']}"
    line = line.replace(".venv", str(folder / "venv")).replace("out/", f"{folder}/out/")
    subprocess.run(["bash", "-c", line], cwd=common.ROOT, env=variables, check=True)


def meaning(line: str) -> str:
    """What a command does, for the table."""
    return next(means for start, means in MEANS.items() if line.startswith(start))


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for line in commands():
            seconds[line] = seconds_of(lambda line=line: run(line, Path(folder)))
    place, load = environment(), os.getloadavg()[0]
    about = {"command": common.command("walk.py", words), "environment": place}
    common.save("walk", about | {"seconds": seconds, "load": load})
    rows = [f"| {meaning(line)} | {taken:.0f} |" for line, taken in seconds.items()]
    note = (
        f"Each command of this page in turn, {sum(seconds.values()) / 60:.1f} minutes in all, most of them pip's, from "
        "an index that was near: add your downloads. "
        f"{place['cpu']}, {place['cores']} cores (load {load:.1f}: other work ran beside it), torch {place['torch']}. "
        "`python benchmarks/walk.py` runs them again."
    )
    common.fill_page("walk", ["| | seconds |", "|---|---|", *rows, "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
