"""Plain reuse written out over a model's own sites, told call by call which step of which generation it is."""

from contextlib import contextmanager

import forecache as fc

ASIDE = None
"""A call that is no step: computed, and nothing of it is kept."""


@contextmanager
def reused(model, steps, is_computed, sites=None):
    """While the block lasts, call n of the model is ``steps[n]``: (generation or lane, step), or ASIDE.

    is_computed: of a step, whether its sites are computed; at the others they are what the last such step of the same
        generation gave. sites: patterns of modules; by default the sites of the model's family.
    """
    layout = fc.models.find.layout(model, sites)
    kept, calls = {}, iter(steps)
    now = ASIDE

    def value(site, compute, /, *args, **kwargs):
        if now is ASIDE:
            return compute(*args, **kwargs)
        generation, step = now
        if is_computed(step):
            kept[generation, site] = compute(*args, **kwargs)
        return kept[generation, site]

    forward = model.forward

    def call(*args, **kwargs):
        nonlocal now
        now = next(calls)
        return forward(*args, **kwargs)

    before = [(module, vars(module).get("forward")) for module, _ in layout.forwards(value, None)]
    for module, own in layout.forwards(value, None):
        module.forward = own
    model.forward = call
    try:
        yield
    finally:
        for module, own in [*before, (model, None)]:
            del module.forward
            if own is not None:
                module.forward = own
    assert next(calls, "none") == "none", "every call was made"
