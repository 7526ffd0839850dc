"""Layouts: the sites of a model, and the errors for a model without sites or with wrong ones."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from support.small import CLASSES, generate, labels, noise, small_dit, small_facebook_dit
from torch import nn

import forecache as fc


def site_names(target, sites=None):
    return [site.name for site in fc.grid(target, 4, sites=sites).sites]


class Toy(nn.Module):
    """Two sites and a forward that is given."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.run = forward

    def forward(self, x, t):
        return self.run(self, x)


def run_toy(model, times=(9, 8, 7, 6), sites=("a", "b")):
    """Outputs of one generation by FORA with interval 2; every call has another input."""
    plan = fc.fora(2).plan(fc.grid(model, len(times), sites=sites))
    with torch.no_grad(), fc.apply(model, plan):
        return [model(torch.full((1, 4), float(time)), time) for time in times]


# ---- sites ----------------------------------------------------------------------------------------------------------


def test_the_sites_of_a_diffusers_dit_are_its_branches_in_order(dit):
    grid = fc.grid(dit, 20)
    assert (grid.num_steps, grid.model) == (20, "DiTTransformer2DModel")
    assert grid.sites == tuple(
        fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(3) for kind in ("attn", "mlp")
    )


def test_a_pipeline_has_the_sites_of_its_transformer(pipe):
    assert fc.grid(pipe, 7).sites == fc.grid(pipe.transformer, 7).sites


def test_a_subclass_has_the_sites_of_its_family():
    class Mine(DiTTransformer2DModel):
        pass

    model = Mine(2, 8, num_layers=1, sample_size=8, num_embeds_ada_norm=CLASSES)
    assert site_names(model) == ["blocks.0.attn", "blocks.0.mlp"]


def test_the_sites_of_the_facebook_layout_are_found_without_patterns(facebook):
    assert site_names(facebook) == [f"blocks.{i}.{kind}" for i in range(3) for kind in ("attn", "mlp")]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["blocks.*.attn"], ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]),
        (["blocks.[02].mlp"], ["blocks.0.mlp", "blocks.2.mlp"]),
        (["blocks.1.*"], [f"blocks.1.{name}" for name in ("norm1", "attn", "norm2", "mlp", "adaLN_modulation")]),
        (["blocks.*"], ["blocks.0", "blocks.1", "blocks.2"]),
        (["blocks.1.mlp.fc?"], ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
        (["*_embedder"], ["x_embedder", "t_embedder", "y_embedder"]),
        (["blocks.1.mlp", "blocks.1.*p", "blocks.0.attn"], ["blocks.0.attn", "blocks.1.mlp"]),
        ("blocks.2.attn", ["blocks.2.attn"]),
    ],
)
def test_a_pattern_matches_paths_part_by_part(facebook, patterns, found):
    assert site_names(facebook, patterns) == found


def test_a_module_site_knows_its_block_and_kind(facebook):
    assert fc.grid(facebook, 4, sites=["blocks.2.mlp.fc1"]).sites == (fc.parts.Site("blocks.2.mlp.fc1", 2, "fc1"),)


def test_modules_of_a_known_family_can_be_sites_too(dit):
    """The same model by module sites: only the MLPs themselves are skipped, every norm still runs."""
    ran = {"ff": 0, "norm3": 0}
    block = dit.transformer_blocks[1]
    for name, module in (("ff", block.ff), ("norm3", block.norm3)):
        module.register_forward_hook(lambda *_, name=name: ran.update({name: ran[name] + 1}))
    plan = fc.fora(2).plan(fc.grid(dit, 6, sites=["transformer_blocks.*.ff.net.2"]))
    with fc.apply(dit, plan) as session:
        generate(dit, 6)
    assert (session.stats.computed, session.stats.skipped) == (9, 9)
    assert ran == {"ff": 6, "norm3": 6}


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is(dit):
    words = r"'blocks\.\*\.attn' matches no module of DiTTransformer2DModel; its modules are .*transformer_blocks\.\*"
    with pytest.raises(fc.errors.SiteError, match=words):
        fc.grid(dit, 4, sites=["transformer_blocks.*.ff", "blocks.*.attn"])


@pytest.mark.parametrize("patterns", [["blocks.*", "blocks.*.attn"], ["blocks.*.mlp", "blocks.1.mlp.fc1"]])
def test_a_site_inside_a_site_is_refused(facebook, patterns):
    with pytest.raises(fc.errors.SiteError, match=r"Site blocks\..* lies inside site blocks\..*: cache one of the two"):
        fc.grid(facebook, 4, sites=patterns)


