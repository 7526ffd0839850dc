"""Which models are known: the list, the docs that repeat it, original layouts, a user's own families, pipelines."""

import json
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from support import reference
from support.pipelines import PAIR, PIPELINES, SCHEDULERS, pipeline
from support.small import labels, noise, small_facebook_dit
from support.tiny import TINY, normal
from torch import nn

import forecache as fc
from forecache.models import families, registry
from forecache.models.blocks import Block, Branch
from forecache.models.find import layout
from forecache.models.layout import from_blocks

DOCS = Path(__file__).parent.parent.parent / "docs" / "models.md"


EXPECTED = {
    "DiTTransformer2DModel": ("branches", ("attn", "mlp")),
    "FluxTransformer2DModel": ("branches", ("attn", "mlp", "mlp_text", "parallel")),
    "Flux2Transformer2DModel": ("branches", ("attn", "mlp", "mlp_text", "parallel")),
    "HunyuanVideoTransformer3DModel": ("branches", ("attn", "mlp", "mlp_text", "parallel")),
    "ChromaTransformer2DModel": ("branches", ("attn", "mlp", "mlp_text", "parallel")),
    "HiDreamImageTransformer2DModel": ("branches", ("attn", "mlp", "mlp_text")),
    "HunyuanDiT2DModel": ("branches", ("skip", "attn", "cross", "mlp")),
    "HunyuanVideo15Transformer3DModel": ("branches", ("attn", "mlp", "mlp_text")),
    "ZImageTransformer2DModel": ("branches", ("attn", "mlp")),
    "PixArtTransformer2DModel": ("branches", ("attn", "cross", "mlp")),
    "QwenImageTransformer2DModel": ("branches", ("attn", "mlp", "mlp_text")),
    "SD3Transformer2DModel": ("branches", ("attn", "attn2", "mlp", "mlp_text")),
    "WanTransformer3DModel": ("branches", ("attn", "cross", "mlp")),
    "AuraFlowTransformer2DModel": ("branches", ("nested",)),
    "CogVideoXTransformer3DModel": ("branches", ("attn", "mlp")),
    "LTXVideoTransformer3DModel": ("branches", ("attn", "cross", "mlp")),
    "LatteTransformer3DModel": ("blocks", ("block",)),
    "Lumina2Transformer2DModel": ("branches", ("attn", "mlp")),
    "MochiTransformer3DModel": ("branches", ("attn", "mlp", "mlp_text")),
    "SanaVideoTransformer3DModel": ("branches", ("attn", "cross", "mlp")),
    "CosmosTransformer3DModel": ("branches", ("attn", "cross", "mlp")),
    "LTX2VideoTransformer3DModel": (
        "branches",
        ("attn", "attn_audio", "cross", "cross_audio", "av", "mlp", "mlp_audio"),
    ),
    "SanaTransformer2DModel": ("branches", ("attn", "cross", "mlp")),
    "StableAudioDiTModel": ("blocks", ("block",)),
}
"""Written out by hand: the classes of diffusers that are supported, their level and the kinds of their sites."""
BY_STRUCTURE = {"blocks of norm1, attn, norm2, mlp, ...": ("branches", ("attn", "mlp"))}


def rows_of_docs():
    lines = DOCS.read_text(encoding="utf-8").split("<!-- models -->")[1].strip().splitlines()[2:]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {model: (level, tuple(sites.split(", "))) for _, model, level, sites in cells}


def test_the_registry_has_the_expected_families():
    known = {family.kind: (family.level, family.sites) for family in registry.families()}
    assert known == EXPECTED | BY_STRUCTURE
    assert [family.kind for family in registry.families()][-1:] == list(BY_STRUCTURE)  # asked last


def test_the_docs_list_the_expected_families():
    assert rows_of_docs() == EXPECTED | BY_STRUCTURE


def test_the_command_lists_the_expected_families(forecache):
    code, out, err = forecache("models", "--json")
    assert (code, err) == (0, "")
    rows = {row["model"]: (row["level"], tuple(row["sites"].split(", "))) for row in json.loads(out)}
    assert rows == EXPECTED | BY_STRUCTURE
    _, out, _ = forecache("models")
    assert "FluxTransformer2DModel" in out


@pytest.mark.parametrize("kind", EXPECTED)
def test_models_of_the_real_class_have_the_sites_of_their_family(kind):
    assert issubclass(getattr(diffusers, kind), nn.Module)
    models = [tiny.model() for tiny in TINY.values() if tiny.kind == kind]
    layouts = [layout(model) for model in models]
    level, sites = EXPECTED[kind]
    assert {found.level for found in layouts} == {level}
    assert {site.kind for found in layouts for site in found.sites} == set(sites)
    assert {registry.family_of(model).kind for model in models} == {kind}


