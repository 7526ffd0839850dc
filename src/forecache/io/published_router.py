"""The router files that the authors of Learning-to-Cache publish: read as data, never executed.

A ``.pt`` file is a zip archive with a pickle in it. It holds a dict ``routers``, ``opt``, ``args``; ``routers`` has an
entry ``"i.prob"`` for every respaced timestep i, in ascending noise, with 2 L logits: 2 l is the attention of block l,
2 l + 1 its MLP. T steps, S sites.
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
MAX_CELLS = 2**22
MAX_PARTS = 2**14
VOCABULARY = {
    "argparse Namespace", "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage", "torch DoubleStorage",
    "torch LongStorage", "torch IntStorage", "torch BoolStorage",
}  # fmt: skip
RECORDED = ("model", "image_size", "num_sampling_steps", "lr", "l1", "max_steps", "global_batch_size", "global_seed")
"""The settings of the training that are kept as provenance."""


def read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Logits (T, S) in sampling order, float32, and provenance. ValueError or OSError if the file is not one."""
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
    """An archive whose parts are stored as they are, so that nothing grows when it is read."""
    if content.count(b"PK\x01\x02") > MAX_PARTS:  # before a list of them is made
        raise ValueError(f"its archive claims to hold more than {MAX_PARTS} parts")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            pickled = [archive.read(part) for part in parts if part.filename.endswith("/data.pkl")]
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"it is damaged, or no file of torch.save: {error}") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its archive is compressed, which torch.save never does")
    if sum(part.file_size for part in parts) > MAX_BYTES:
        raise ValueError(f"its archive claims to hold more than {MAX_BYTES} bytes")
    for each in pickled:
        _check_names(each)


def _check_names(pickled: bytes) -> None:
    """What the pickle asks for by name is of a closed list, shorter than what torch lets in (`bytearray`, say)."""
    try:
        names = {arg for code, arg, _ in pickletools.genops(pickled) if code.name in ("GLOBAL", "STACK_GLOBAL")}
    except Exception as error:  # it ends in the midst of something
        raise ValueError(f"its pickle is damaged ({type(error).__name__}); nothing in it was run") from error
    if strange := names - VOCABULARY:
        raise ValueError(
            f"it asks for {short(sorted(map(str, strange))[0])}, something other than tensors and settings; nothing in "
            "it was run"
        )


def _load(content: bytes) -> Any:
    """The pickled tensors; argparse.Namespace is let in because the training's settings are one, and nothing else."""
    if not hasattr(torch.serialization, "safe_globals"):
        raise ValueError(f"reading it without executing it needs torch 2.5; this is {torch.__version__}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it asks for something other than tensors and settings, or its pickle is damaged; nothing in it was run"
        ) from error
    except Exception as error:  # a damaged pickle fails in many ways; none of them is ours to tell apart
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
    plain = isinstance(row, Tensor) and row.layout is torch.strided and row.device.type == "cpu"
    real = plain and row.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return real and row.dim() == 1 and len(row) > 0 and len(row) % 2 == 0


def _settings(args: Any) -> dict[str, str]:
    values = vars(args) if isinstance(args, argparse.Namespace) else {}
    kept = {name: values[name] for name in RECORDED if type(values.get(name)) in (str, int, float)}
    texts = {name: str(value) for name, value in kept.items()}
    return {name: text for name, text in texts.items() if len(text) <= 100 and text.isprintable()}
