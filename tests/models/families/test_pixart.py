"""PixArt: three branches a block under adaLN-single, against sampling written out by hand, and through its pipeline."""

import copy
import json

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from PIL import Image
from support import reference
from support.small import small_pixart
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import forecache as fc
from forecache.models.find import layout
from forecache.parts import tokens
from forecache.runtime.forwards import Forwards

STEPS = 20
TEXT, WIDTH = 5, 12
"""Tokens of a caption, and the width of what its encoder gives."""


@pytest.fixture
def pixart():
    return small_pixart()


def captions(count=2):
    """Captions of different lengths, and as many empty ones: one guidance batch, and its mask."""
    states = torch.randn(2 * count, TEXT, WIDTH, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2 * count, TEXT)
    mask[0, 3:] = mask[count:, 1:] = 0
    return states, mask


def noise(count=2, seed=0):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def sample(predict, num_steps=STEPS, seed=0):
    """DPM-Solver++ of the second order, as PixArt is sampled; the scheduler is not in question here."""
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(num_steps)
    x = noise(seed=seed)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            output = predict(torch.cat([x, x]), t.expand(2 * len(x)), step)[:, : x.shape[1]]
            cond, uncond = output.chunk(2)
            x = scheduler.step(uncond + 4.5 * (cond - uncond), t, x).prev_sample
    return x


def generate(model, num_steps=STEPS, seed=0):
    states, mask = captions()

    def predict(x, t, step):
        states_, x = states.to(model.dtype), x.to(model.dtype)
        return model(x, encoder_hidden_states=states_, timestep=t, encoder_attention_mask=mask).sample.float()

    return sample(predict, num_steps, seed)


def by_hand(model, rule, num_steps=STEPS):
    return sample(reference.cached(reference.pixart, model, captions(), rule), num_steps)


def sampled(model, plan):
    with fc.apply(model, plan) as session:
        found = generate(model, plan.num_steps)
    return found, session.stats


def test_the_sites_are_the_branches_in_order_of_execution(pixart):
    grid = fc.grid(pixart, STEPS)
    assert grid.model == "PixArtTransformer2DModel"
    assert [site.name for site in grid.sites[:4]] == [
        "blocks.0.attn",
        "blocks.0.cross",
        "blocks.0.mlp",
        "blocks.1.attn",
    ]
    assert len(grid.sites) == 9
    assert layout(pixart).tokenwise == {1, 2, 4, 5, 7, 8}


def test_everything_computed_is_the_bare_model_bit_for_bit(pixart):
    bare = generate(pixart)
    keys = list(pixart.state_dict())
    found, stats = sampled(pixart, fc.fora(1).plan(fc.grid(pixart, STEPS)))
    assert torch.equal(found, bare)
    assert stats.skipped == 0
    assert torch.equal(generate(pixart), bare)
    assert list(pixart.state_dict()) == keys
    assert not any("forward" in vars(module) for module in pixart.modules())
    torch.testing.assert_close(by_hand(pixart, reference.everything), bare, rtol=1e-4, atol=1e-5)


# ---- against sampling written out by hand ---------------------------------------------------------------------------

KINDS = ("attn", "cross", "mlp")
BRANCHES = [(depth, kind) for depth in range(3) for kind in KINDS]
ROUTER = fc.Router(
    torch.randn(STEPS, 9, generator=torch.Generator().manual_seed(3)) * 3 - 3,
    tuple(f"blocks.{depth}.{kind}" for depth, kind in BRANCHES),
    tuple(range(1, STEPS, 2)),
)
ROUTED = {
    branch: {c for c in range(STEPS) if c % 2 == 0 or torch.sigmoid(ROUTER.logits[c, i]) > 0.1}
    for i, branch in enumerate(BRANCHES)
}


def drifting():
    """Averages that drift like features do."""
    draw = torch.Generator().manual_seed(7)
    sites = tuple(fc.parts.Site(f"blocks.{depth}.{kind}", depth, kind) for depth, kind in BRANCHES)
    means = tuple(torch.randn(STEPS, 16, 16, generator=draw).cumsum(0) * 0.05 for _ in sites)
    origin = fc.parts.statistics.Origin("", "", "", 1.5, 0, False, "first", 1, (0,), "")
    shape = STEPS, len(sites)
    ones = torch.ones(*shape, dtype=torch.int64)
    return fc.Statistics(sites, means, torch.rand(*shape, 3, generator=draw), ones.bool(), ones, origin)


