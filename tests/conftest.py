"""What the tests share: small random models, and the loop that samples from them."""

import copy
import gc
import logging as standard_logging
import os
import sys

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
)
from diffusers.utils import logging
from hypothesis import settings
from support.inception import write_inception
from support.pipelines import small_wan
from support.small import small_dit, small_facebook_dit, small_flux, small_pixart, small_t5, small_vae
from transformers.utils import logging as transformers_logging

from forecache import cli
from forecache.fit.tuning import across, plan_search, proposals, refine, trial_runner
from forecache.sampling import fine

logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)
THOROUGH = bool(os.environ.get("FORECACHE_THOROUGH"))
"""`make test-all` tries more random cases."""
settings.register_profile("short", deadline=None, max_examples=15, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("thorough" if THOROUGH else "short")


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What stands before a file's tests is left out of garbage collections, which take seconds in an old process."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log():
    """The library's logger as a fresh process has it, whatever other libraries did to loggers before."""
    logger = standard_logging.getLogger("forecache")
    logger.disabled, logger.propagate, logger.manager.disable = False, True, standard_logging.NOTSET
    logger.setLevel(standard_logging.NOTSET)


@pytest.fixture(scope="session")
def _dit():
    return small_dit()


@pytest.fixture
def dit(_dit):
    return copy.deepcopy(_dit)


@pytest.fixture
def facebook():
    return small_facebook_dit()


@pytest.fixture(scope="session")
def pipe_folder(tmp_path_factory):
    """A small random DiTPipeline as a folder. DiTPipeline's "no label" is 1000, whatever its model."""
    folder = tmp_path_factory.mktemp("pipeline")
    transformer = small_dit(classes=1000, seed=2)
    DiTPipeline(transformer, small_vae(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pixart_folder(tmp_path_factory):
    """A small random PixArtAlphaPipeline as a folder, text encoder and tokenizer included."""
    folder = tmp_path_factory.mktemp("pixart")
    encoder, tokenizer = small_t5()
    parts = tokenizer, encoder, small_vae(), small_pixart(seed=3), DPMSolverMultistepScheduler()
    PixArtAlphaPipeline(*parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A small random WanPipeline as a folder: videos of 16 x 16."""
    folder = tmp_path_factory.mktemp("wan")
    small_wan().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory):
    """A small random FluxPipeline as a folder, text encoders and tokenizers included."""
    return small_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def pipe(pipe_folder):
    pipe = DiTPipeline.from_pretrained(pipe_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def forecache(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["forecache", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def short_tuning(monkeypatch):
    """Tunings that sample with little, where they are not what is tested."""
    monkeypatch.setattr(refine, "ROUNDS", 1)
    monkeypatch.setattr(refine, "SCHEDULES", 1)
    monkeypatch.setattr(proposals, "LAST", 2)
    monkeypatch.setattr(plan_search, "FINALISTS", 2)
    monkeypatch.setattr(trial_runner, "NOISES", 1)
    monkeypatch.setattr(across, "SCREENED", 1)
    monkeypatch.setattr(across, "KEPT", 1)
    monkeypatch.setattr(fine, "LEAST_STEPS", 8)
    monkeypatch.setattr(fine, "MOST_STEPS", 32)
    monkeypatch.setattr(across, "FEW", 2)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights of torch-fidelity's Inception as the file that it publishes."""
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")
