"""Spans of blocks: what a model does between blocks, writes, and the order in which blocks are called."""

import pytest
import torch
from torch import nn

import forecache as fc
from forecache.models import register
from forecache.models.blocks import Block, Branch
from forecache.models.layout import from_blocks

WIDTH, STEPS = 4, 6


class ToyBlock(nn.Module):
    """x + mlp(x); ``writes`` says what it writes into: nothing, its input, its condition."""

    def __init__(self, writes=""):
        super().__init__()
        self.mlp, self.writes = nn.Linear(WIDTH, WIDTH), writes

    def forward(self, x, condition):
        y = torch.tanh(self.mlp(x))
        if self.writes == "condition":
            condition.add_(0.1)
        return x.add_(y) if self.writes == "input" else x + y


class Toy(nn.Module):
    """Three blocks, and what happens between them."""

    def __init__(self, between=None, writes="", order=(0, 1, 2)):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([ToyBlock(writes) for _ in range(3)])
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.between, self.order = between, order

    def forward(self, x, t):
        before = self.first(x) + t / 10
        x = before.clone()
        condition = torch.zeros(1)
        for depth in self.order:
            x = self.blocks[depth](x, condition)
            if self.between is not None:
                x = self.between(x, depth)
        return self.last(x - 0.1 * before)


def blocks_of(model):
    def block(module):
        return Block(module, lambda *_: None, (Branch("all", lambda x, _: module(x) - x, None),), inputs=("x",))

    return from_blocks(model, map(block, model.blocks))


@pytest.fixture(autouse=True)
def _known():
    with register(Toy, blocks_of):
        yield


def generate(model, steps=STEPS):
    x, outputs = torch.linspace(-1, 1, 2 * 3 * WIDTH).view(2, 3, WIDTH), []
    for t in range(steps, 0, -1):
        outputs.append(model(x, float(t)))
        x = x - 0.1 * outputs[-1]
    return outputs


def expected(model, interval=2):
    """FORA over the whole stack: after the blocks the stream is what it was before them, plus what they last added."""
    x, outputs, added = torch.linspace(-1, 1, 2 * 3 * WIDTH).view(2, 3, WIDTH), [], None
    for step, t in enumerate(range(STEPS, 0, -1)):
        before = model.first(x) + t / 10
        if step % interval == 0:
            y = before.clone()
            for depth, block in enumerate(model.blocks):
                y = y + torch.tanh(block.mlp(y))
                if model.between is not None and depth < 2:
                    y = model.between(y, depth)
            added = y - before
        y = before + added
        if model.between is not None:
            y = model.between(y, 2)
        outputs.append(model.last(y - 0.1 * before))
        x = x - 0.1 * outputs[-1]
    return outputs


BETWEEN = {
    "nothing": None,
    "a control's residual": lambda x, depth: x + 0.2 * (depth + 1),
    "in place": lambda x, depth: x.add_(0.2 * (depth + 1)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("writes", ["", "input"])
def test_what_happens_between_blocks_is_counted_once(between, writes, mode):
    """After the last block it happens at every step, between blocks it is part of what is estimated."""
    model = Toy(BETWEEN[between], writes)
    with mode():
        wanted, bare = expected(model), generate(model)
        with fc.apply(model, fc.fora(1).plan(fc.grid(model, STEPS, level="stack"))):
            assert all(map(torch.equal, generate(model), bare))
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))):
            samples = [generate(model) for _ in range(2)]
    for sample in samples:
        for found, one in zip(sample, wanted, strict=True):
            torch.testing.assert_close(found, one)


