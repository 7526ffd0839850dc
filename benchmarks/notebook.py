"""The outputs of docs/quickstart.ipynb, from running it from the first cell to the last.

    python benchmarks/notebook.py                a minute on one core

The test of the notebook runs it in the same way.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import nbformat
from nbclient import NotebookClient

NOTEBOOK = common.ROOT / "docs/quickstart.ipynb"


def run(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in ``folder``; raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def tidy(notebook: Any) -> None:
    """Removes times and warnings, and joins the lines of a cell's output."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs: list[Any] = []
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # beside the same as PNG
            if output.get("name") == "stdout" and outputs and outputs[-1].get("name") == "stdout":
                outputs[-1].text += output.text
            elif output.get("name") != "stderr":
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(NOTEBOOK, Path(folder))
    tidy(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main(sys.argv[1:])