STATS = drifting()
AVERAGES = dict(zip(BRANCHES, STATS.means, strict=True))

CASES = {
    "fora": (fc.fora(3), reference.fora(reference.front(STEPS, 3))),
    "goc": (fc.goc(fc.fora(2), 0.8), reference.goc_emitted(reference.front(STEPS, 2), 0.8)),
    "taylor": (fc.taylorseer(fc.fora(3), 1), reference.taylorseer(reference.front(STEPS, 3), 1)),
    "eoc": (fc.eoc(fc.fora(2), STATS, 0.05, judge="all"), reference.eoc(reference.front(STEPS, 2), AVERAGES, 0.05)),
    "l2c": (fc.l2c(ROUTER), reference.by_branch({branch: reference.fora(steps) for branch, steps in ROUTED.items()})),
    "procache": (
        fc.procache("#....#....#....#....", 1, 0.3),
        reference.selective(
            set(range(0, STEPS, 5)),
            lambda depth: {2, 4, 7, 9, 12, 14, 17, 19} if depth >= 1 else set(),
            0.3,
            lambda attention: attention.norm(dim=-1),
            kinds=("mlp", "cross"),
        ),
    ),
    "procache by attention": (
        fc.procache("#....#....#....#....", 1, 0.3, "attention"),
        reference.selective(
            set(range(0, STEPS, 5)),
            lambda depth: {2, 4, 7, 9, 12, 14, 17, 19} if depth >= 1 else set(),
            0.3,
            "received",
            kinds=("mlp", "cross"),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sampling_equals_the_one_by_hand(pixart, name):
    method, rule = CASES[name]
    plan = method.plan(fc.grid(pixart, STEPS))
    found, _ = sampled(pixart, plan)
    expected = by_hand(pixart, rule)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - generate(pixart)).abs().max() > 20 * (found - expected).abs().max()


@pytest.mark.parametrize("name", CASES)
def test_a_real_run_counts_the_macs_and_holds_the_bytes_that_were_said(pixart, name):
    plan = CASES[name][0].plan(fc.grid(pixart, STEPS))
    states, mask = captions()
    inputs = {
        "hidden_states": torch.cat([noise()] * 2),
        "encoder_hidden_states": states,
        "timestep": torch.ones(4),
        "encoder_attention_mask": mask,
    }
    cost = plan.cost(pixart, inputs=inputs)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, stats = sampled(pixart, plan)
    assert counter.get_total_flops() == 2 * cost.macs
    assert stats.peak_cache_bytes == cost.cache_bytes


# ---- skipped blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if "attention" not in name])
def test_a_collapsed_run_equals_block_by_block(pixart, name, monkeypatch):
    plan = CASES[name][0].plan(fc.grid(pixart, STEPS))
    together, stats = sampled(pixart, plan)
    monkeypatch.setattr(Forwards, "run_block", lambda self, block, x, args, kwargs: None)
    apart, others = sampled(pixart, plan)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert (together - generate(pixart)).abs().max() > 20 * (together - apart).abs().max()
    assert stats == others


@torch.no_grad()
def test_the_gates_of_a_run_come_at_once_and_are_those_of_its_blocks(pixart):
    found = layout(pixart)
    x_BND, time, text = torch.randn(2, 16, 16), torch.randn(2, 6 * 16), torch.randn(2, TEXT, 16)
    named = {"encoder_hidden_states": text, "timestep": time}
    gates = found.gates(range(1, 3))
    made = gates(x_BND, **named)
    assert isinstance(made, torch.Tensor)
    one = torch.ones(2, 1, 16)
    own = []
    for _, block in found.blocks[1:3]:
        condition = block.condition(x_BND, **named)
        own += [one if branch.gate is None else branch.gate(condition) for branch in block.branches]
    assert torch.equal(made, torch.stack(own))
    assert torch.equal(made, gates(x_BND, None, text, None, time))


def test_a_table_that_changes_between_generations_counts(pixart):
    plan = fc.fora(3).plan(fc.grid(pixart, STEPS))
    with fc.apply(pixart, plan):
        first = generate(pixart)
        with torch.no_grad():
            pixart.transformer_blocks[1].scale_shift_table.mul_(1.5)
        second = generate(pixart)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, by_hand(pixart, CASES["fora"][1]), rtol=1e-4, atol=1e-4)


def test_bfloat16(pixart):
    half = copy.deepcopy(pixart).to(torch.bfloat16)
    plan = fc.fora(2).plan(fc.grid(pixart, STEPS))
    assert torch.equal(sampled(half, fc.fora(1).plan(fc.grid(half, STEPS)))[0], generate(half))
    exact, rounded = sampled(pixart, plan)[0], sampled(half, plan)[0]
    assert (exact - rounded).abs().mean() < 0.1 * exact.abs().mean()


# ---- cost -----------------------------------------------------------------------------------------------------------

L, N, D, CAPTION, HIDDEN, M = 28, 1024, 1152, 4096, 4 * 1152, 120  # PixArt-alpha at 512 x 512
SELF = 4 * N * D * D + 2 * N * N * D
KEYS, QUERIES = 2 * M * D * D, 2 * N * D * D + 2 * N * M * D
MLP = 2 * N * D * HIDDEN
ALWAYS = N * 16 * D + N * D * 32 + (256 * D + D * D) + 6 * D * D + M * (CAPTION * D + D * D)


@pytest.fixture(scope="module")
def alpha():
    with torch.device("meta"):
        return PixArtTransformer2DModel(sample_size=64, caption_channels=CAPTION)


def test_the_cost_of_pixart_alpha_is_what_the_formula_says(alpha):
    cost = fc.fora(2).plan(fc.grid(alpha, STEPS)).cost(alpha)
    call = L * (SELF + KEYS + QUERIES + MLP) + ALWAYS
    assert cost.step_macs == (2 * call, 2 * ALWAYS) * 10  # gates are a sum, not a product


def test_chosen_tokens_cost_their_share_and_the_texts_keys_once(alpha):
    plan = fc.procache("#....", 0.75, 0.25).plan(fc.grid(alpha, 5))
    cost = plan.cost(alpha, guidance=False)
    partial = ALWAYS + 7 * (KEYS + (QUERIES + MLP) // 4)
    assert cost.step_macs[1:] == (ALWAYS, partial, ALWAYS, partial)


def test_a_model_that_is_told_its_resolution_is_costed_by_itself():
    sized, plain = (small_pixart(1, head=12, use_additional_conditions=told) for told in (True, False))
    first, second = (fc.fora(1).plan(fc.grid(model, 1)).cost(model).macs for model in (sized, plain))
    assert first - second == 2 * 3 * (256 * 8 + 8 * 8)  # height, width and their ratio, each by an embedder


def test_partial_of_all_tokens_is_computed(pixart):
    grid = fc.grid(pixart, STEPS)
    everywhere = fc.selective(fc.fora(2), 0, tokens=tokens.top(1.0), every=1).plan(grid)
    found, _ = sampled(pixart, everywhere)
    kind, every, at = fc.parts.schedules.kind, fc.parts.schedules.every, fc.parts.schedules.at
    attention = fc.Method("attention alone", at(kind("attn"), every(2), every(1))).plan(grid)
    torch.testing.assert_close(found, sampled(pixart, attention)[0], rtol=1e-5, atol=1e-5)


# ---- through the real pipeline --------------------------------------------------------------------------------------

PROMPTS = ["a red cat", "a small happy cactus"]


@pytest.fixture
def pipe(pixart_folder):
    pipe = DiffusionPipeline.from_pretrained(pixart_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, prompts=PROMPTS, seed=0):
    generator = [torch.Generator().manual_seed(seed + index) for index, _ in enumerate(prompts)]
    how = {"num_inference_steps": 6, "generator": generator, "output_type": "np", "use_resolution_binning": False}
    return torch.tensor(pipe(prompts, **how).images)


def test_a_pipeline_samples_by_a_plan_and_as_before_after_it(pipe):
    bare = images(pipe)
    with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, 6))) as session:
        assert torch.equal(images(pipe), bare)
    assert (session.stats.calls, session.stats.generations) == (6, 1)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(pipe, 6))
    with fc.apply(pipe, plan):
        first, second = images(pipe), images(pipe, PROMPTS[:1], seed=4)
    with fc.apply(pipe, plan):
        assert torch.equal(images(pipe, PROMPTS[:1], seed=4), second)
    assert not torch.equal(first, bare)
    assert torch.equal(images(pipe), bare)


