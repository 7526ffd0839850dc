"""Where a block's arguments are found: by its signature, or by the order that is every family's."""

import functools
from contextlib import ExitStack

import pytest
import torch
from support.tiny import TIMES, TINY
from torch import nn

import forecache as fc
from forecache.models.arguments import KEYWORD_ONLY, positions
from forecache.models.find import layout

SHORT = TIMES[:4]


def passing_on(forward):
    """A forward as a library writes it that says nothing of what it wraps."""

    def call(*args, **kwargs):
        return forward(*args, **kwargs)

    return call


class Named(nn.Module):
    def forward(self, x, scale=1, *, text=None):
        return x


def test_positions_are_those_of_the_first_signature_that_names_all():
    module = Named()
    assert positions(module, ("x",)) == {"x": 0}
    assert positions(module, ("text", "scale")) == {"text": KEYWORD_ONLY, "scale": 1}
    assert positions(module, ("x", "y")) is None
    module.forward = passing_on(module.forward)
    assert positions(module, ("scale",)) == {"scale": 1}
    module.forward = lambda x, *args, **kwargs: None
    assert positions(module, ("x", "scale")) == {"x": 0, "scale": 1}
    module.forward = functools.wraps(Named.forward)(lambda *args: None)
    assert positions(module, ("x",)) == {"x": 1}


def test_the_streams_of_every_block_come_first():
    for name in set(TINY) - {"HiDream"}:  # its mask stands between them, and they are given by name
        for _, block in layout(TINY[name].model()).blocks:
            assert positions(block.module, block.inputs) == {name: place for place, name in enumerate(block.inputs)}


@pytest.mark.parametrize("of_class", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_blocks_whose_forwards_take_any_arguments(name, of_class, monkeypatch):
    """A module's forward, or its class's, that passes everything on: the samples stay as they are, or it is refused."""
    model = TINY[name].model()
    bare = TINY[name].generate(model, SHORT)
    plans = [fc.fora(interval).plan(fc.grid(model, len(SHORT))) for interval in (1, 2)]
    with fc.apply(model, plans[1]):
        expected = TINY[name].generate(model, SHORT)
    known = layout(model)
    with ExitStack() as stack:
        for _, block in known.blocks:
            module = block.module
            if not of_class:
                module.forward = passing_on(module.forward)
                stack.callback(vars(module).pop, "forward")
            elif not hasattr(type(module).forward, "passes_on"):
                forward = passing_on(type(module).forward)
                forward.passes_on = True
                monkeypatch.setattr(type(module), "forward", forward)
        with fc.apply(model, plans[0]):
            assert torch.equal(TINY[name].generate(model, SHORT), bare)
        with fc.apply(model, plans[1]) as session:
            found = TINY[name].generate(model, SHORT)
        assert session.stats.skipped
    if known.level == "blocks":
        assert torch.equal(found, expected)
    assert torch.isfinite(found).all()


def test_the_timestep_of_a_model_whose_forward_takes_any_arguments():
    """Not the third argument, whatever it is."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mid = nn.Linear(4, 4)

        def forward(self, x, timestep, scale):
            return x + scale * self.mid(x)

    def generate(model):
        x = torch.linspace(-1, 1, 8).view(2, 4)
        for time in (9.0, 7.0, 3.0, 1.0):
            x = x - 0.1 * model(x, torch.tensor(time), torch.tensor(10 - time))
        return x

    model = Model()
    plan = fc.fora(2).plan(fc.grid(model, 4, sites=["mid"]))
    with fc.apply(model, plan) as session:
        expected = [generate(model) for _ in range(2)]
    model.forward = passing_on(model.forward)
    with fc.apply(model, plan) as session:
        found = [generate(model) for _ in range(2)]
    assert session.stats.generations == 2
    assert all(map(torch.equal, found, expected))
