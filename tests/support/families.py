"""A family against sampling written out by hand, in a few calls: what the tests of single families share."""

import dataclasses

import torch
from torch.utils._pytree import tree_map_only

import forecache as fc
from support import reference
from support.by_hand import generate_by_hand
from support.tiny import TIMES

SHORT = TIMES[:4]


@dataclasses.dataclass(frozen=True)
class InDtype:
    """A tiny family that samples in another dtype; ``like_time``: whether its times are in it, too."""

    tiny: object
    dtype: torch.dtype
    like_time: bool = False

    def model(self):
        return self.tiny.model().to(self.dtype)

    def cast(self, model):
        def call(**inputs):
            names = () if self.like_time else ("timestep", "timesteps", "t")
            times = {name: inputs.pop(name) for name in names if name in inputs}
            floats = tree_map_only(torch.Tensor, lambda v: v.to(self.dtype) if v.is_floating_point() else v, inputs)
            return model(**floats, **times)

        return call


def check(tiny, model=None, interval=3):
    """FORA is that by hand, nothing skipped is the bare model, and something was skipped; returns the samples."""
    model = tiny.model() if model is None else model
    bare = tiny.generate(model, SHORT)
    grid = fc.grid(model, len(SHORT))
    with fc.apply(model, fc.fora(1).plan(grid)):
        assert torch.equal(tiny.generate(model, SHORT), bare)
    with fc.apply(model, fc.fora(interval).plan(grid)) as session:
        samples = tiny.generate(model, SHORT)
    assert session.stats.skipped == len(grid.sites) * (len(SHORT) - len(reference.front(len(SHORT), interval)))
    short = dataclasses.replace(tiny)
    object.__setattr__(short, "generate", lambda model: tiny.generate(model, SHORT))
    expected = generate_by_hand(short, model, reference.fora(reference.front(len(SHORT), interval)))
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)
    assert (samples - bare).abs().max() > 10 * (samples - expected).abs().max()
    return samples
