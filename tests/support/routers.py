"""Routers for tests: published files made up here, and small models to train a router on. No diffusers in here."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import safe_open

from forecache.sampling.loop import noise
from support import reference

PUBLISHED = Path(__file__).parent.parent.parent.parent / "shared/data/l2c/dit-xl-2-256-ddim20-router.pt"
"""The authors' router for DiT-XL/2 256, DDIM-20. It is not ours to give away, so it lies beside the repository."""

CLASSES = 10


def published(num_steps=4, blocks=2, seed=0):
    """What a published file holds, for another model: rows by ascending noise, the attention and MLP of every block."""
    generator = torch.Generator().manual_seed(seed)
    rows = {f"{i}.prob": torch.randn(2 * blocks, generator=generator) * 3 for i in range(num_steps)}
    args = argparse.Namespace(model="DiT-XS", lr=1e-3, l1=5e-6, max_steps=10, wandb=True, ckpt=None, data_path="/data")
    return {"routers": OrderedDict(rows), "opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "args": args}


def checkpoint(path):
    """What a checkpoint of a training says about itself."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["forecache"])


class Trajectories:
    """A small DiT as a source: DDIM with a guidance pair by the reference's loop."""

    classes = CLASSES

    def __init__(self, model, call=lambda model, x, t, y: model(x, t, y)):
        self.target = model
        self._call = call

    def generate(self, labels, how, first_index=0, on_step=None):
        y = torch.tensor([*labels, *[CLASSES] * len(labels)])
        start = noise((4, 8, 8), how.seed, range(first_index, first_index + len(labels)))
        return reference.ddim(lambda x, t, step: self._call(self.target, x, t, y), start, how.num_steps, how.guidance)


def diffusers_call(model, x, t, y):
    return model(x, timestep=t, class_labels=y, return_dict=False)[0]
