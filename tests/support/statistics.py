"""Statistics that no model gave: random averages, and whether two are the same."""

import json

import torch

import forecache as fc
from forecache.parts.statistics import Origin, Statistics, inverse_table

SITES = tuple(fc.parts.Site(f"blocks.{i}.{kind}", i, kind) for i in range(2) for kind in ("attn", "mlp"))
T, N, D = 6, 4, 3
DDIM = json.dumps({"class": "DDIMScheduler", "steps_offset": 1})
GRID = fc.Grid(T, SITES, "SmallDiT", "0123456789abcdef:0.5,-0.25", DDIM)


def measured(grid=GRID, tokens=N, width=D, seed=0, inverse=None):
    """Statistics that no model gives: random averages, on the grid that they are for."""
    generator = torch.Generator().manual_seed(seed)
    means = tuple(torch.randn(grid.num_steps, tokens, width, generator=generator) for _ in grid.sites)
    about = (grid.model, grid.fingerprint, grid.scheduler, 1.5, 7, False, "first", 4, tuple(range(8)), fc.__version__)
    cells = (grid.num_steps, len(grid.sites))
    return Statistics(
        grid.sites,
        means,
        torch.rand(*cells, 2, generator=generator),
        inverse_table(means) if inverse is None else torch.tensor(inverse),
        torch.full(cells, 8),
        Origin(*about),
    )


def same(a, b):
    """Whether two statistics agree in everything, bit for bit."""
    signals = [{} if x.signals is None else dict(x.signals.tables) for x in (a, b)]
    tables = [
        (x.changes, x.inverse, x.counts, *x.means, *(own[name] for name in sorted(own)))
        for x, own in zip((a, b), signals, strict=True)
    ]
    if signals[0].keys() != signals[1].keys():
        return False
    pairs = list(zip(*tables, strict=True))
    return (a.sites, a.origin) == (b.sites, b.origin) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs
    )


STEPS = 12


def random_statistics(model):
    sites = fc.grid(model, 1).sites
    draw = torch.Generator().manual_seed(0)
    means = tuple(torch.randn(STEPS, 16, 16, generator=draw).cumsum(0) * 0.1 for _ in sites)
    shape = STEPS, len(sites)
    origin = fc.parts.statistics.Origin("", "", "", 1.5, 0, False, "first", 1, (0,), "")
    inverse, counts = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.int64)
    return fc.Statistics(sites, means, torch.rand(*shape, 3, generator=draw), inverse, counts, origin)
