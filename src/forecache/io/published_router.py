"""The router files that the authors of Learning-to-Cache publish, read as data: nothing in them is executed.

A ``.pt`` file is a zip archive with a pickle in it. The pickle is a dict of ``routers``, ``opt`` and ``args``;
``routers`` has an entry ``"i.prob"`` for every respaced timestep i, in ascending noise, with 2 L logits for L blocks:
2 l is the attention of block l, 2 l + 1 its MLP. T steps, S sites.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forecache.io import files
from forecache.io.text import short

MAX_BYTES = 16 * 2**20
"""Most bytes of a file, and of its parts together."""
MAX_CELLS = 2**22
"""Most logits of a router."""
MAX_PARTS = 2**14
"""Most parts of an archive."""
VOCABULARY = {
    "argparse Namespace", "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage", "torch DoubleStorage",
    "torch LongStorage", "torch IntStorage", "torch BoolStorage",
}  # fmt: skip
"""The names that a pickle may ask for."""
RECORDED = ("model", "image_size", "num_sampling_steps", "lr", "l1", "max_steps", "global_batch_size", "global_seed")
"""The settings of the training that become provenance."""


def read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Logits (T, S) float32 in sampling order, and provenance; ValueError or OSError if the file is not a router."""
    content = files.contents(path, MAX_BYTES)
    _check_archive(content)
    document = _load(content)
    if not isinstance(document, dict) or "routers" not in document:
        raise ValueError("it has no entry 'routers'")
    if strange := set(document) - {"routers", "opt", "args"}:
        raise ValueError(f"it has {len(strange)} entries besides routers, opt and args")
    provenance = {
        "made_by": f"published router {path.name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        **_settings(document.get("args")),
    }
    return _logits(document["routers"]), provenance


def _check_archive(content: bytes) -> None:
    """Raises ValueError unless the archive's parts are uncompressed, so that nothing grows when it is read."""
    if content.count(b"PK\x01\x02") > MAX_PARTS:  # before they are listed
        raise ValueError(f"its archive claims to hold more than {MAX_PARTS} parts")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            pickles = [archive.read(part) for part in parts if part.filename.endswith("/data.pkl")]
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"it is damaged, or no file of torch.save: {error}") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its archive is compressed, which torch.save never does")
    if sum(part.file_size for part in parts) > MAX_BYTES:
        raise ValueError(f"its archive claims to hold more than {MAX_BYTES} bytes")
    for data in pickles:
        _check_names(data)


def _check_names(data: bytes) -> None:
    """Raises ValueError for a pickle with names outside of `VOCABULARY`, which is narrower than torch's own list."""
    try:
        names = {arg for code, arg, _ in pickletools.genops(data) if code.name in ("GLOBAL", "STACK_GLOBAL")}
    except Exception as error:  # a truncated pickle fails in many ways
        raise ValueError(f"its pickle is damaged ({type(error).__name__}); nothing in it was run") from error
    if strange := names - VOCABULARY:
        raise ValueError(
            f"it asks for {short(sorted(map(str, strange))[0])}, something other than tensors and settings; nothing in "
            "it was run"
        )


def _load(content: bytes) -> Any:
    """The pickled value. Beside tensors only argparse.Namespace is allowed, which the training's settings are."""
    if not hasattr(torch.serialization, "safe_globals"):
        raise ValueError(f"reading it without executing it needs torch 2.5; this is {torch.__version__}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it asks for something other than tensors and settings, or its pickle is damaged; nothing in it was run"
        ) from error
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"it is damaged ({type(error).__name__}); nothing in it was run") from error


def _logits(routers: Any) -> Tensor:
    if not isinstance(routers, Mapping) or not routers:
        raise ValueError("its entry 'routers' is not a table of logits by timestep")
    names = [f"{index}.prob" for index in range(len(routers))]
    if set(routers) != set(names):
        raise ValueError(f"its {len(routers)} rows are not named 0.prob to {len(routers) - 1}.prob")
    rows = [routers[name] for name in reversed(names)]  # c = T - 1 - i
    if not all(_is_row(row) and row.shape == rows[0].shape for row in rows):
        raise ValueError("its rows are not real vectors of one even length: the attention and the MLP of every block")
    if len(rows) * len(rows[0]) > MAX_CELLS:
        raise ValueError(f"it claims {len(rows)} x {len(rows[0])} logits; a router has at most {MAX_CELLS}")
    return torch.stack([row.float() for row in rows])


def _is_row(row: Any) -> bool:
    """Whether a value is a real vector of even length."""
    plain = isinstance(row, Tensor) and row.layout is torch.strided and row.device.type == "cpu"
    real = plain and row.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return real and row.dim() == 1 and len(row) > 0 and len(row) % 2 == 0


def _settings(args: Any) -> dict[str, str]:
    values = vars(args) if isinstance(args, argparse.Namespace) else {}
    recorded = {name: values[name] for name in RECORDED if type(values.get(name)) in (str, int, float)}
    texts = {name: str(value) for name, value in recorded.items()}
    return {name: text for name, text in texts.items() if len(text) <= 100 and text.isprintable()}
