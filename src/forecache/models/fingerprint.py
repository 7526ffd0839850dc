"""Fingerprints of models and schedulers, so that what was calibrated on one is not used on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PROBES = 32


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's structure, and a sample of its weights: ``"9f86d081884c7d65:0.0213,-0.11,..."``.

    It does not depend on dtype and device. On the meta device it has no weights.
    """
    parameters = list(model.named_parameters())
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in parameters:
        digest.update(f"{name}:{tuple(parameter.shape)};".encode())
    probed = [parameters[index * len(parameters) // PROBES][1] for index in range(min(PROBES, len(parameters)))]
    probes = ",".join(f"{_probe(weight):.4g}" for weight in probed if weight.is_floating_point() and not weight.is_meta)
    return f"{digest.hexdigest()[:16]}:{probes}"


def _probe(parameter: Tensor) -> float:
    values: Any = parameter.detach()
    if type(values) is not Tensor and hasattr(values, "dequantize"):
        values = values.dequantize()  # tensor classes of quantisers have no readable elements
    return values.flatten()[values.numel() // 2].item() if values.numel() else 0.0


def describe_scheduler(scheduler: Any) -> str:
    """A diffusers scheduler's class and settings as JSON; empty for None."""
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        return ""
    settings = {name: _plain(value) for name, value in config.items() if not name.startswith("_")}
    return json.dumps({"class": type(scheduler).__name__, **settings}, sort_keys=True)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
