"""Random plans, for hypothesis."""

from hypothesis import strategies as st

import forecache as fc

weights = st.floats(-4, 4, allow_nan=False).map(lambda each: round(each, 3))
names = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def rows(draw, num_steps):
    """One row of cells: any step after the first may read up to three earlier ones, with weights that sum to one."""
    row = [fc.Cell()]
    for step in range(1, num_steps):
        sources = draw(st.lists(st.integers(0, step - 1), max_size=3, unique=True))
        if not sources or not draw(st.booleans()):
            row.append(fc.Cell())
            continue
        shares = [draw(weights) for _ in sources[1:]]
        row.append(fc.Cell(tuple(zip(sources, [1 - sum(shares), *shares], strict=True))))
    return tuple(row)


@st.composite
def plans(draw):
    """Any plan at all: rows that no method would make, site names in any script."""
    num_steps = draw(st.integers(1, 8))
    site_names = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    sites = tuple(fc.Site(name, draw(st.integers(0, 99)), draw(names)) for name in site_names)
    table = tuple(draw(rows(num_steps)) for _ in sites)
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
