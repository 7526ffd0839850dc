"""Testbeds: the sampler and the decoder of a table, and what bundled models bring."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, FlowMatchEulerDiscreteScheduler
from support.reproductions import DIT

import forecache as fc
from forecache.reproduce import testbed as testbeds
from forecache.reproduce.recipes import Ingredients, method_of
from forecache.reproduce.table import open_table
from forecache.sampling import sources
from forecache.sampling.respaced import RespacedDiT


def test_dit_tables_are_sampled_as_dit_samples(pipe_folder, tmp_path):
    """Respaced timesteps and three guided channels by default; another VAE where one is given."""
    from diffusers import AutoencoderKL

    table = open_table("goc-table-1")
    plain = testbeds.TestbedOptions(metrics="psnr")
    testbed = testbeds.open_testbed(table, str(pipe_folder), plain, "cpu")
    assert isinstance(testbed.source, RespacedDiT)
    testbed.source.pipe.scheduler.set_timesteps(20)
    assert testbed.source.pipe.scheduler.timesteps[:2].tolist() == [999, 946]
    assert [note.split(":")[0] for note in testbed.notes] == [
        "Sampled as DiT's original code does",
        "Decoded by the pipeline's own VAE, not by stabilityai/sd-vae-ft-ema.",
    ]
    torch.manual_seed(5)
    other = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    other.save_pretrained(tmp_path / "vae")
    given = replace(plain, vae=str(tmp_path / "vae"))
    decoded = testbeds.open_testbed(table, str(pipe_folder), given, "cpu")
    assert decoded.notes[-1] == f"Decoded by {tmp_path / 'vae'}."
    how = sources.Sampling(4, 1.5, 0)
    assert not torch.equal(decoded.source.generate([1], how), testbed.source.generate([1], how))
    weights = decoded.source.pipe.vae.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(fc.errors.InputError, match=r"The VAE .*nowhere cannot be loaded.*or --vae own"):
        testbeds.open_testbed(table, str(pipe_folder), replace(plain, vae=str(tmp_path / "nowhere")), "cpu")
    with pytest.raises(fc.errors.InputError, match="decodes nothing: leave --vae x out"):
        testbeds.open_testbed(table, "digits", replace(plain, vae="x"), "cpu", judges=False)


def test_priors_that_are_not_the_authors_are_said():
    here = testbeds.open_testbed(open_table("eoc"), "digits", testbeds.TestbedOptions(), "cpu", judges=False)
    assert any(note.startswith("EOC's priors are means per channel here") for note in here.notes)
    other = testbeds.open_testbed(open_table("goc-table-1"), "digits", testbeds.TestbedOptions(), "cpu", judges=False)
    assert not any("priors" in note for note in other.notes)


def test_a_pipeline_samples_by_the_tables_scheduler(pipe_folder, tmp_path):
    pipe = DiTPipeline.from_pretrained(pipe_folder)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, beta_end=0.03)
    pipe.save_pretrained(tmp_path / "pipe")
    table = replace(open_table("goc-table-1"), sampler="DDIM", vae="")
    testbed = testbeds.open_testbed(table, str(tmp_path / "pipe"), testbeds.TestbedOptions(metrics="psnr"), "cpu")
    assert type(testbed.source.target.scheduler).__name__ == "DDIMScheduler"
    assert testbed.source.target.scheduler.config.beta_end == 0.03
    assert testbed.notes == ("The pipeline's DDPMScheduler was replaced by DDIMScheduler, the sampler of the table.",)


def test_a_sampler_that_a_pipeline_cannot_have_is_refused():
    flow = SimpleNamespace(pipe=SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(fc.errors.InputError, match="FlowMatchEulerDiscreteScheduler cannot be sampled by it"):
        testbeds._with_sampler(flow, open_table("goc-table-1"))


def test_digits_bring_all_that_a_table_needs():
    """The judge, the routers and the statistics of digits; its classes are drawn as the paper's are."""
    for name in DIT:
        table = open_table(name)
        here = testbeds.open_testbed(table, "digits", testbeds.TestbedOptions(), "cpu")
        assert isinstance(here, testbeds.Testbed)
        assert here.metrics == (*table.metrics, "accuracy", "psnr")
        assert (here.judges.extractor.name, here.reference.name, here.guidance) == ("digits", "digits", 1.5)
        for row in (row for row in table.rows if row.recipe):
            method = method_of(row.recipe, Ingredients(here.routers, here.statistics))
            assert method.plan(fc.grid(here.source.target, table.steps)).num_steps == table.steps
    here = testbeds.open_testbed(open_table("procache-pixart"), "digits", testbeds.TestbedOptions(), "cpu")
    assert here.metrics == ("fid", "accuracy", "psnr")
    assert "clip is left out" in here.notes[-1]
    assert "not by DPM-Solver++" in here.notes[0]
