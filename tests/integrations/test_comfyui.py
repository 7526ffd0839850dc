"""The node pack for ComfyUI, on a stand-in of the interfaces that it uses; benchmarks/comfyui.py runs the real ones."""

import json
import logging
import sys

import pytest
import torch
from support import comfy
from support.traces import everything

import forecache as fc


@pytest.fixture
def pack(monkeypatch):
    return comfy.pack(monkeypatch)


def patched(pack, patcher, method="fora", interval=2, cache="gpu", **more):
    node = pack.NODE_CLASS_MAPPINGS["Forecache"]()
    return node.patch(patcher, method, 2.0, interval, cache, **more)[0]


def sample(patcher, sampler=comfy.euler, steps=8, batched=False, first=1.0, count=2, tokens=6, control=None):
    noise = torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(1))
    guider = comfy.Guider(patcher, comfy.conds(count, control), batched)
    with torch.inference_mode():
        return guider.sample(noise, sampler, comfy.sigmas(steps, first))


class ByHand:
    """The stand-in's model with a dictionary of kept features: what its blocks add, by call and step.

    plan: of one site. lane: names the call from its time and conditioning, (name, step).
    """

    def __init__(self, model, plan, lane):
        self.model, self.plan, self.lane, self.kept = model, plan, lane, {}

    def __call__(self, x, t, context=None, control=None, transformer_options=None):
        name, step = self.lane(float(t[0]), transformer_options["uuids"])
        h = self.model.embed(torch.cat([x, t[:, None, None].expand(*x.shape[:2], 1)], -1))
        reads, own = self.plan.rows[0][step].reads, [at for lane, at in self.kept if lane == name]
        if reads and any(at not in own for at, _ in reads):  # of a lane that began later: reuse, or a computed step
            reads = ((max(own), 1.0),) if own else ()
        if reads:
            added = sum(weight * self.kept[name, at] for at, weight in reads)
        else:
            added = h
            for block in self.model.blocks:
                added = block(added, context.expand(-1, x.shape[1], -1))
            added = added - h
        self.kept[name, step] = added
        return self.model.head(h + added)


def by_hand(patcher, method, lane, steps=8, **how):
    model = patcher.model.diffusion_model
    plan = method.plan(fc.grid(model, steps, level="stack"))
    base = comfy.BaseModel(ByHand(model, plan, lane))
    return sample(comfy.ModelPatcher(base), steps=steps, **how)


def counted(steps, first=1.0):
    """Lanes of a sampler with one call a step."""
    starts = comfy.sigmas(steps, first)[:-1].tolist()
    return lambda sigma, uuids: (str(uuids), min(range(steps), key=lambda step: abs(starts[step] - sigma)))


# ---- samplings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, {"batched": True}, {"steps": 5, "first": 0.6}], ids=["two calls", "batched", "part"]
)
def test_a_sampling_is_the_plan_by_hand(pack, how):
    patcher = comfy.patcher()
    found = sample(patched(pack, patcher, "goc"), **how)
    lane = counted(how.get("steps", 8), how.get("first", 1.0))
    wanted = by_hand(patcher, fc.goc(fc.fora(2), 0.8), lane, **{"steps": 8, **how})
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, sample(patcher, **how), atol=1e-3)


def test_a_sampler_of_two_calls_has_a_lane_for_each(pack):
    """Heun's second call is where the next step begins: the first one there; the next step's own is the second."""
    patcher, starts, made = comfy.patcher(), comfy.sigmas(8)[:-1].tolist(), set()

    def lane(sigma, uuids):
        step = min(range(8), key=lambda step: abs(starts[step] - sigma))
        name = next(name for name in (f"{uuids} 0", f"{uuids} 1") if (name, step) not in made)
        made.add((name, step))
        return name, step

    found = sample(patched(pack, patcher, "fora", 3), comfy.heun)
    torch.testing.assert_close(found, by_hand(patcher, fc.fora(3), lane, sampler=comfy.heun), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [comfy.euler, comfy.heun])
def test_everything_computed_is_bit_for_bit_the_bare_sampling(pack, sampler):
    patcher = comfy.patcher()
    before = everything(patcher.model.diffusion_model)
    model = patched(pack, patcher, "fora", 1, "cpu")
    for how in ({"steps": 8}, {"steps": 4, "tokens": 9, "first": 0.5}, {"steps": 1}):  # hires fix, one model after all
        assert torch.equal(sample(model, sampler, **how), sample(patcher, sampler, **how))
    assert everything(patcher.model.diffusion_model) == before


def test_what_was_skipped_is_a_line_in_the_log(pack, caplog):
    with caplog.at_level(logging.INFO, "forecache.comfyui"):
        sample(patched(pack, comfy.patcher(), "fora", 2, "cpu"))
    assert [record.message for record in caplog.records] == ["Forecache: 8 of 16 model calls skipped, #.#.#.#."]


