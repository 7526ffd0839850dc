"""Families of whole blocks, of random depth, by random plans: right against sampling by a dictionary of residuals."""

import random
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from support.slow import slow_but
from support.tiny import TIMES, TINY

import forecache as fc
from forecache.models.blocks import Residual
from forecache.models.find import layout
from forecache.parts.grid import Cell

STEPS = TIMES[:5]
BLOCKS = [name for name in TINY if isinstance(layout(TINY[name].model()).blocks[0][1], Residual)]
DEPTHS = ("num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers", "n_layers")


def varied(tiny, chance):
    """The family with other numbers of blocks; HunyuanDiT's are even."""
    even = 2 if tiny.kind == "HunyuanDiT2DModel" else 1
    depths = {name: even * chance.randint(1, 3) for name in DEPTHS if name in tiny.config}
    return replace(tiny, config=tiny.config | depths)


def random_row(chance):
    row = [Cell()]
    for step in range(1, len(STEPS)):
        sources = chance.sample(range(step), chance.randint(0, min(step, 3)))
        shares = [round(chance.uniform(-1, 1), 2) for _ in sources[1:]]
        weights = [round(1 - sum(shares), 2), *shares]
        row.append(Cell(tuple(zip(sources, weights, strict=True)) if sources else ()))
    return tuple(row)


def by_dictionary(tiny, model, rows):
    """What is sampled where every block adds what its row says; a block's inputs come first, in one order."""
    added, calls = {}, {}

    def replaced(number, block, own):
        def forward(*args, **kwargs):
            step = calls[number] = calls.get(number, -1) + 1
            streams = [args[place] if place < len(args) else kwargs[name] for place, name in enumerate(block.inputs)]
            cell = rows[number][step]
            if cell.computed:
                before = [stream.clone() for stream in streams]
                output = own(*args, **kwargs)
                values = output if isinstance(output, tuple) else (output,)
                pairs = zip(block.outputs, values, strict=True)
                added[number, step] = [value - before[stream] for stream, value in pairs]
                return output
            parts = zip(*(added[number, source] for source, _ in cell.reads), strict=True)
            weights = [weight for _, weight in cell.reads]
            sums = [sum(weight * part for weight, part in zip(weights, each, strict=True)) for each in parts]
            added[number, step] = sums
            values = tuple(streams[stream] + part for stream, part in zip(block.outputs, sums, strict=True))
            return values if len(values) > 1 else values[0]

        return forward

    with ExitStack() as stack:
        for number, (_, block) in enumerate(layout(model).blocks):
            block.module.forward = replaced(number, block, block.module.forward)
            stack.callback(vars(block.module).pop, "forward")
        return tiny.generate(model, STEPS)


@pytest.mark.parametrize("seed", slow_but(range(4), 0))
@pytest.mark.parametrize("name", slow_but(BLOCKS, "Sana", "FLUX.2", "Qwen-Image"))
def test_any_depth_by_any_plan(name, seed):
    chance = random.Random(f"{name} {seed}")
    tiny = varied(TINY[name], chance)
    model = tiny.model()
    left = {path: set(vars(module)) for path, module in model.named_modules()}
    grid = fc.grid(model, len(STEPS))
    table = [random_row(chance) for _ in range(2)]
    rows = tuple(chance.choice(table) for _ in grid.sites)
    expected = by_dictionary(tiny, model, rows)
    with chance.choice([torch.no_grad, torch.inference_mode])():
        bare = tiny.generate(model, STEPS)
        with fc.apply(model, fc.Plan(grid, rows)):
            samples = [tiny.generate(model, STEPS) for _ in range(2)]
        assert torch.equal(tiny.generate(model, STEPS), bare)
    for sample in samples:
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == left
