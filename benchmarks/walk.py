"""The way of a new user, from a clone to the first accelerated image of a pipeline, in a fresh environment, with times.

    python benchmarks/walk.py                ten minutes, most of them pip's

The commands of docs/get-started.md are typed as they stand, in a clone of this repository; its first block of Python
runs as a script, on a small random FLUX pipeline in the place of FLUX.1-dev, whose weights are not downloaded. Packages
come from pip's index, so that the installs depend on the network. Writes benchmarks/results/walk.json and the table of
the page.
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
    "git clone": "a clone",
    "python mine.py": "**the first accelerated image**: `fc.enable(pipe)` on a small random FLUX pipeline, 1024 x 1024",
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


HUB = "black-forest-labs/FLUX.1-dev"


def script(pipeline: Path) -> str:
    """The page's first block of Python, with a pipeline of this machine."""
    block = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if block is None or HUB not in block[1]:
        sys.exit(f"The first block of Python in {PAGE} loads {HUB}.")
    return block[1].replace(HUB, str(pipeline))


def small_pipeline(folder: Path) -> Path:
    """A small random FLUX pipeline with encoders, as save_pretrained writes it."""
    sys.path.append(str(common.ROOT / "tests"))
    from support.small import small_flux  # pyright: ignore[reportMissingImports]

    folder.mkdir()
    return small_flux(folder)


def run(line: str, folder: Path) -> None:
    """Run one command, in the environment that an early one creates; CalledProcessError if it fails."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = f"{folder / 'venv/bin'}:{variables['PATH']}"
    clone = folder / "forecache"
    line = line.replace(".venv", str(folder / "venv"))
    subprocess.run(["bash", "-c", line], cwd=clone if clone.exists() else folder, env=variables, check=True)


def meaning(line: str) -> str:
    """What a command does, for the table."""
    return next(means for start, means in MEANS.items() if line.startswith(start))


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    seconds = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        mine = script(small_pipeline(folder / "pipeline"))
        for line in [f"git clone --quiet {common.ROOT} forecache", *commands(), "python mine.py"]:
            if line == "python mine.py":
                (folder / "forecache/mine.py").write_text(mine)
            seconds[line.split(" /")[0]] = seconds_of(lambda line=line: run(line, folder))
    place, load = environment(), os.getloadavg()[0]
    about = {"command": common.command("walk.py", words), "environment": place}
    common.save("walk", about | {"seconds": seconds, "load": load})
    rows = [f"| {meaning(line)} | {taken:.0f} |" for line, taken in seconds.items()]
    note = (
        f"Each command of this page in turn, {sum(seconds.values()) / 60:.1f} minutes from a clone to that image, "
        "most of them pip's, from "
        "an index that was near: add your downloads. "
        f"{place['cpu']}, {place['cores']} cores (load {load:.1f} at the end), torch {place['torch']}. "
        "`python benchmarks/walk.py` runs them again."
    )
    common.fill_page("walk", ["| | seconds |", "|---|---|", *rows, "", note])


if __name__ == "__main__":
    main(sys.argv[1:])