def test_a_family_is_one_file(tmp_path, monkeypatch):
    """A file in the folder of families is known without any list that names it."""
    (tmp_path / "mine.py").write_text(
        "from forecache.models.family import Family\n"
        "FAMILIES = (Family('Mine', 'Mine', 'branches', ('mix',), lambda model: False, lambda model: None),)\n"
    )
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    registry._built_in.cache_clear()
    try:
        assert {row["model"] for row in registry.table()} == {*EXPECTED, *BY_STRUCTURE, "Mine"}
    finally:
        sys.modules.pop("forecache.models.families.mine", None)
        registry._built_in.cache_clear()


# ---- original layouts -----------------------------------------------------------------------------------------------


def predict(model):
    return lambda x, t, step: model(x, t, labels())


def test_the_original_dit_has_branches(facebook):
    found = layout(facebook)
    assert (found.level, found.sites) == ("branches", fc.grid(facebook, 4).sites)
    bare = reference.ddim(predict(facebook), noise(), 6)
    with fc.apply(facebook, fc.fora(1).plan(fc.grid(facebook, 6))):
        assert torch.equal(reference.ddim(predict(facebook), noise(), 6), bare)
    ran = []
    facebook.blocks[1].norm1.register_forward_hook(lambda *_: ran.append(1))
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(facebook, 6))
    with fc.apply(facebook, plan):
        found = reference.ddim(predict(facebook), noise(), 6)
    assert len(ran) == 3  # the norm of a skipped branch does not run
    rule = reference.goc_emitted(reference.front(6, 2), 0.8)
    expected = reference.ddim(reference.cached(reference.facebook_dit, facebook, labels(), rule), noise(), 6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_parts_beside_those_of_dit_make_module_sites():
    model = small_facebook_dit()
    for block in model.blocks:
        block.extra = nn.Identity()
    assert layout(model).level == "modules"
    assert [site.name for site in layout(model).sites[:2]] == ["blocks.0.attn", "blocks.0.mlp"]


class TimmBlock(nn.Module):
    """As timm's vision transformers have it."""

    def __init__(self, width=8):
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = nn.LayerNorm(width), nn.Linear(width, width), *both()
        self.norm2, self.mlp, self.ls2, self.drop_path2 = nn.LayerNorm(width), nn.Linear(width, width), *both()

    def forward(self, x, attn_mask=None):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def both():
    return nn.Identity(), nn.Identity()


class Timm(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[TimmBlock() for _ in range(3)])

    def forward(self, x, t):
        return self.blocks(x * t)


def run(model, times=(4.0, 3.0, 2.0, 1.0)):
    with torch.no_grad():
        return [model(normal(2, 5, 8), time) for time in times]


def test_blocks_like_timms_have_branches():
    model = Timm().eval()
    found = layout(model)
    assert (found.level, [site.kind for site in found.sites]) == ("branches", ["attn", "mlp"] * 3)
    bare = run(model)
    with fc.apply(model, fc.fora(1).plan(fc.grid(model, 4))):
        assert all(map(torch.equal, run(model), bare))
    with fc.apply(model, fc.fora(2).plan(fc.grid(model, 4))):
        outputs = run(model)
    for step in (1, 3):  # what the blocks added one step before, to the input of this one
        computed, x = bare[step - 1], normal(2, 5, 8)
        torch.testing.assert_close(outputs[step], computed + x * (4.0 - step) - x * (5.0 - step))


class Skipping(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.ModuleList([nn.Linear(2, 2)]))


@pytest.mark.parametrize("names", [("in_blocks", "mid_block", "out_blocks"), ("skip_linear",)])
def test_long_skips_are_refused_with_the_reason(names):
    with pytest.raises(fc.errors.SiteError, match=r"Skipping has long skips, as U-ViT.*not its input plus branches"):
        fc.grid(Skipping(*names), 4)


# ---- families of the user's own -------------------------------------------------------------------------------------


class Own(Timm):
    pass


def own_layout(model):
    def block(module):
        return Block(module, lambda x: None, (Branch("own", lambda x, _: module(x) - x, None),), inputs=("x",))

    return from_blocks(model, [block(module) for module in model.blocks])


def test_a_registered_family_comes_first_and_goes_again():
    model = Own()
    with fc.models.register(Own, own_layout, name="mine"):
        assert [site.kind for site in fc.grid(model, 2).sites] == ["own"] * 3
        assert registry.table()[0] == {"name": "mine", "model": "Own", "level": "branches", "sites": ""}
        assert [site.kind for site in fc.grid(Timm(), 2).sites] == ["attn", "mlp"] * 3
    assert [site.kind for site in fc.grid(model, 2).sites] == ["attn", "mlp"] * 3


def test_wrong_registrations_are_refused():
    with fc.models.register(Own, own_layout), pytest.raises(fc.errors.ModelError, match="a family for Own already"):
        fc.models.register(Own, own_layout)
    with pytest.raises(fc.errors.ModelError, match="for a class of torch modules, not for"):
        fc.models.register(Own(), own_layout)  # type: ignore[arg-type]
    with pytest.raises(fc.errors.ModelError, match="must be a function of the model"):
        fc.models.register(Own, None)  # type: ignore[arg-type]
    with (
        fc.models.register(Own, lambda model: []),
        pytest.raises(fc.errors.ModelError, match="returned a list instead of a"),
    ):
        fc.grid(Own(), 2)


# ---- through the real pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_a_real_pipeline_samples_by_a_plan_and_as_before_after_it(name):
    kind, how = PIPELINES[name]
    pipe = pipeline(kind, TINY[name].model(), SCHEDULERS[name]() if name in SCHEDULERS else None)

    def sample(seed=0):
        generator = torch.Generator().manual_seed(seed)
        return pipe(**how, num_inference_steps=4, generator=generator, output_type="latent")[0]

    bare = sample()
    with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, 4))) as session:
        assert torch.equal(sample(), bare)
    assert (session.stats.calls, session.stats.generations) == (4, 1)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(pipe, 4))
    with fc.apply(pipe, plan):
        first, second = sample(), sample(seed=1)
    with fc.apply(pipe, plan):
        assert torch.equal(sample(seed=1), second)
    assert not torch.equal(first, bare)
    assert torch.equal(sample(), bare)


