"""Less memory: features kept in fewer bytes, and a budget that is checked before anything is computed."""

import copy

import pytest
import torch
from support import reference
from support.pipelines import POOLED, SQUARE, pipeline
from support.small import generate, labels, noise
from support.tiny import TINY, normal

import forecache as fc
from forecache.runtime.storage import FeatureStorage

STEPS = 12
METHODS = {
    "fora": fc.fora(3),
    "goc": fc.goc(fc.fora(2), 0.8),
    "taylor": fc.taylorseer(fc.fora(3), 2),
    "procache": fc.procache("#...#...#...", 1, 0.3),
    "attention alone": fc.Method(
        "attn",
        fc.parts.schedules.at(
            fc.parts.schedules.kind("attn"), fc.parts.schedules.every(2), fc.parts.schedules.every(1)
        ),
    ),
}


def sampled(model, plan, **how):
    with fc.apply(model, plan, **how) as session:
        images = generate(model, STEPS)
    return images, session.stats


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_kept_in_half_the_bytes(dit, name, dtype):
    plan = METHODS[name].plan(fc.grid(dit, STEPS))
    whole, full = sampled(dit, plan)
    half, stats = sampled(dit, plan, cache_dtype=dtype)
    assert stats.peak_cache_bytes == plan.cost(dit, 2, cache_dtype=dtype).cache_bytes
    assert full.peak_cache_bytes == plan.cost(dit, 2).cache_bytes
    if name != "procache":  # whose scores are float32
        assert 2 * stats.peak_cache_bytes == full.peak_cache_bytes
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.1
    assert torch.equal(sampled(dit, plan, cache_dtype=torch.float32)[0], whole)


def test_what_is_kept_in_bfloat16_is_the_feature_rounded(dit):
    """Reuse by hand, with every kept feature rounded; in float64, where no last bit turns the rounding of a feature."""
    model, plan = copy.deepcopy(dit).double(), fc.fora(3).plan(fc.grid(dit, STEPS))
    with fc.apply(model, plan, cache_dtype=torch.bfloat16):
        ours = reference.ddim(
            lambda x, t, step: model(x, timestep=t, class_labels=labels()).sample, noise().double(), STEPS
        )

    def rule(memory, step, compute):
        if step % 3 == 0:
            feature = compute()
            memory["kept"] = feature.bfloat16().double()
            return feature
        return memory["kept"]

    predict = reference.cached(reference.diffusers_dit, model, labels(), rule)
    torch.testing.assert_close(ours, reference.ddim(predict, noise().double(), STEPS), rtol=1e-9, atol=1e-9)


EIGHT_BITS = {torch.float8_e4m3fn: (4, 3), torch.float8_e5m2: (5, 2)}
"""Bits of the exponent and of the fraction."""


def in_eight_bits(feature, dtype):
    """Every token to the nearest of the numbers of such a format, written out, times the token's own scale."""
    exponent, fraction = EIGHT_BITS[dtype]
    bias, steps = 2 ** (exponent - 1) - 1, 2**fraction
    normal = [(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent) for m in range(steps)]
    largest = 448 if fraction == 3 else 57344  # above are infinities and what is no number
    numbers = [m / steps * 2.0 ** (1 - bias) for m in range(steps)] + [value for value in normal if value <= largest]
    table = torch.tensor(sorted({*numbers, *[-value for value in numbers]}), dtype=torch.float64)
    scale = feature.double().abs().amax(-1, keepdim=True) / largest
    scaled = feature.double() / scale
    above = torch.searchsorted(table, scaled.contiguous()).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return torch.where(scaled - low < high - scaled, low, high) * scale


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_what_is_kept_in_eight_bits_is_the_feature_rounded_with_a_scale_for_each_token(dit, dtype):
    """Reuse by hand; rounding by a table of all numbers of the format."""
    model, plan = copy.deepcopy(dit), fc.fora(3).plan(fc.grid(dit, STEPS))
    with torch.no_grad():
        model.transformer_blocks[0].ff.net[-1].bias += 600  # over what the format holds
    ours, stats = sampled(model, plan, cache_dtype=dtype)
    cost = plan.cost(model, 2, cache_dtype=dtype)
    assert stats.peak_cache_bytes == cost.cache_bytes == plan.cost(model, 2).cache_bytes // 4 + 6 * 4 * 16 * 4

    def rule(memory, step, compute):
        if step % 3 == 0:
            feature = compute()
            memory["kept"] = in_eight_bits(feature, dtype).float()
            return feature
        return memory["kept"]

    expected = reference.ddim(reference.cached(reference.diffusers_dit, model, labels(), rule), noise(), STEPS)
    whole = sampled(model, plan)[0]
    assert torch.isfinite(ours).all()
    assert (ours - expected).abs().max() < 0.02 * (whole - expected).abs().max()