def test_the_caption_counts(pipe):
    assert not torch.equal(images(pipe), images(pipe, PROMPTS[::-1]))


def test_the_command_line_samples_texts(forecache, pipe, pixart_folder, tmp_path):
    """The folder's images are those of the pipeline under the same plan, called by hand."""
    from forecache.sampling.loop import generators

    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    words = [*prompts, "--steps", 6, "--method", "goc", "--eta", 0.7, "--compare", "--out", tmp_path]
    code, _, err = forecache("sample", "--model", pixart_folder, *words)
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "run.json").read_text())
    assert [each["prompt"] for each in record["images"]] == PROMPTS
    assert record["settings"]["guidance"] == 4.5  # the pipeline's own
    plan = fc.goc(fc.fora(2), 0.7).plan(fc.grid(pipe, 6))
    with fc.apply(pipe, plan):
        how = {"num_inference_steps": 6, "generator": generators(0, [0, 1]), "output_type": "np"}
        expected = pipe(PROMPTS, use_resolution_binning=False, **how).images
    for image, name in zip(expected, ("00000.png", "00001.png"), strict=True):
        got = torch.tensor(list(Image.open(tmp_path / name).tobytes()))
        assert (got - torch.tensor(image * 255).round().flatten()).abs().max() <= 1
    assert record["cost_per_batch"]["macs"] == plan.cost(pipe, batch_size=2).macs  # captions are padded to 120 tokens
    assert fc.Plan.load(tmp_path / "plan.json") == plan


