"""Small runs in shards, by a module that other processes can import."""

import hashlib
import os

from diffusers import DDIMScheduler

import forecache as fc
from forecache.zoo import Digits
from support.small import small_dit

T, COUNT = 4, 22
LABELS = [(3 * index + 1) % 10 for index in range(COUNT)]
SIZES = {"shard_size": 8, "call_size": 4, "batch": 4}
"""Three shards of 8, 8 and 6 samples; the last call of the last one is filled up."""

MANY = [index % 10 for index in range(190)]
"""Labels of 16 shards of 12 samples."""


def tiny(scheduler=None):
    return Digits(small_dit(), scheduler or DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


def run(target, out, labels=LABELS, **options):
    return fc.sampling.sample_shards(target, labels, out, **({"num_steps": T, "seed": 7} | SIZES | options))


def digest(folder):
    return hashlib.sha256((folder / "samples.npz").read_bytes()).hexdigest()


def work(out, rank, size, batch):
    """What a process does, alone in its own interpreter: 16 shards of 12 samples."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    run(tiny(), out, MANY, batch=batch, shard_size=12)