def test_eight_bits_hold_zeros_and_rows_by_themselves():
    feature = torch.cat([torch.zeros(1, 2, 8), torch.full((1, 2, 8), 1e-6), torch.full((1, 2, 8), 1e6)])
    stored = FeatureStorage(torch.float8_e4m3fn).put(feature)
    assert stored.feature.nbytes == 3 * 2 * (8 + 4)
    torch.testing.assert_close(FeatureStorage(torch.float8_e4m3fn).get(stored), feature, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2"])
def test_a_dtype_that_torch_cannot_round_to_is_refused(dit, name):
    plan = fc.fora(2).plan(fc.grid(dit, STEPS))
    with pytest.raises(fc.errors.PlanError, match=r"cannot round features to torch.* in torch.bfloat16"):
        fc.apply(dit, plan, cache_dtype=getattr(torch, name))


def test_a_model_in_bfloat16_can_keep_float32(dit):
    model = copy.deepcopy(dit).to(torch.bfloat16)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, STEPS))
    images, stats = sampled(model, plan, cache_dtype=torch.float32)
    assert images.dtype == torch.bfloat16
    assert stats.peak_cache_bytes == plan.cost(model, 2, cache_dtype=torch.float32).cache_bytes


def test_a_cache_dtype_is_a_floating_point_one(dit):
    with pytest.raises(fc.errors.PlanError, match=r"floating point dtype, such as torch.bfloat16, not torch.int8"):
        fc.apply(dit, fc.fora(2).plan(fc.grid(dit, STEPS)), cache_dtype=torch.int8)


def test_a_generation_over_the_budget_is_refused_before_it_starts(dit):
    plan = fc.taylorseer(fc.fora(2), 1).plan(fc.grid(dit, STEPS))
    need = plan.cost(dit, 2).cache_bytes
    calls = []
    handle = dit.pos_embed.register_forward_hook(lambda module, args, out: None if out.is_meta else calls.append(1))
    with fc.apply(dit, plan, max_cache_bytes=need) as session:
        generate(dit, STEPS)
        made = len(calls)
        with pytest.raises(
            fc.errors.CacheBudgetError, match=rf"keeps 0\.{round(need * 2 / 2**20, 1) * 10:.0f} MiB .*allows"
        ):
            generate(dit, STEPS, count=4)
        assert len(calls) == made
        generate(dit, STEPS, count=1)
    handle.remove()
    assert session.stats.generations == 2
    half = plan.cost(dit, 2, cache_dtype=torch.bfloat16).cache_bytes
    with fc.apply(dit, plan, max_cache_bytes=half, cache_dtype=torch.bfloat16):
        generate(dit, STEPS)


def test_the_budget_counts_every_tensor_of_a_call():
    """A longer prompt makes larger features of an image of the same size."""
    pipe = pipeline("FluxPipeline", TINY["FLUX.1"].model())
    plan = fc.fora(2).plan(fc.grid(pipe, 4))

    def sample(words):
        how = {"prompt_embeds": normal(1, words, 12), "pooled_prompt_embeds": POOLED, "num_inference_steps": 4}
        pipe(**SQUARE, **how, output_type="latent")

    with fc.apply(pipe, plan) as session:
        sample(10)
    with fc.apply(pipe, plan, max_cache_bytes=session.stats.peak_cache_bytes) as budgeted:
        sample(10)
        with pytest.raises(fc.errors.CacheBudgetError):
            sample(400)
    assert budgeted.stats.peak_cache_bytes == session.stats.peak_cache_bytes


