"""Bundled files in the format versions of today, made once from those of before.

    python benchmarks/convert_formats.py

Documents that say an older version are rewritten in place; the bytes of every tensor and all that a document said
besides its version stay, and the script fails if they do not. Files that are of today's version already are left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
from safetensors.torch import load, save
from torch import Tensor

from forecache.evaluate import features
from forecache.io import files, tensor_files
from forecache.io.document import Document
from forecache.parts import router, statistics
from forecache.plan import file as plan_file

ASSETS = Path(__file__).parents[1] / "src/forecache/zoo/assets"
PLAN_CHANGES = {"recipe": None}
"""Keys of version 2 of plan files; the bundled plans were tuned, so that they have no recipe."""
TENSOR_FILES = (statistics.DOCUMENT, router.DOCUMENT, features.DOCUMENT)
"""Formats whose version 1 had the name of the format as the key of its metadata, where now the document has it."""


def header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file: its tensors and its metadata."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def same_bits(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, dtypes, shapes and bytes."""
    return before.keys() == after.keys() and all(
        (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape)
        and save({name: tensor}) == save({name: after[name]})
        for name, tensor in before.items()
    )


def convert_tensors(path: Path, document: Document) -> bool:
    """Whether a file was of version 1 of this format, and is rewritten."""
    data = path.read_bytes()
    metadata = header(data).get("__metadata__", {})
    if set(metadata) != {document.format}:
        return False
    values = json.loads(metadata[document.format])
    if values.pop("version") != 1:
        raise SystemExit(f"{path} is not of version 1 of {document.format}.")
    tensors = load(data)
    tensor_files.write(path, document, values, tensors)
    written = path.read_bytes()
    if not same_bits(tensors, load(written)):
        raise SystemExit(f"The tensors of {path} changed: restore it with git.")
    if json.loads(header(written)["__metadata__"][tensor_files.KEY]) != document.wrap(values):
        raise SystemExit(f"The document of {path} changed: restore it with git.")
    return True


def convert_plan(path: Path) -> bool:
    """Whether a plan file was of version 1, and is rewritten; its cells and constants stay as they were."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("format") != plan_file.DOCUMENT.format or document["version"] != 1:
        return False
    contents = plan_file.decode(document | plan_file.DOCUMENT.wrap(PLAN_CHANGES))
    data = plan_file.encode(contents)
    if json.loads(data) != document | plan_file.DOCUMENT.wrap(PLAN_CHANGES):
        raise SystemExit(f"The plan of {path} would change: it is left as it is.")
    files.write(path, data)
    return True


def main(words: Sequence[str]) -> None:
    """Convert the files of older versions, and name them."""
    common.parser(__doc__).parse_args(words)
    for path in sorted(ASSETS.glob("*/tuned/*.json")):
        if convert_plan(path):
            print(f"{path.relative_to(ASSETS)}: {plan_file.DOCUMENT.format} version {plan_file.DOCUMENT.version}")
    for path in sorted(ASSETS.rglob("*.safetensors")):
        for document in TENSOR_FILES:
            if convert_tensors(path, document):
                print(f"{path.relative_to(ASSETS)}: {document.format} version {document.version}")


if __name__ == "__main__":
    main(sys.argv[1:])