def test_a_write_into_a_condition_is_refused_where_it_would_be_left_out():
    model = Toy(writes="condition")
    with torch.no_grad(), fc.apply(model, fc.fora(1).plan(fc.grid(model, STEPS, level="stack"))):
        generate(model)
    words = r"A block of stack, a ToyBlock, writes into its argument 1, which is none of the streams"
    with (
        torch.no_grad(),
        pytest.raises(fc.errors.RunError, match=words),
        fc.apply(model, fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))),
    ):
        generate(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((0, 2), "Block 2 of stack .* was called where block 1 should be"),
        ((1, 0, 2), "Block 1 of stack .* was called where block 0 should be"),
        ((0, 1, 1, 2), "Block 1 of stack .* was called where block 2 should be"),
        ((0, 1, 2, 0, 1, 2), "stack ran twice in one model call"),
        ((0, 1), "stack did not run in this model call"),
    ],
)
@pytest.mark.parametrize("step", ["computed", "skipped"])
def test_blocks_out_of_order_are_refused(order, words, step):
    model = Toy()
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))
    with torch.no_grad(), pytest.raises(fc.errors.RunError, match=words), fc.apply(model, plan):  # noqa: PT012
        if step == "skipped":
            model(torch.zeros(2, 3, WIDTH), 9.0)
        model.order = order
        model(torch.zeros(2, 3, WIDTH), 8.0)


@pytest.mark.parametrize("where", ["before the first", "after the last"])
def test_hooks_at_the_ends_of_a_stack_see_every_step(where):
    model, seen = Toy(), []

    def shifted(value):
        seen.append(value)
        return value + 0.5

    if where == "before the first":
        model.blocks[0].register_forward_pre_hook(lambda _, args: (shifted(args[0]), *args[1:]))
    else:
        model.blocks[2].register_forward_hook(lambda _, args, output: shifted(output))
    with torch.no_grad():
        bare = generate(model)
        seen.clear()
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))):
            found = generate(model)
    assert len(seen) == STEPS
    assert torch.equal(found[0], bare[0])


@pytest.mark.parametrize("where", ["after the first", "before the last", "everywhere"])
def test_hooks_inside_of_a_stack_are_refused(where):
    model = Toy()
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))

    def put():
        if where == "everywhere":
            return nn.modules.module.register_module_forward_hook(lambda *_: None)
        if where == "after the first":
            return model.blocks[0].register_forward_hook(lambda *_: None)
        return model.blocks[2].register_forward_pre_hook(lambda *_: None)

    words = r'inside of the site stack, whose 3 blocks do not run at skipped steps.*level="blocks"'
    handle = put()
    with pytest.raises(fc.errors.RunError, match=words), fc.apply(model, plan):
        pass
    handle.remove()
    with torch.no_grad(), pytest.raises(fc.errors.RunError, match=words), fc.apply(model, plan):  # noqa: PT012
        generate(model)
        handle = put()
        generate(model)
    handle.remove()
    with torch.no_grad(), fc.apply(model, plan) as session:
        generate(model)
    assert session.stats.generations == 1


def test_a_patched_block_is_estimated_with_its_patch():
    """What it gives out is part of what the stack adds."""
    model = Toy()
    own = model.blocks[1].forward
    model.blocks[1].forward = lambda x, condition: own(x, condition) + 0.3
    like = Toy(lambda x, depth: x + 0.3 if depth == 1 else x)
    with torch.no_grad():
        wanted = expected(like)
        with fc.apply(model, fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))):
            found = generate(model)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_an_exception_between_blocks_leaves_nothing():
    model = Toy()
    plan = fc.fora(2).plan(fc.grid(model, STEPS, level="stack"))
    fails = [True]

    def failing(x, depth):
        if depth == 1 and fails:
            raise ValueError
        return x

    model.between = failing
    with torch.no_grad(), fc.apply(model, plan):
        with pytest.raises(ValueError):  # noqa: PT011
            generate(model)
        fails.clear()
        found = generate(model)
    with torch.no_grad(), fc.apply(model, plan):
        assert all(map(torch.equal, generate(model), found))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("of", ["residual", "output"])
def test_a_compiled_model_samples_as_an_eager_one(of):
    model = Toy(BETWEEN["a control's residual"], "input")
    grid = fc.grid(model, STEPS, level="stack", of=of)
    with torch.no_grad():
        for method in (fc.fora(2), fc.taylorseer(fc.fora(3), 1)):
            with fc.apply(model, method.plan(grid)):
                wanted = generate(model)
            optimized = torch.compile(model, backend="eager", fullgraph=True)
            with fc.apply(optimized, method.plan(grid)):
                found = generate(optimized)
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other)