def test_nothing_is_left_of_a_sampling_that_fails_or_is_interrupted(pack):
    patcher = comfy.patcher()
    before, bare = everything(patcher.model.diffusion_model), sample(patcher)
    model = patched(pack, patcher)

    def interrupted(denoised, x, sigmas):
        denoised(denoised(x, sigmas[0]), sigmas[1])
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sample(model, interrupted)
        assert everything(patcher.model.diffusion_model) == before
    assert torch.equal(sample(patcher), bare)
    assert torch.equal(sample(model), sample(patched(pack, patcher)))


def test_a_sampler_that_goes_back_and_a_guidance_that_ends(pack):
    """As restart samplers do; a conditioning that is left out of some steps begins with a computed one."""
    patcher = comfy.patcher()

    def back(denoised, x, sigmas):
        for sigma in (*sigmas[:5], *sigmas[2:-1]):
            x = x - 0.1 * denoised(x, sigma)
        return x

    assert torch.equal(sample(patched(pack, patcher, "fora", 1), back), sample(patcher, back))
    assert sample(patched(pack, patcher, "fora", 3), back).isfinite().all()
    steps = sys.modules["custom_forecache.sampling"].Steps([4, 3, 2, 1, 0])
    calls = [("a", 4.0), ("b", 4.0), ("a", 3.5), ("a", 3.0), ("a", 1.0), ("a", 2.0), ("b", 1.0), ("a", 0.5)]
    assert [steps.of(*call) for call in calls] == [
        ("a 0", 0), ("b 0", 0), ("a 1", 0), ("a 0", 1), ("a 0", 3), ("a 1", 2), ("b 0", 3), ("a 1", 3)
    ]  # fmt: skip


def test_a_controlnet_wants_blocks_and_context_windows_skip_nothing(pack, caplog):
    patcher, control = comfy.patcher(), torch.full((1, 6, 8), 0.3)
    bare = sample(patcher, control=control)
    assert torch.equal(sample(patched(pack, patcher), control=control), bare)
    found = sample(patched(pack, patcher, level="blocks"), control=control)
    assert not torch.allclose(found, bare, atol=1e-3)
    windowed = patched(pack, patcher)
    windowed.model_options["context_handler"] = object()
    assert torch.equal(sample(windowed), sample(patcher))
    assert [record.message for record in caplog.records if record.name == "forecache.comfyui"] == [
        "Forecache: A ControlNet adds to every block, so nothing is skipped: set the level to blocks.",
        "Forecache: Context windows change from step to step, so nothing is skipped with them.",
    ]


# ---- nodes ----------------------------------------------------------------------------------------------------------


def test_a_plan_file_and_a_second_node(pack, tmp_path):
    patcher = comfy.patcher()
    plan = fc.explicit(pattern="##.#..#.").plan(fc.grid(patcher.model.diffusion_model, 8, level="stack"))
    plan.save(tmp_path / "plan.json")
    first = patched(pack, patcher, "fora", 4)
    second = patched(pack, first, plan=str(tmp_path / "plan.json"))  # the last node counts
    torch.testing.assert_close(sample(second), by_hand(patcher, fc.explicit(pattern="##.#..#."), counted(8)))
    assert torch.equal(sample(first), sample(patched(pack, patcher, "fora", 4)))
    (image,) = pack.NODE_CLASS_MAPPINGS["ForecacheSchedule"]().draw(second, 8)
    assert image.shape == (1, 24, 8 * 24, 3)
    dark = image[0, 12, 12::24].sum(-1) < 2
    assert dark.tolist() == [sign == "#" for sign in "##.#..#."]
    with pytest.raises(fc.errors.InputError, match="connect the output of a Forecache node"):
        pack.NODE_CLASS_MAPPINGS["ForecacheSchedule"]().draw(patcher, 8)


def test_a_speedup_takes_the_recipe_on_record(pack):
    patcher = comfy.patcher()
    method = fc.methods.recommended.method(2.0, 12)
    found = sample(patched(pack, patcher, "speed-up"), steps=12)
    torch.testing.assert_close(found, by_hand(patcher, method, counted(12), steps=12), rtol=1e-4, atol=1e-5)


def test_the_nodes_and_workflows_are_what_comfyui_reads(pack):
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == {"Forecache", "ForecacheSchedule"}
    paths = sorted((comfy.PACK / "workflows").glob("*.json"))
    assert paths
    for path in paths:
        nodes = json.loads(path.read_text())
        ours = {name: node for name, node in nodes.items() if node["class_type"] in pack.NODE_CLASS_MAPPINGS}
        assert ours
        for node in nodes.values():
            for value in node["inputs"].values():
                assert not isinstance(value, list) or value[0] in nodes
        for node in ours.values():
            kind = pack.NODE_CLASS_MAPPINGS[node["class_type"]]
            types = kind.INPUT_TYPES()
            assert (
                set(types["required"]) <= set(node["inputs"]) <= set(types["required"]) | set(types.get("optional", {}))
            )
            assert callable(getattr(kind, kind.FUNCTION))
            for name, value in node["inputs"].items():
                choices = {**types["required"], **types.get("optional", {})}[name][0]
                assert not isinstance(choices, list) or value in choices
    sources = [path.read_text() for path in comfy.PACK.glob("*.py")]
    assert not any("diffusers" in source for source in sources)
