"""Lists of blocks and their streams that are found in one call: those of known families, and of models nobody knows."""

import pytest
import torch
from support.slow import slow_but
from support.tiny import TINY
from torch import nn

import forecache as fc
from forecache.models import chain
from forecache.models.structure import lists_of

WIDTH, STEPS = 8, 6
PLAIN = [
    "DiT", "PixArt", "SD3", "SD3.5", "FLUX.1", "Wan 2.1", "Wan 2.2 5B", "FLUX.2", "Qwen-Image", "Sana", "AuraFlow",
    "HunyuanDiT", "CogVideoX", "LTX-Video", "Mochi 1", "Latte", "Stable Audio",
]  # fmt: skip
"""Tiny models without refiners, whose lists would count as large in a model that is so small."""


@pytest.mark.parametrize("name", slow_but(PLAIN, "SD3", "Latte", "FLUX.2"))
def test_a_call_shows_what_is_known_of_the_family(name):
    model = TINY[name].model()
    known, paths = chain.chain_of(model), list(lists_of(model))
    found = chain.chain_of(model, paths)
    assert [block.module for block in found.blocks] == [block.module for block in known.blocks]
    assert [block.inputs for block in found.blocks] == [block.inputs for block in known.blocks]
    assert [block.outputs for block in found.blocks] == [block.outputs for block in known.blocks]
    assert (found.spans(), found.reads) == (known.spans(), known.reads)


class Unknown(nn.Module):
    """A joint or single block: text and image of the same shape cannot be told apart by shapes."""

    def __init__(self, returns):
        super().__init__()
        self.image, self.text = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        self.returns = returns

    def forward(self, x, text, c):
        y = x + self.image(x + text.mean(1, keepdim=True) + c)
        words = text + self.text(text + x.mean(1, keepdim=True))
        return {"joint": (words, y), "packed": (y,), "single": y, "dict": {"x": y}}[self.returns]


class Model(nn.Module):
    """Four blocks, and an adaptor that is no block; ``holds``: outputs of blocks are read after the last one."""

    def __init__(self, returns="single", between=None, holds=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Unknown(returns) for _ in range(4)])
        self.adaptors = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.returns, self.between, self.holds = returns, between, holds

    def forward(self, x, t):
        text = torch.linspace(-1, 1, 2 * 3 * WIDTH, device=x.device).view(2, 3, WIDTH)
        c, held = torch.full((2, 1, WIDTH), t / 10, device=x.device), []
        x = self.adaptors[0](x)
        for layer in self.layers:
            if self.returns == "joint":
                text, x = layer(x, text, c)
            elif self.returns == "packed":
                (x,) = layer(x, text, c)
            else:
                x = layer(x, c=c, text=text)
            x = x if self.between is None else self.between(x)
            held += [x] if self.holds else []
        return self.adaptors[1](x + sum(held))


def generate(model):
    x = torch.linspace(-1, 1, 2 * 3 * WIDTH).flip(0).view(2, 3, WIDTH)
    for t in range(STEPS, 0, -1):
        x = x - 0.1 * model(x, float(t))
    return x


LEVELS = {
    "blocks": {"level": "blocks"},
    "groups": {"level": "groups", "group": 3},
    "stack": {"level": "stack"},
    "named": {"level": "stack", "blocks": "layers"},
}
BETWEEN = {"nothing": None, "new": lambda x: x + 0.1, "in place": lambda x: x.add_(0.1)}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("returns", ["single", "packed", "joint"])
def test_a_model_that_nobody_knows_is_sampled_at_every_level(returns, between):
    """What is reused adds up to the same at every level, and the counts are those that were said."""
    if (returns, between) == ("joint", "new"):
        pytest.skip("its streams have one shape and are not passed on as they are")
    samples, bare = [], torch.empty(0)
    for name, how in LEVELS.items():
        if returns == "joint" and name in ("blocks", "groups"):
            continue  # a site of one block shows no stream that is passed on: see below
        model = Model(returns, BETWEEN[between])
        with torch.no_grad():
            bare = generate(model)
            grid = fc.grid(model, STEPS, **how)
            assert grid.model == "Model (layers x 4)"
            with fc.apply(model, fc.fora(1).plan(grid)):
                assert torch.equal(generate(model), bare)
            plan = fc.taylorseer(fc.fora(3), 1).plan(grid)
            with fc.apply(model, plan) as session:
                samples.append(generate(model))
            assert torch.equal(generate(model), bare)
        cost = plan.cost(model, inputs=(torch.zeros(2, 3, WIDTH), 1.0))
        assert cost.cache_bytes == session.stats.peak_cache_bytes
        assert cost.speedup > 2
    assert not torch.allclose(samples[0], bare)
    for sample in samples[1:]:
        torch.testing.assert_close(sample, samples[0])


