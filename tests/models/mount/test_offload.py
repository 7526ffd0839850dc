"""Offloaded weights: they are there when a block runs, or the plan is refused before the first call."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from support.others import FAMILIES, grid_by_blocks, plan, unpatched

import forecache as fc

CPU = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
BRANCHES = ["PixArt", "SD3", "FLUX.1", "Wan 2.1", "Qwen-Image"]
BLOCKS = ["Qwen-Image", "LTX-Video", "Sana"]


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("name", BRANCHES)
def test_blocks_on_a_disk_are_refused_where_their_parts_are_called(name, when, tmp_path):
    """What is left in memory is noise: diffusers #11682."""
    family, model = FAMILIES[name], FAMILIES[name].model()
    made, bare = plan(model), family.generate(model)
    how = {**CPU, "offload_type": "block_level", "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)}
    refused = pytest.raises(fc.errors.RunError, match=r"offloaded and return only.*leaf_level")
    if when == "before":
        apply_group_offloading(model, **how)
        with refused, fc.apply(model, made):
            pass
    else:
        with fc.apply(model, made):
            apply_group_offloading(model, **how)
            with refused:
                family.generate(model)
    assert torch.equal(family.generate(model), bare)


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("name", BLOCKS)
def test_whole_blocks_come_back_from_a_disk(name, when, tmp_path):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model, by_blocks=True)
    how = {**CPU, "offload_type": "block_level", "num_blocks_per_group": 2, "offload_to_disk_path": str(tmp_path)}
    if when == "before":
        apply_group_offloading(model, **how)
    with fc.apply(model, made):
        if when == "inside":
            apply_group_offloading(model, **how)
        torch.testing.assert_close(family.generate(model), unpatched(name, by_blocks=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DiT", "SD3", "FLUX.1", "Qwen-Image"])
def test_leaves_come_back_from_a_disk(name, tmp_path):
    family, model = FAMILIES[name], FAMILIES[name].model()
    made = plan(model)
    apply_group_offloading(model, **CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    with fc.apply(model, made):
        torch.testing.assert_close(family.generate(model), unpatched(name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["PixArt", "Wan 2.1"])
def test_leaves_of_blocks_that_hold_weights_are_refused_without_leading_in_a_circle(name, tmp_path):
    model = FAMILIES[name].model()
    made = plan(model)
    apply_group_offloading(model, **CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(
        fc.errors.RunError, match=r"as a whole \(pipe.enable_model_cpu_offload\), or make a plan by blocks"
    ):
        fc.apply(model, made).__enter__()


def test_blocks_that_come_back_together_are_computed_together(tmp_path):
    """The weights of a group return with its first block; a plan that skips that one alone would compute with noise."""
    family, model = FAMILIES["Qwen-Image"], FAMILIES["Qwen-Image"].model()

    def schedule(step, site, grid):
        return fc.parts.Action.SKIP if step == 2 and site.depth == 0 else fc.parts.Action.COMPUTE

    made = fc.Method("without the first", schedule).plan(grid_by_blocks(model, 8))
    with fc.apply(model, made):
        right = family.generate(model)
    apply_group_offloading(
        model, **CPU, offload_type="block_level", num_blocks_per_group=2, offload_to_disk_path=str(tmp_path)
    )
    refused = pytest.raises(
        fc.errors.PlanMismatchError,
        match=r"computes blocks.1.block at step 2 and not blocks.0.block.*num_blocks_per_group",
    )
    with refused, fc.apply(model, made):
        family.generate(model)
    other = FAMILIES["Qwen-Image"].model()
    apply_group_offloading(
        other, **CPU, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path / "other")
    )
    with fc.apply(other, made):
        torch.testing.assert_close(family.generate(other), right, rtol=1e-5, atol=1e-5)


def test_blocks_that_accelerate_brings_back_whole_are_refused():
    """The hook holds the weights of the modules inside of a block, although the block holds none itself."""
    model = FAMILIES["DiT"].model()
    made, bare = plan(model), FAMILIES["DiT"].generate(model)
    block = model.transformer_blocks[1]
    weights = {name: value.clone() for name, value in block.state_dict().items()}
    hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights, place_submodules=True)
    add_hook_to_module(block, hook)
    with pytest.raises(fc.errors.RunError, match="offloaded and return only"):
        fc.apply(model, made).__enter__()
    assert torch.equal(FAMILIES["DiT"].generate(model), bare)
