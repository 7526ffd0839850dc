"""Training of routers, which say what cells need not be computed (Learning-to-Cache, arXiv 2406.01733).

The model is frozen and samples as usual. The features of an even call are cached; in the odd call after it the model
runs once more on the same input, and every site gives (1 - p) * cached + p * computed, where p is sigmoid(logit). The
router learns logits that keep this output close to the full one with as small a sum of p as possible:

    loss = MSE(full output, mixed output) + lam * sum of p

K odd calls, S sites.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forecache import distributed
from forecache.distributed import World
from forecache.environment import environment
from forecache.errors import InputError, RouterFileError, RunError
from forecache.fit.router_loss import RouterLoss, frozen
from forecache.io import tensor_files
from forecache.io.document import Document, refusing
from forecache.io.text import short
from forecache.models.find import describe, find, layout
from forecache.models.layout import Layout
from forecache.parts.grid import Grid
from forecache.parts.router import Router
from forecache.sampling.sources import Sampling, Source, all_conditions, as_source

START = 2.0
"""Initial logit, p = 0.88: near the full output, so that a cell is judged among others that are computed."""
LIMIT = 5.0
"""Logits are clamped to [-LIMIT, LIMIT], as in the paper."""
SAVE_SECONDS = 30.0
"""Seconds between two checkpoints."""
DOCUMENT = Document("forecache-router-training", 1)
TYPES = {"settings": dict, "sites": list, "iteration": int, "seconds": float, "loss": float, "error": float}
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Progress:
    """The state of a training after an iteration.

    iteration: its number, from 1.
    loss: of this iteration, mean over the pairs of calls.
    error: the MSE in this loss.
    level: share of all cells that the router skips so far.
    """

    iteration: int
    loss: float
    error: float
    level: float


@dataclass(frozen=True)
class Settings:
    """Everything that decides the logits of a training, besides its number of iterations.

    model: description of the model and its sites.
    processes: number of processes, each of which samples its own trajectories.
    num_steps: sampling steps.
    guidance: classifier-free guidance scale.
    batch: samples of an iteration and process.
    lr: learning rate.
    lam: price of a computed site, in MSE of the model's output.
    seed: of conditions and noise.
    """

    model: str
    processes: int
    num_steps: int
    guidance: float
    batch: int
    lr: float
    lam: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_steps < 2 or self.batch < 1:
            raise InputError(
                f"A router needs at least 2 steps and a batch of 1; {self.num_steps} and {self.batch} were asked for."
            )
        if not 0 < self.lr < 1e3 or not 0 <= self.lam < 1e6 or self.seed < 0:
            raise InputError(
                f"A router is trained with lr > 0, lam >= 0 and seed >= 0; {self.lr}, {self.lam} and {self.seed} were "
                "asked for."
            )


def train_router(
    target: Any,
    *,
    num_steps: int,
    iterations: int,
    lr: float = 1e-3,
    lam: float = 5e-6,
    batch: int = 8,
    guidance: float = 1.5,
    seed: int = 0,
    threshold: float = 0.1,
    sites: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    on_iteration: Callable[[Progress], None] | None = None,
) -> Router:
    """A router for this model and sampler, by the objective of Learning-to-Cache (arXiv 2406.01733).

    target: a DiTPipeline, a bundled model, or any `sources.Source`.
    num_steps: sampling steps, at least 2.
    iterations: updates of the logits.
    lr: learning rate; 1e-3 in the paper, for 50,000 updates.
    lam: price of a computed site, in MSE of the model's output; 5e-6 at 20 steps and 1e-6 at 50 in the paper.
    batch: samples of one iteration and process.
    threshold: of p, for the levels that are reported.
    sites: patterns of module sites, as in `grid`.
    checkpoint: a file, written every half minute and at the end; a training continues from it if it exists.

    The paper draws single pairs of neighbouring calls, from noised training images. Here an iteration is one sampling
    run of the model, guidance pair and scheduler included, and every pair of calls in it adds its loss: no data is
    needed, the inputs are those that a cached run meets, and one iteration updates the logits of all odd calls.
    AdamW without weight decay; logits start at 2 (p = 0.88) and are clamped to [-5, 5]. Where torch.distributed runs,
    processes sample different trajectories and average their gradients. The model is restored, also after an error.
    Raises InputError for settings that cannot be used, or that differ from the checkpoint's.
    """
    source = as_source(target)
    if not all_conditions(source):
        raise InputError(
            "A router is trained on samples of classes, or of texts that the model comes with; "
            f"{type(source.target).__name__} has neither. In Python, give train_router a source with `prompts`."
        )
    model = find(source.target)
    sites_of_model = layout(model, sites)
    world = distributed.current()
    settings = Settings(describe(model, sites_of_model), world.size, num_steps, guidance, batch, lr, lam, seed)
    if iterations < 1:
        raise InputError(f"A training has at least one iteration; {iterations} were asked for.")
    training = Training(Grid(num_steps, sites_of_model.sites), settings, next(model.parameters()).device)
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint, iterations)
    world.wait()
    saved = time.monotonic()
    with frozen(model):
        while training.iteration < iterations:
            training.iterate(source, sites_of_model, world)
            done = training.iteration == iterations
            if checkpoint is not None and world.leads and (done or time.monotonic() - saved >= SAVE_SECONDS):
                training.save(checkpoint)
                saved = time.monotonic()
            if on_iteration is not None and world.leads:
                on_iteration(training.progress(threshold))
    return training.router(training.provenance(threshold))


class Training:
    """The state of one training, as a checkpoint holds it, and the iteration that advances it.

    grid: steps and sites.
    settings: of the training.
    calls: the odd model calls, one for each row of the logits.
    logits_KS: the logits.
    optimizer: AdamW over the logits.
    iteration: number of iterations so far.
    seconds: time that they took.
    error: MSE of the last iteration.
    loss: of the last iteration.
    """

    def __init__(self, grid: Grid, settings: Settings, device: torch.device) -> None:
        self.grid = grid
        self.settings = settings
        self.calls = tuple(range(1, grid.num_steps, 2))
        self.logits_KS = nn.Parameter(torch.full((len(self.calls), len(grid.sites)), START, device=device))
        self.optimizer = torch.optim.AdamW([self.logits_KS], lr=settings.lr, weight_decay=0.0)
        self.iteration = 0
        self.seconds = 0.0
        self.error = self.loss = float("nan")

    def iterate(self, source: Source, layout: Layout, world: World) -> None:
        """One sampling run and one update of the logits."""
        started = time.perf_counter()
        loss = RouterLoss(layout, self.logits_KS, self.settings.lam, self.grid.num_steps)
        number = self.iteration * world.size + world.rank
        with loss.watching():
            _trajectory(source, self.settings, number, self.logits_KS.device)
        assert self.logits_KS.grad is not None, "every run has an odd call"
        sums = torch.stack([torch.stack(loss.errors).mean(), torch.stack(loss.losses).mean()])
        world.sum_([self.logits_KS.grad, sums])
        self.logits_KS.grad.div_(world.size)
        self.error, self.loss = (sums / world.size).tolist()
        if not np.isfinite(self.loss) or not self.logits_KS.grad.isfinite().all():
            raise RunError(
                f"The loss of iteration {self.iteration + 1} is {self.loss}: sample in float32, and check that "
                "the model's samples are finite."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.logits_KS.clamp_(-LIMIT, LIMIT)
        self.iteration += 1
        self.seconds += time.perf_counter() - started

    def progress(self, threshold: float) -> Progress:
        """The state for whoever watches."""
        return Progress(self.iteration, self.loss, self.error, self.router({}).level(threshold))

    def router(self, provenance: dict[str, str]) -> Router:
        """The router of the present logits; rows of even calls, which are always computed, hold zeros."""
        logits_TS = torch.zeros(self.grid.num_steps, len(self.grid.sites))
        logits_TS[list(self.calls)] = self.logits_KS.detach().cpu()
        return Router(logits_TS, tuple(site.name for site in self.grid.sites), self.calls, provenance)

    def provenance(self, threshold: float) -> dict[str, str]:
        """How the router was trained, as text."""
        place = environment()
        facts = {
            "made_by": "forecache.train_router",
            **asdict(self.settings),
            "iterations": self.iteration,
            "loss": f"{self.loss:.4g}",
            "error": f"{self.error:.4g}",
            "threshold": threshold,
            "level": f"{self.router({}).level(threshold):.4f}",
            "seconds": round(self.seconds),
            "hardware": place["gpu"] or place["cpu"],
            **{name: place[name] for name in ("forecache", "torch", "diffusers")},
        }
        return {name: str(value) for name, value in facts.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = self.optimizer.state[self.logits_KS]
        values = {
            "settings": asdict(self.settings),
            "sites": [site.name for site in self.grid.sites],
            "iteration": self.iteration,
            "seconds": self.seconds,
            "loss": self.loss,
            "error": self.error,
        }
        tensors = {"logits": self.logits_KS, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        tensor_files.write(path, DOCUMENT, values, tensors)

    def load(self, path: Path, iterations: int) -> None:
        """Continue from a checkpoint; InputError if it is of other settings, RouterFileError if it is damaged."""
        with refusing(path, RouterFileError, "checkpoint of a router", "Remove it to start again"):
            state, tensors = tensor_files.read(path, DOCUMENT, TYPES, MAX_BYTES)
            if set(tensors) != {"logits", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"it holds {short(sorted(tensors))}")
        self._check_same(path, state, iterations)
        with refusing(path, RouterFileError, "checkpoint of a router", "Remove it to start again"):
            if not all(_is_state(tensor, self.logits_KS) for tensor in tensors.values()):
                raise ValueError("its tensors are not finite ones of the router's shape")
        ours = {name: tensor.float().to(self.logits_KS.device) for name, tensor in tensors.items()}
        with torch.no_grad():
            self.logits_KS.copy_(ours.pop("logits"))
        self.optimizer.state[self.logits_KS] = {"step": torch.tensor(float(state["iteration"])), **ours}
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.loss, self.error = state["loss"], state["error"]

    def _check_same(self, path: Path, state: dict[str, Any], iterations: int) -> None:
        """Raises InputError for a checkpoint of another training, or of more iterations."""
        ours = asdict(self.settings) | {"sites": [site.name for site in self.grid.sites]}
        theirs = state["settings"] | {"sites": state["sites"]}
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            name = different[0]
            raise InputError(
                f"{path} is the checkpoint of another training: its {name} is {short(theirs.get(name))}, and "
                f"{short(ours[name])} was asked for. Repeat its settings, or train to another file."
            )
        if state["iteration"] > iterations:
            raise InputError(
                f"{path} holds {state['iteration']} iterations, and {iterations} were asked for: ask for at least as "
                "many, or train to another file."
            )


def _is_state(tensor: Tensor, logits_KS: Tensor) -> bool:
    plain = tensor.shape == logits_KS.shape and tensor.dtype is torch.float32
    return plain and bool(tensor.isfinite().all())


def _trajectory(source: Source, settings: Settings, number: int, device: torch.device) -> None:
    """Sample trajectory ``number`` of a training: its conditions and noise depend on the seed and the number alone."""
    conditions = all_conditions(source)
    drawn = np.random.default_rng((settings.seed, number)).integers(len(conditions), size=settings.batch)
    # `forecache sample` with the same seed draws other noise
    noise_seed = int(np.random.SeedSequence((settings.seed, 2406, 1733)).generate_state(1)[0])
    how = Sampling(settings.num_steps, settings.guidance, noise_seed)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(noise_seed + number)  # for schedulers that draw noise in every step
        source.generate([conditions[index] for index in drawn.tolist()], how, first_index=number * settings.batch)
