"""Methods in one text."""

import pytest

import forecache as fc
from forecache.methods.flags import Expression
from forecache.methods.words import method_of
from forecache.zoo import ingredients

SAME = {
    "goc": fc.goc(fc.fora(2), 0.8),
    "goc eta=1.2 interval=3": fc.goc(fc.fora(3), 1.2),
    "goc base=fora interval=3 --eta=1": fc.goc(fc.fora(3), 1.0),
    "taylorseer interval=3 order=2": fc.taylorseer(fc.fora(3), 2),
    "feedback interval=3": fc.feedback(fc.fora(3)),
    "fora interval=3 warmup=2": fc.warmup(fc.fora(3), 2),
    "explicit pattern=#..#": fc.explicit(pattern="#..#"),
    "fora_paper level=50": fc.methods.fora_paper(50),
    "explicit skip=1,3,": fc.explicit(skip=[1, 3]),
    '{method = "goc", eta = 0.5, base = {method = "fora", interval = 4}}': fc.goc(fc.fora(4), 0.5),
}


@pytest.mark.parametrize(("text", "method"), SAME.items())
def test_a_text_is_the_method_that_python_makes(text, method):
    assert method_of(text).recipe == method.recipe


def test_measured_data_of_bundled_models_have_names():
    made = method_of("goc base=l2c router=digits-22 eta=1", ingredients.resolver(20))
    assert made.recipe["base"]["method"] == "l2c"


FAILURES = {
    "": "There is no method ''",
    "nonsense": "There is no method 'nonsense'; there are adaptive",
    "goc eta": "'eta' is not a word such as interval=3",
    "goc eta=": "'eta=' is not a word",
    "goc eta=1 eta=2": "eta stands there twice",
    "goc eta=high": "finite number",
    "goc colour=3": "no option 'colour'",
    "fora eta=1": "belongs to goc, and fora does not use it",
    "eoc": "eoc needs stats=, statistics",
    "{method = }": "it is no recipe such as",
    '{method = "goc"}': "takes a base, and has none",
}


@pytest.mark.parametrize(("text", "sentence"), FAILURES.items())
def test_a_text_that_is_no_method_is_quoted_with_the_reason(text, sentence):
    with pytest.raises(fc.errors.InputError) as caught:
        method_of(text)
    assert str(caught.value).startswith(f"The method {text!r} cannot be made: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("method", ["procache", "selective", "toca"])
def test_a_method_of_partial_cells_has_some_with_its_defaults(method):
    sites = [fc.parts.Site(f"blocks.{depth}.{kind}", depth, kind) for depth in (0, 1) for kind in ("attn", "mlp")]
    plan = Expression(method, None, {}).build().plan(fc.Grid(20, tuple(sites)))
    assert any(cell.tokens for row in plan.rows for cell in row)


def test_a_published_schedule_names_itself_when_the_run_has_other_steps():
    grid = fc.Grid(28, (fc.parts.Site("blocks.0.mlp", 0, "mlp"),))
    for method, steps in (({"caching_level": 50}, 20), ({"partial": True}, 50)):
        name = "fora_paper" if steps == 20 else "procache_paper"
        built = Expression(name, None, method).build()
        with pytest.raises(fc.errors.PlanError, match=f"{name}.* is a published schedule of {steps} steps"):
            built.plan(grid)