def test_the_budget_counts_the_lanes_of_a_step_together(dit):
    plan = fc.fora(2).plan(fc.grid(dit, 2))
    need = plan.cost(dit, 2, guidance=False).cache_bytes
    words = r"other calls of a step.*max_cache_bytes allows"

    def step(time, lanes=("cond", "uncond")):
        for _ in lanes:
            dit(noise(2), timestep=torch.full((2,), time), class_labels=torch.tensor([1, 2]))

    with torch.no_grad():
        with (
            pytest.raises(fc.errors.CacheBudgetError, match=words),
            fc.apply(dit, plan, lanes=["cond", "uncond"], max_cache_bytes=2 * need - 1),
        ):
            step(900)
        with fc.apply(dit, plan, lanes=["cond", "uncond"], max_cache_bytes=2 * need) as session:
            for _ in range(2):
                step(900), step(500)
    assert (session.stats.generations, session.stats.peak_cache_bytes) == (2, 2 * need)


def test_the_budget_of_a_model_without_a_family(facebook):
    plan = fc.fora(2).plan(fc.grid(facebook, 2))
    x, y = torch.cat([noise(), noise()]), labels()
    need = plan.cost(facebook, inputs=(x, torch.ones(4), y)).cache_bytes
    for budget, fits in ((need, True), (need - 1, False)):
        with fc.apply(facebook, plan, max_cache_bytes=budget) as session, torch.no_grad():
            if fits:
                for time in (900, 1):
                    facebook(x, torch.full((4,), time), y)
                assert session.stats.peak_cache_bytes == need
            else:
                with pytest.raises(fc.errors.CacheBudgetError):
                    facebook(x, torch.full((4,), 900), y)


class Elsewhere:
    """Stands for a tensor on a device that this machine may not have, and notes where copies of it are."""

    is_cuda, dtype, _version = False, torch.float32, 0

    def __init__(self, name, device, where):
        self.name, self.device, self.where = name, torch.device(device), where
        where.setdefault(self.device.type, []).append(name)

    def to(self, to):
        return self if isinstance(to, torch.dtype) else Elsewhere(self.name, to, self.where)

    def is_inference(self):
        return False


def test_features_on_another_device_come_back_one_ahead_of_their_use():
    where = {}
    storage = FeatureStorage(device=torch.device("cpu"))
    kept = [storage.put(Elsewhere(name, "xpu", where)) for name in "abcd"]
    assert [entry.feature.device.type for entry in kept] == ["cpu"] * 4
    where["xpu"].clear()
    for number, (entry, following) in enumerate(zip(kept, [*kept[1:], None], strict=True)):
        found = storage.get(entry, following)
        assert (found.name, found.device.type) == ("abcd"[number], "xpu")
        assert where["xpu"] == list("abcd"[: number + 2])  # this one and the next, each brought once
    assert [feature.name for feature in storage.all(kept)] == list("abcd")
    assert len(where["xpu"]) == 8


def test_a_cache_device_that_is_the_models_own_changes_nothing(dit):
    plan = METHODS["goc"].plan(fc.grid(dit, STEPS))
    whole, _ = sampled(dit, plan)
    assert torch.equal(sampled(dit, plan, cache_device="cpu")[0], whole)


def test_a_cache_device_that_is_not_there_is_refused(dit):
    plan = METHODS["goc"].plan(fc.grid(dit, STEPS))
    with pytest.raises(fc.errors.PlanError, match="cannot be kept on the device 'elsewhere'"):
        fc.apply(dit, plan, cache_device="elsewhere")
