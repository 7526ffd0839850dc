"""The outputs of docs/quickstart.ipynb, made again by running it from the first cell to the last.

    python benchmarks/notebook.py

The test of the notebook runs it in the same way.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs/quickstart.ipynb"


def run(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in ``folder``; raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def tidy(notebook: Any) -> None:
    """Leaves out when it ran and what its machine warned of, and joins what was printed line by line."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept: list[Any] = []
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # beside the same as PNG
            if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
                kept[-1].text += output.text
            elif output.get("name") != "stderr":
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(NOTEBOOK, Path(folder))
    tidy(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
