"""What others put on models, in tests: families, a plan, the block that is patched, and what the patch does."""

import functools

import torch

import forecache as fc
from forecache.models.find import layout, layout_for
from support import reference
from support.facebook_dit import DiT
from support.tiny import BRANCHES as BRANCHES_OF_DIFFUSERS
from support.tiny import TIMES, TINY, Tiny, t

T = len(TIMES)


class Facebook(Tiny):
    def model(self):
        torch.manual_seed(0)
        return DiT().eval()

    def predict(self, model, x, time):
        return model(x, t(time), torch.tensor([3, 7]))[:, :4]


FAMILIES = {**TINY, "facebook": Facebook("DiT", {}, (2, 4, 8, 8), None)}
BRANCHES = [*BRANCHES_OF_DIFFUSERS, "facebook"]
BLOCKS = [name for name in FAMILIES if name not in BRANCHES]
RULE = reference.fora(reference.front(T, 3))


def plan(model, by_blocks=False):
    return fc.fora(3).plan(grid_by_blocks(model, T) if by_blocks else fc.grid(model, T))


def by_blocks(model):
    """The layout of a model by whole blocks, also where its branches are known."""
    return layout_for(model, grid_by_blocks(model, T))


def grid_by_blocks(model, num_steps):
    return fc.grid(model, num_steps, level="blocks")


def depth_of(model):
    """A block in the middle of a run of skipped blocks that would be one sum."""
    return len(layout(model).blocks) // 2


def block_of(model):
    return layout(model).blocks[depth_of(model)][1].module


@functools.cache
def unpatched(name, by_blocks=False):
    model = FAMILIES[name].model()
    with fc.apply(model, plan(model, by_blocks)):
        return FAMILIES[name].generate(model)


def louder(output):
    """What a patch makes of a block's output."""
    if isinstance(output, tuple):
        return tuple(None if part is None else louder(part) for part in output)
    return output * 1.2


def patched(forward):
    """A forward around another one."""
    return lambda *args, **kwargs: louder(forward(*args, **kwargs))


def check(found, right, name):
    """The result of sampling by hand, and not that without the patch."""
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    assert (right - unpatched(name)).abs().max() > 30 * (found - right).abs().max()
