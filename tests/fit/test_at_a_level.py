"""What learns from a model at levels of whole blocks: statistics, searches, tunings, comparisons, commands."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from support.slow import slow_but
from support.small import small_dit

import forecache as fc
from forecache.bench.comparison.columns import Request
from forecache.errors import SearchFileError, StatisticsError
from forecache.fit import step_errors
from forecache.fit.scores import psnr_to_uncached
from forecache.parts.patterns import Constraints
from forecache.sampling.sources import Sampling, as_source
from forecache.zoo import Digits

T, LABELS = 5, [3, 1, 4]
LEVELS = {
    "groups": {"level": "groups", "group": 2},
    "stack": {"level": "stack"},
    "output": {"level": "stack", "of": "output"},
}


@pytest.fixture(scope="module")
def digits():
    """A random model like that of the digits, of three blocks."""
    return Digits(small_dit(), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


@pytest.fixture(scope="module")
def stats(digits):
    return {
        name: fc.calibrate(digits, LABELS, num_steps=T, batch=2, seed=7, gaps=1, **how) for name, how in LEVELS.items()
    }


def spans(digits, name):
    """The first and last blocks of every site, by hand."""
    blocks = list(digits.transformer.transformer_blocks)
    size = 2 if name == "groups" else len(blocks)
    return [(blocks[first], blocks[min(first + size, len(blocks)) - 1]) for first in range(0, len(blocks), size)]


@pytest.mark.parametrize("name", LEVELS)
def test_statistics_are_the_averages_of_what_the_blocks_of_a_site_add(digits, stats, name):
    """Written out with hooks: the first row of a pair is the conditional one."""
    seen, hooks = {}, []
    pairs = spans(digits, name)
    for site, (first, last) in enumerate(pairs):
        before = []
        hooks.append(first.register_forward_pre_hook(lambda _, args, b=before: b.append(args[0].clone())))

        def keep(_, args, output, site=site, before=before):
            value = output if name == "output" else output - before.pop()
            seen.setdefault(site, []).append(value.clone())

        hooks.append(last.register_forward_hook(keep))
    source = as_source(digits)
    for start in (0, 2):
        source.generate(LABELS[start : start + 2], Sampling(T, 1.5, 7), start)
    for hook in hooks:
        hook.remove()
    found = stats[name]
    assert [site.name for site in found.sites] == [site.name for site in fc.grid(digits, T, **LEVELS[name]).sites]
    for site in range(len(pairs)):
        first, second = torch.stack(seen[site][:T]), torch.cat([x[None] for x in seen[site][T:]])
        expected = torch.cat([first[:, :2], second[:, :1]], 1).mean(1)
        torch.testing.assert_close(found.means[site], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEVELS)
def test_statistics_are_for_plans_of_their_own_level(digits, stats, name):
    method = fc.eoc(fc.fora(2), stats[name], judge="all")
    for other, how in {**LEVELS, "branches": {}}.items():
        grid = fc.grid(digits, T, **how)
        if other == name:
            with torch.no_grad(), fc.apply(digits, method.plan(grid)) as session:
                images = as_source(digits).generate(LABELS[:2], Sampling(T, 1.5, 7))
            assert session.stats.skipped == 2 * len(grid.sites)
            assert torch.isfinite(images).all()
        else:
            with pytest.raises(
                StatisticsError, match=r"with \d+ sites? \(.*calibrate for this run .* the plan's level"
            ):
                method.plan(grid)


def test_a_search_at_a_level_plans_its_sites_and_keeps_its_file(digits, tmp_path):
    space, how = Constraints(T, 2, 0, 3), {"score": psnr_to_uncached(), "seed": 7, "path": tmp_path / "search.json"}
    result = fc.search(digits, space, LABELS[:1], **how, **LEVELS["stack"])
    assert [site.name for site in result.plan.grid.sites] == ["stack"]
    assert result.ranked[0].macs_ratio == result.plan.cost(digits).speedup
    assert json.loads((tmp_path / "search.json").read_text())["settings"]["sites"] == "stack"
    with pytest.raises(SearchFileError, match=r"another search \(.*sites differ\)"):
        fc.search(digits, space, LABELS[:1], **how)


@pytest.mark.usefixtures("short_tuning")
def test_a_tuning_at_a_level_plans_its_sites_and_keeps_its_file(digits, tmp_path):
    how = {"num_steps": T, "longest": 3, "number": 2, "reference": "own", "path": tmp_path / "tune.json"}
    tuned = fc.tune(digits, LABELS[:1], **how, budget=0.6, **LEVELS["groups"])
    assert [site.name for site in tuned.plan.grid.sites] == ["groups.0", "groups.1"]
    with fc.apply(digits, tuned.plan) as session:
        as_source(digits).generate(LABELS[:1], Sampling(T, 1.5, 1000))
    assert session.stats.skipped > 0
    with pytest.raises(SearchFileError, match=r"another tuning \(sites differ\)"):
        fc.tune(digits, LABELS[:1], **how, budget=0.6, **LEVELS["stack"])


def test_methods_of_a_comparison_are_planned_at_a_level(digits):
    request = Request.of(["fora", "goc eta=0.8"], [], T)
    asked = fc.models.levels.AskedSites(level="stack")
    plans = [column.plan for column in request.columns(as_source(digits), asked) if column.plan is not None]
    assert [[site.name for site in plan.grid.sites] for plan in plans] == [["stack"], ["stack"]]
    gram = step_errors.measured_features(as_source(digits), [1], Sampling(T, 1.5, 0), 1, sites=plans[0].grid)
    assert step_errors.document(gram, plans[0])["sites"] == ["stack"]


COMMANDS = {
    "sample": ("--labels", "3", "--steps", "3", "--method", "fora", "--errors"),
    "calibrate": ("--steps", "2", "--samples", "1"),
    "search": ("--steps", "3", "--budget", "2", "--v-min", "0", "--samples", "1", "--candidates", "1"),
    "bench": ("--steps", "2", "--rounds", "1", "--preset", "fora-50"),
    "compare-methods": ("--labels", "3", "--steps", "2", "--method", "fora", "--rounds", "0", "--metrics", "psnr"),
}


@pytest.mark.parametrize("command", slow_but(COMMANDS, "calibrate"))
def test_commands_take_a_level(forecache, tmp_path, command):
    """On the bundled digits model, of twelve blocks."""
    out = tmp_path / ("stats.safetensors" if command == "calibrate" else "out")
    asked = ("--level", "groups", "--group", 6, "--out", out, "--json")
    code, printed, err = forecache(command, "--model", "digits", *COMMANDS[command], *asked)
    assert (code, err) == (0, "")
    names = ["groups.0", "groups.1"]
    if command == "calibrate":
        assert json.loads(printed)["sites"] == names
    elif command == "bench":
        assert json.loads(printed)["settings"]["sites"] == "groups of 6"
    elif command == "compare-methods":
        assert json.loads(printed)["columns"][1]["cost"]["cache_bytes"] == 2 * 2 * DIGITS_BYTES
    else:
        assert [site.name for site in fc.Plan.load(out / "plan.json").grid.sites] == names


DIGITS_BYTES = 36 * 128 * 4
"""A stream of the digits model in float32: 36 tokens, 128 wide."""


def test_a_level_without_a_method_is_refused(forecache):
    code, _, err = forecache("sample", "--labels", 1, "--level", "stack")
    assert code != 0
    assert "--level is that of a method" in err