def test_a_model_of_no_known_family_is_refused_without_patterns():
    with pytest.raises(
        fc.errors.SiteError, match=r"no branches of Sequential: name the modules to cache, for example sites="
    ):
        fc.grid(nn.Sequential(nn.Linear(2, 2)), 4)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(
        fc.errors.ModelError, match="dict is neither a torch module nor a pipeline with a `transformer`"
    ):
        fc.grid({}, 4)


@pytest.mark.parametrize("other", [small_dit(num_layers=2), small_dit(num_layers=4), small_facebook_dit(depth=2)])
def test_a_plan_for_another_model_is_refused(dit, other):
    plan = fc.fora(2).plan(fc.grid(dit, 4))
    words = r"made for 6 sites \(blocks\.0\.attn to blocks\.2\.mlp\), but DiT.* has [48] .*: make a plan"
    with pytest.raises(fc.errors.PlanMismatchError, match=words):
        fc.apply(other, plan)


def test_a_plan_for_modules_that_a_model_does_not_have_is_refused(facebook):
    plan = fc.fora(2).plan(fc.grid(facebook, 4))
    with pytest.raises(fc.errors.PlanMismatchError, match="Sequential has no sites of these names"):
        fc.apply(nn.Sequential(nn.Linear(2, 2)), plan)


def test_a_module_that_gives_out_a_tuple_is_refused_and_the_model_left_clean():
    model = Toy(lambda self, x: self.a(x) + self.pair(x, x, x)[0])
    model.pair = nn.MultiheadAttention(4, 1)
    with pytest.raises(fc.errors.ModelError, match="Module pair returns a tuple; a site returns one tensor.*inside it"):
        run_toy(model, sites=["pair"])
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_site_that_runs_twice_in_a_call_is_refused():
    with pytest.raises(fc.errors.RunError, match=r"^a ran twice in one model call.*choose other sites"):
        run_toy(Toy(lambda self, x: self.b(self.a(self.a(x)))))


def test_a_site_that_does_not_run_in_a_call_is_refused():
    with pytest.raises(fc.errors.RunError, match=r"b did not run in this model call.*choose other sites"):
        run_toy(Toy(lambda self, x: self.a(x)))


def block_alone(dit):
    block = dit.transformer_blocks[0]
    with torch.no_grad():
        return block(torch.zeros(4, 16, 16), timestep=torch.full((4,), 500), class_labels=labels())


def test_a_block_called_outside_of_its_model_is_refused(dit):
    with fc.apply(dit, fc.fora(2).plan(fc.grid(dit, 1))):
        dit(noise(4), timestep=torch.full((4,), 500), class_labels=labels())
        with pytest.raises(fc.errors.RunError, match="called outside of its model: sample through the model"):
            block_alone(dit)


def test_a_block_called_before_its_model_was_is_refused(dit):
    words = "called outside of its model: sample through the model"
    with fc.apply(dit, fc.fora(2).plan(fc.grid(dit, 1))), pytest.raises(fc.errors.RunError, match=words):
        block_alone(dit)


# ---- what a model does with a site's output -------------------------------------------------------------------------


def test_a_module_site_gives_out_its_last_computed_output():
    first, second, third, fourth = run_toy(Toy(lambda self, x: self.b(self.a(x))))
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(first, third)


def test_a_model_that_changes_a_sites_output_in_place_is_right_or_refused():
    """`h += 1` writes into the tensor that is kept: wrong numbers in silence are the one wrong answer."""

    def in_place(self, x):
        h = self.a(x)
        h += 1
        return self.b(x) + h

    def out_of_place(self, x):
        return self.b(x) + (self.a(x) + 1)

    try:
        found = run_toy(Toy(in_place), sites=["a"])
    except fc.errors.RunError:
        return
    assert all(map(torch.equal, found, run_toy(Toy(out_of_place), sites=["a"])))


def test_a_plan_of_a_shallower_model_of_the_same_layout_is_refused(facebook):
    plan = fc.fora(2).plan(fc.grid(small_facebook_dit(depth=2), 4))
    with pytest.raises(fc.errors.PlanMismatchError, match=r"4 sites .*, but DiT has 6 .*made on DiT\."):
        fc.apply(facebook, plan)


def test_a_plan_for_some_of_a_models_modules_fits_it(facebook):
    plan = fc.fora(2).plan(fc.grid(facebook, 4, sites=["blocks.[01].mlp"]))
    with fc.apply(facebook, plan) as session:
        assert len(session.plan.grid.sites) == 2


def test_a_diffusers_plan_fits_the_original_layout_of_the_same_depth(dit, facebook):
    with fc.apply(facebook, fc.fora(2).plan(fc.grid(dit, 4))) as session:
        assert session.stats.calls == 0