def test_a_saved_plan_finds_named_lists_again(tmp_path):
    model = Model()
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack", blocks="layers"))
    plan.save(tmp_path / "plan.json")
    with torch.no_grad(), fc.apply(Model(), fc.Plan.load(tmp_path / "plan.json")) as session:
        generate(session._models[0]._layout.model)
    assert session.stats.skipped == STEPS // 2


@pytest.mark.parametrize("level", ["groups", "stack"])
def test_outputs_of_inner_blocks_that_are_read_later_are_refused(level):
    model = Model(holds=True)
    plan = fc.fora(2).plan(fc.grid(model, STEPS, **LEVELS[level]))
    words = r'Something holds what a Unknown inside of .* returned when the last block has run.*level="blocks"'
    with torch.no_grad(), pytest.raises(fc.errors.SiteError, match=words), fc.apply(model, plan):
        generate(model)


class Reading(nn.Module):
    """Four blocks, one inner output of which is read in some way, by ``how``, beside the next block."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Unknown("single") for _ in range(4)])
        self.last, self.how, self.kept = nn.Linear(WIDTH, WIDTH), how, None

    def forward(self, x, t):
        text, c = torch.zeros(2, 3, WIDTH, device=x.device), torch.full((2, 1, WIDTH), t / 10, device=x.device)
        how, read = self.how, torch.zeros_like(x)
        for depth, layer in enumerate(self.layers):
            before = x
            x = layer(x, c=c, text=text + read) if how == "a block" and depth == 3 else layer(x, c=c, text=text)
            if depth == 0 and how == "a block":
                read = x.mean(1, keepdim=True)
            elif depth == 1 and how == "a sum":
                read = 0.1 * x[:, :1]
            elif depth == 1 and how == "in place":
                read[:, 1:] += x[:, 1:]
            elif depth == 1 and how == "a module":
                read = self.last(x)
            elif depth == 1 and how == "its shape":
                read = torch.zeros_like(x) + c.expand_as(x)
            elif depth == 2 and how == "kept":
                self.kept = x
            elif how == "outside":
                x = before + x
        if how == "the last but one":
            read = before
        if how == "a block":
            read = torch.zeros_like(x)
        return self.last(x + read)


@pytest.fixture(params=["found in a run", "found in a call without data"])
def _found(request, monkeypatch):
    """The reads of a model are found either way; the second one is for classes whose arguments are known."""
    if "data" in request.param:
        monkeypatch.setattr(
            chain, "example_of", lambda _: lambda *_: {"x": torch.zeros(2, 3, WIDTH, device="meta"), "t": 1.0}
        )


READ = ["a sum", "in place", "a module", "the last but one", "kept", "outside"]


@pytest.mark.usefixtures("_found")
@pytest.mark.parametrize(
    ("how", "level"), [*((how, "stack") for how in READ), ("the last but one", "groups"), ("a block", "groups")]
)
def test_an_inner_output_that_is_read_elsewhere_is_refused(how, level):
    model, words = Reading(how), r'What a Unknown inside of .* returned is read elsewhere in the model.*level="blocks"'
    grouped = {"level": "groups", "group": 2} if level == "groups" else {"level": "stack"}
    with torch.no_grad():
        bare = generate(model)
        with (
            pytest.raises(fc.errors.SiteError, match=words),
            fc.apply(model, fc.fora(2), num_steps=STEPS, **grouped),
        ):
            generate(model)
        model.kept = None
        assert torch.equal(generate(model), bare)
        with fc.apply(model, fc.fora(2), num_steps=STEPS, level="blocks") as session:
            found = generate(model)
    assert session.stats.skipped == session.stats.computed > 0
    if how != "a block":
        torch.testing.assert_close(found, block_by_block(Reading(how)))


def block_by_block(model):
    """FORA by blocks, written out: a skipped block gives out its input plus what it added last."""
    step, added = [-1], {}

    def replaced(depth, own):
        def forward(x, **kwargs):
            if step[0] % 2 == 0:
                added[depth] = own(x, **kwargs) - x
            return x + added[depth]

        return forward

    for depth, layer in enumerate(model.layers):
        layer.forward = replaced(depth, layer.forward)
    model.register_forward_pre_hook(lambda *_: step.__setitem__(0, step[0] + 1))
    with torch.no_grad():
        return generate(model)


@pytest.mark.usefixtures("_found")
@pytest.mark.parametrize(
    ("how", "level"),
    [("its shape", "stack"), ("its shape", "groups"), ("a block", "stack"), ("the last but one", "blocks")],
)
def test_what_does_not_read_inner_outputs_later_is_sampled(how, level):
    grouped = {"level": "groups", "group": 2} if level == "groups" else {"level": level}
    model = Reading(how)
    with torch.no_grad(), fc.apply(model, fc.fora(2), num_steps=STEPS, **grouped) as session:
        found = generate(model)
    assert session.stats.skipped == session.stats.computed > 0
    if how == "its shape":  # nothing but the blocks depends on their outputs
        torch.testing.assert_close(found, block_by_block(Reading(how)))


def test_a_block_that_returns_no_tensor_is_refused():
    model = Model("dict")
    model.layers[0].forward = lambda *args, **kwargs: {}
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))
    model.between = lambda x: torch.zeros(2, 3, WIDTH)
    words = r"The streams of a Unknown cannot be told: it is given .*returns no tensor.*[Rr]egister a family"
    with torch.no_grad(), pytest.raises(fc.errors.SiteError, match=words), fc.apply(model, plan):
        generate(model)


def test_streams_that_cannot_be_told_apart_are_refused():
    model = Model("joint")
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="blocks"))
    words = r"cannot be told: .* x and text have the shape of what it returns at place 0"
    with torch.no_grad(), pytest.raises(fc.errors.SiteError, match=words), fc.apply(model, plan):
        generate(model)


@pytest.mark.slow
def test_a_model_is_compiled_when_its_streams_were_found():
    model = Model("joint")
    optimized = torch.compile(model, backend="eager", fullgraph=True)
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))
    words = "streams of stack are found in its first call, which is compiled: sample once"
    with torch.no_grad():
        with pytest.raises(Exception, match=words), fc.apply(optimized, plan):
            generate(optimized)
        with fc.apply(model, plan):
            wanted = generate(model)
        with fc.apply(optimized, fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))):
            torch.testing.assert_close(generate(optimized), wanted)


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {}, r'finds no list of blocks in Sequential.*blocks="transformer_blocks"'),
        (
            Model(),
            {"blocks": "blocks"},
            r"Model has no list of blocks 'blocks'; its lists of modules are layers, adaptors",
        ),
    ],
)
def test_what_is_not_found_says_what_to_give(model, how, words):
    with pytest.raises(fc.errors.SiteError, match=words):
        fc.grid(model, STEPS, level="stack", **how)


def test_blocks_go_with_levels_of_blocks():
    with pytest.raises(fc.errors.SiteError, match='blocks= names lists of blocks: give level="blocks"'):
        fc.grid(Model(), STEPS, blocks="layers")
