"""Random plans, for hypothesis."""

from hypothesis import strategies as st

import forecache as fc

weights = st.floats(-4, 4, allow_nan=False).map(lambda each: round(each, 3))
names = st.text(st.characters(codec="utf-8"), max_size=12)


def tokens(draw, before):
    """Any choice of tokens, by a site that runs before."""
    importance = draw(st.sampled_from(["attn_norm", "attention", "random"] if before else ["random"]))
    grid = draw(st.none() | st.tuples(st.integers(1, 64), st.integers(1, 64)))
    return fc.parts.Tokens(
        draw(st.floats(0, 1)),
        importance,
        draw(st.sampled_from(before)) if importance != "random" else "",
        draw(st.floats(0, 9)),
        draw(st.floats(0.1, 9)),
        grid,
        draw(st.sampled_from(["own", "shared"])),
        draw(st.integers(0, 9)),
    )


@st.composite
def rows(draw, num_steps, before=None):
    """One row of cells: any step after the first may read up to three earlier ones; weights often sum to one.

    before: names of the sites that run before; then some cells are partial.
    """
    row = [fc.parts.Cell()]
    for step in range(1, num_steps):
        sources = draw(st.lists(st.integers(0, step - 1), max_size=3, unique=True))
        if not sources or not draw(st.booleans()):
            row.append(fc.parts.Cell())
            continue
        shares = [draw(weights) for _ in sources[1:]]
        first = draw(weights) if draw(st.booleans()) else 1 - sum(shares)
        reads = tuple(zip(sources, [first, *shares], strict=True))
        partial = before is not None and draw(st.booleans())
        row.append(fc.parts.Cell(reads, tokens=tokens(draw, before) if partial else None))
    return tuple(row)


@st.composite
def plans(draw):
    """Any plan at all: rows that no method would make, site names in any script."""
    num_steps = draw(st.integers(1, 8))
    site_names = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    sites = tuple(fc.parts.Site(name, draw(st.integers(0, 99)), draw(names)) for name in site_names)
    table = tuple(draw(rows(num_steps, site_names[:index])) for index in range(len(sites)))
    provenance = draw(st.dictionaries(names, names, max_size=3))
    return fc.Plan(fc.Grid(num_steps, sites, draw(names)), table, provenance)


@st.composite
def methods(draw):
    """A method of parts: any schedule that computes step 0, with any forecast."""
    interval, anchor = draw(st.integers(1, 6)), draw(st.sampled_from(["start", "end"]))
    base = fc.warmup(fc.fora(interval, anchor=anchor), draw(st.integers(0, 4)))
    correction = draw(st.sampled_from(["none", "goc", "taylor"]))
    if correction == "goc":
        return fc.goc(base, draw(weights), history=draw(st.sampled_from(["emitted", "computed"])))
    return fc.taylorseer(base, draw(st.integers(0, 3))) if correction == "taylor" else base
