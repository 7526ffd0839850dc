"""A stand-in of the interfaces of ComfyUI that the node pack uses, written from their documentation.

A model patcher with wrappers and attachments, a guider whose ``sample`` runs wrapped, a base model whose
``apply_model`` does, conditionings with uuids, and the options of a call that the pack reads: ``sigmas`` and ``uuids``.
"""

import copy
import importlib.util
import itertools
import sys
import types
import uuid
from pathlib import Path

import torch
from torch import nn

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    APPLY_MODEL = "apply_model"


def installed(monkeypatch):
    """Lets ``from comfy.patcher_extension import WrappersMP`` find the stand-in."""
    extension = types.ModuleType("comfy.patcher_extension")
    extension.WrappersMP = WrappersMP
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)


def pack(monkeypatch):
    """The node pack as ComfyUI imports it: a folder, by its path."""
    installed(monkeypatch)
    how = {"submodule_search_locations": [str(PACK)]}
    spec = importlib.util.spec_from_file_location("custom_forecache", PACK / "__init__.py", **how)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_forecache", module)
    for name in ("custom_forecache.nodes", "custom_forecache.sampling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec.loader.exec_module(module)
    return module


class Executor:
    """Calls the wrappers one inside another, then the function; ``class_obj`` is whose method it is."""

    def __init__(self, function, owner, wrappers):
        self.function, self.class_obj, self.wrappers = function, owner, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.function(*args, **kwargs)
        first, *rest = self.wrappers
        return first(Executor(self.function, self.class_obj, rest), *args, **kwargs)


def wrapped(function, owner, options, kind):
    by_key = options.get("wrappers", {}).get(kind, {})
    return Executor(function, owner, [wrapper for wrappers in by_key.values() for wrapper in wrappers])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x, context):
        return x + torch.tanh(self.linear(torch.cat([x, context], -1)))


class DiffusionModel(nn.Module):
    """x (B, N, 4), t (B), context (B, 1, 8) to (B, N, 4): an embedding, three blocks, a head."""

    def __init__(self, width=8, depth=3):
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x, t, context=None, control=None, transformer_options=None, **_):
        h = self.embed(torch.cat([x, t[:, None, None].expand(*x.shape[:2], 1)], -1))
        context = context.expand(-1, x.shape[1], -1)
        for block in self.blocks:
            h = block(h, context)
            if control is not None:
                h = h + control
        return self.head(h)


class BaseModel:
    def __init__(self, diffusion_model):
        self.diffusion_model = diffusion_model

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        executor = wrapped(self._apply_model, self, transformer_options or {}, WrappersMP.APPLY_MODEL)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **more)

    def _apply_model(self, x, t, c_concat, c_crossattn, control, transformer_options, **more):
        output = self.diffusion_model(
            x, t, context=c_crossattn, control=control, transformer_options=transformer_options, **more
        )
        return x - t[:, None, None] * output


class ModelPatcher:
    def __init__(self, model):
        self.model = model
        self.model_options = {"transformer_options": {}}
        self._attachments = {}

    def clone(self):
        other = ModelPatcher(self.model)
        options = self.model_options["transformer_options"]
        kinds = {kind: dict(by_key) for kind, by_key in options.get("wrappers", {}).items()}
        other.model_options = {**self.model_options, "transformer_options": {**options, "wrappers": kinds}}
        other._attachments = dict(self._attachments)
        return other

    def add_wrapper_with_key(self, kind, key, wrapper):
        wrappers = self.model_options["transformer_options"].setdefault("wrappers", {})
        wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.model_options["transformer_options"].get("wrappers", {}).get(kind, {}).pop(key, None)

    def set_attachments(self, key, value):
        self._attachments[key] = value

    def get_attachment(self, key):
        return self._attachments.get(key)


class Guider:
    """Classifier-free guidance; one batched call, or one call a conditioning.

    conds: (context, control) of every conditioning, by uuid.
    """

    def __init__(self, patcher, conds, batched=False):
        self.model_patcher, self.model_options = patcher, copy.copy(patcher.model_options)
        self.conds, self.batched = conds, batched

    def sample(self, noise, sampler, sigmas):
        options = self.model_options["transformer_options"]
        executor = wrapped(self.outer_sample, self, options, WrappersMP.OUTER_SAMPLE)
        return executor(noise, torch.zeros_like(noise), sampler, sigmas, None, None, False, 0)

    def outer_sample(self, noise, latent, sampler, sigmas, mask=None, callback=None, quiet=False, seed=None):
        def denoised(x, sigma):
            options = {
                **self.model_options["transformer_options"],
                "sample_sigmas": sigmas,
                "sigmas": sigma.expand(len(x)),
            }
            groups = [list(self.conds)] if self.batched else [[key] for key in self.conds]
            outputs = {}
            for keys in groups:
                contexts, controls = zip(*(self.conds[key] for key in keys), strict=True)
                outs = self.model_patcher.model.apply_model(
                    torch.cat([x] * len(keys)),
                    sigma.expand(len(x) * len(keys)),
                    c_crossattn=torch.cat(contexts),
                    control=controls[0],
                    transformer_options={**options, "uuids": keys},
                )
                outputs |= dict(zip(keys, outs.chunk(len(keys)), strict=True))
            first, *rest = outputs.values()
            return rest[0] + 2.0 * (first - rest[0]) if rest else first

        return sampler(denoised, latent + noise * sigmas[0], sigmas)


def euler(denoised, x, sigmas):
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (x - denoised(x, sigma)) / sigma * (following - sigma)
    return x


def heun(denoised, x, sigmas):
    """Two calls a step, the second where the next step begins."""
    for sigma, following in itertools.pairwise(sigmas):
        slope = (x - denoised(x, sigma)) / sigma
        ahead = x + slope * (following - sigma)
        if following > 0:
            slope = (slope + (ahead - denoised(ahead, following)) / following) / 2
        x = x + slope * (following - sigma)
    return x


def patcher(seed=0):
    torch.manual_seed(seed)
    return ModelPatcher(BaseModel(DiffusionModel().eval()))


def conds(count=2, control=None):
    generator = torch.Generator().manual_seed(3)
    return {uuid.UUID(int=number): (torch.randn(1, 1, 8, generator=generator), control) for number in range(count)}


def sigmas(steps, first=1.0):
    return torch.linspace(first, 0, steps + 1)