def test_calibration_averages_the_conditional_half(pipe):
    """The second half of PixArt's pairs, not the first one."""
    stats = fc.calibrate(pipe, PROMPTS, num_steps=4, guidance=4.5)
    assert (stats.origin.rows, stats.origin.conditions) == ("second", tuple(PROMPTS))
    second, first = (fc.calibrate(pipe, PROMPTS, num_steps=4, guidance=4.5, rows=rows) for rows in ("second", "first"))
    assert all(map(torch.equal, stats.means, second.means))
    assert not all(map(torch.equal, stats.means, first.means))
    eoc = fc.eoc(fc.fora(2), stats, judge="all").plan(fc.grid(pipe, 4))
    with fc.apply(pipe, eoc) as session:
        pipe(PROMPTS, num_inference_steps=4, use_resolution_binning=False, output_type="latent")
    assert session.stats.skipped == 2 * 9


def test_commands_take_a_file_of_texts(forecache, pixart_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red cat\n\n  a green apple\n")
    common = ["--model", pixart_folder, "--steps", 4, "--samples", 3, "--prompts", tmp_path / "prompts.txt"]
    code, _, err = forecache("calibrate", *common, "--out", tmp_path / "s.safetensors")
    assert (code, err) == (0, "")
    stats = fc.Statistics.load(tmp_path / "s.safetensors")
    assert stats.origin.conditions == ("a red cat", "a green apple", "a red cat")
    for _ in range(2):  # the second goes on from the file of the first
        code, _, err = forecache("search", *common, "--budget", 2, "--out", tmp_path)
        assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--labels", "1"], "texts, such as --prompt"),
        (["sample"], "texts, such as --prompt"),
        (["sample", "--model", "digits", "--prompt", "a cat"], "labels, such as --labels 207,360"),
        (["sample", "--prompt", "a", "--labels", "1"], "give these alone"),
        (["calibrate"], "give a file of them, one a line, with --prompts"),
        (["calibrate", "--prompts", "nowhere.txt"], "prompts in nowhere.txt cannot be read"),
        (["calibrate", "--model", "digits", "--prompts", __file__], "takes class labels, 0 to 9"),
    ],
)
def test_the_wrong_kind_of_condition_is_refused(forecache, pixart_folder, words, said):
    model = [] if "--model" in words else ["--model", pixart_folder]
    code, _, err = forecache(*words, *model)
    assert code == 1
    assert said in err


def test_texts_and_labels_are_told_apart_in_python(pipe):
    with pytest.raises(fc.errors.InputError, match=r"takes texts; 3 is not a text"):
        fc.calibrate(pipe, [3], num_steps=2)