def wan_2_2(steps=8, boundary=0.5):
    """The first transformer makes the noisy steps, the second one the others."""
    pair = [TINY["Wan 2.1"].model() for _ in range(2)]
    with torch.no_grad():
        for parameter in pair[1].parameters():
            parameter.mul_(1.1)
    pipe = pipeline("WanPipeline", pair[0], transformer_2=pair[1], boundary_ratio=boundary)

    def sample(guidance=1.0, **more):
        how = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": steps, "guidance_scale": guidance}
        generator = torch.Generator().manual_seed(0)
        return pipe(**PAIR, generator=generator, output_type="latent", **how | more).frames

    return pipe, sample


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_pipeline_of_two_transformers_takes_one_schedule(guidance):
    pipe, sample = wan_2_2()
    bare = sample(guidance)
    calls = 8 * (1 + (guidance > 1))
    with fc.apply(pipe, fc.fora(1).plan(fc.grid(pipe, 8))) as session:
        assert torch.equal(sample(guidance), bare)
    assert (session.stats.calls, session.stats.generations) == (calls, 1)
    pipe.scheduler.set_timesteps(8)
    first = sum(time >= 500 for time in pipe.scheduler.timesteps.tolist())
    assert 0 < first < 7  # at an odd number of steps the second one would begin with a skipped one
    method = fc.goc(fc.fora(3), 0.8)
    plan = method.plan(fc.grid(pipe, 8))
    with fc.apply(pipe, plan) as session:
        found, again = sample(guidance), sample(guidance)
    assert torch.equal(found, again)
    assert not torch.equal(found, bare)
    assert session.stats.calls == 2 * calls
    # the same by two plans that were written out by hand
    begin = [step for step in range(first) if step % 3 == 0]
    end = sorted({0, *(step - first for step in range(first, 8) if step % 3 == 0)})
    halves = [
        fc.goc(fc.explicit(compute=steps), 0.8).plan(fc.grid(model, count))
        for steps, model, count in (
            (begin, pipe.transformer, first),
            (end, pipe.transformer_2, 8 - first),
        )
    ]
    with fc.apply(pipe.transformer, halves[0]), fc.apply(pipe.transformer_2, halves[1]):
        assert torch.equal(sample(guidance), found)
    session = fc.enable(pipe, plan)
    assert torch.equal(sample(guidance), found)
    fc.disable(pipe)
    assert torch.equal(sample(guidance), bare)


def test_two_transformers_where_the_second_makes_nothing():
    pipe, sample = wan_2_2(boundary=None)
    with fc.apply(pipe, fc.fora(2).plan(fc.grid(pipe, 8))) as session:
        sample()
    assert (session.stats.calls, session.stats.computed) == (8, 4 * len(fc.grid(pipe, 8).sites))


def test_two_transformers_with_other_sites_take_two_plans_of_one_method():
    second = TINY["Wan 2.2 5B"].model()
    second.blocks = second.blocks[:1]
    pipe = pipeline("WanPipeline", TINY["Wan 2.1"].model(), transformer_2=second, boundary_ratio=0.5)
    with pytest.raises(fc.errors.ModelError, match=r"different sites.*a plan for each"):
        fc.grid(pipe, 6)
    with pytest.raises(fc.errors.ModelError, match=r"two transformers: name the one"):
        fc.fora(2).plan(fc.grid(pipe.transformer, 6)).cost(pipe)
