"""Samples that decide each for itself: the same alone and in a batch; what cannot be divided is refused."""

import pytest
import torch
from support.small import small_dit
from support.tiny import TINY, normal

import forecache as fc
from forecache.models.arguments import Arguments
from forecache.runtime.apply import check_per_sample
from forecache.runtime.per_sample import divided, joined

STEPS = 12
TIMES = tuple(range(990, 0, -82))[:STEPS]
SCALES = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6])[:, None, None, None]
SEVEN = range(7)


@pytest.fixture(scope="module")
def model():
    return small_dit(3)


@torch.no_grad()
def run(model, which=SEVEN, *, guidance=0.0, session=None):
    """Images of which each changes at a speed of its own, so that rules decide differently about them."""
    x = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(0))[list(which)]
    labels, scales = torch.tensor([number % 10 for number in which]), SCALES[list(which)]
    no = torch.full_like(labels, 10)
    for time in TIMES:
        t = torch.full((len(x),), time)
        if session is not None:
            with session.lane("cond"):
                out = model(x, timestep=t, class_labels=labels).sample
            with session.lane("uncond"):
                other = model(x, timestep=t, class_labels=no).sample
            out = other + 2 * (out - other)
        elif guidance:
            pair = model(torch.cat([x, x]), timestep=torch.cat([t, t]), class_labels=torch.cat([labels, no])).sample
            out, other = pair.chunk(2)
            out = other + guidance * (out - other)
        else:
            out = model(x, timestep=t, class_labels=labels).sample
        x = x - scales * out[:, :4]
    return x


BASES = {
    "easycache": (lambda: fc.goc(fc.easycache(0.3, first=2), 0.8), "branches"),
    "fbcache": (lambda: fc.fbcache(0.25), "stack"),
    "teacache": (lambda: fc.taylorseer(fc.teacache(0.3), 1), "blocks"),
    "a budget": (lambda: fc.fbcache(0.3, budget=7), "branches"),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("easycache", "plain"),
        ("teacache", "plain"),
        ("a budget", "pairs"),
        ("fbcache", "pairs"),
        ("fbcache", "lanes"),
    ],
)
def test_an_image_is_the_same_alone_and_in_a_batch_of_seven(model, name, how):
    make, level = BASES[name]
    method = make()
    options = {"num_steps": STEPS, "level": level}

    def sampled(which, session):
        if how == "lanes":
            return run(model, which, session=session)
        return run(model, which, guidance=2.0 if how == "pairs" else 0.0)

    with fc.apply(model, method, **options, per_sample=True) as session:
        whole = sampled(SEVEN, session)
    last = session.stats.last
    lanes = 2 if how == "lanes" else 1
    decided = [stretch.plan.provenance["decided"] for stretch in last.stretches][:7]
    assert len(set(decided)) > 2
    assert len(last.stretches) == 7 * lanes
    alone = []
    for number in (0, 6):
        with fc.apply(model, method, **options) as session:
            image = sampled([number], session)
        alone.append(session.decided().provenance["decided"])
        torch.testing.assert_close(whole[[number]], image, atol=1e-5, rtol=1e-5)
    assert alone == [decided[number] for number in (0, 6)]
    assert "forward" not in vars(model)


def test_only_what_is_computed_is_computed_and_only_what_is_read_is_kept(model):
    """Rows that a block's attention sees are those of the images that compute; nothing is held after a run."""
    rows = []
    attention = model.transformer_blocks[0].attn1.to_q
    hook = attention.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with fc.apply(model, fc.easycache(0.3, first=2), num_steps=STEPS, per_sample=True) as session:
        run(model)
        last = session.stats.last
        decided = [stretch.plan.provenance["decided"] for stretch in last.stretches]
        held = session._models[0].held_bytes
    hook.remove()
    assert sum(rows) == sum(line.count("#") for line in decided)
    sites = len(last.stretches[0].plan.grid.sites)
    columns = ["".join(column) for column in zip(*decided, strict=True)]
    assert session.stats.computed == sites * columns.count("#" * 7)
    assert session.stats.skipped == sites * columns.count("." * 7)
    assert session.stats.partial == sites * STEPS - session.stats.computed - session.stats.skipped > 0
    assert last.picture.splitlines() == list(dict.fromkeys(decided))
    one_image = last.stretches[0].plan.cost(model, 1, guidance=False).cache_bytes
    assert held <= session.stats.peak_cache_bytes == 7 * one_image
    with pytest.raises(fc.errors.RunError, match="images decided each for itself"):
        session.decided()


def test_where_all_is_computed_nothing_differs(model):
    plain = run(model)
    with fc.apply(model, fc.teacache(0.0), num_steps=STEPS, per_sample=True) as session:
        assert torch.equal(run(model), plain)
        assert session._models[0].held_bytes < session.stats.peak_cache_bytes
    assert session.stats.last.picture == "#" * STEPS
    assert torch.equal(run(model), plain)


def test_an_exception_in_a_part_of_a_batch_leaves_nothing(model):
    method = fc.fbcache(0.25)
    with fc.apply(model, method, num_steps=STEPS, per_sample=True) as session:
        expected = run(model)
        calls = [0]

        def fail(module, args):
            calls[0] += 1
            if len(args[0]) < 7:
                raise ValueError("planned")

        hook = model.transformer_blocks[1].attn1.to_q.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="planned"):
            run(model)
        assert session._models[0].held_bytes == 0
        hook.remove()
        assert torch.equal(run(model), expected)


def test_what_does_not_go_together_is_refused(model):
    options = {"num_steps": STEPS, "per_sample": True}
    for more in (
        {"cache_dtype": torch.bfloat16},
        {"cache_device": "cpu"},
        {"guards": fc.runtime.Guards(max_drift=2, changes=(1.0,))},
    ):
        with pytest.raises(fc.errors.PlanError, match="per_sample=True does not go with"):
            fc.apply(model, fc.fbcache(0.2), **options, **more)
    with pytest.raises(fc.errors.PlanError, match=r"fora\(interval=2\) does not: leave it out"):
        fc.apply(model, fc.fora(2), **options)
    with pytest.raises(fc.errors.PlanError, match=r"does not go with torch.compile"):
        check_per_sample(None, None, fc.runtime.Guards(), None, [model])


@torch.no_grad()
def of_family(kind, second):
    """The first sample of a tiny model's batch of two, whose second changes at this speed, and what was decided."""
    tiny = TINY[kind]
    model = tiny.model()
    with fc.apply(model, fc.teacache(0.15), num_steps=STEPS, per_sample=True) as session:
        x = normal(*tiny.shape)
        speeds = torch.tensor([0.1, second]).view(-1, *[1] * (x.ndim - 1))
        for time in TIMES:
            x = x - speeds * tiny.predict(model, x, time)
    return x[0], [stretch.plan.provenance["decided"] for stretch in session.stats.last.stretches]


def test_two_streams_and_places_of_tokens_are_divided():
    first, decided = of_family("FLUX.1", 0.0)
    assert len(set(decided)) == 2
    other, again = of_family("FLUX.1", 0.3)
    assert (decided[0], decided[1] != again[1]) == (again[0], True)
    torch.testing.assert_close(first, other, atol=1e-5, rtol=1e-5)


def test_a_model_whose_tokens_depend_on_the_batch_is_refused():
    """Lumina 2 pads texts to the longest of a batch, and Latte has the frames of a video as rows."""
    for kind, why in (("Lumina 2", "pads texts to the longest of a batch"), ("Latte", "so it is not of samples")):
        with pytest.raises(fc.errors.RunError, match=why):
            of_family(kind, 0.3)


def test_arguments_are_divided_by_their_samples():
    """Tokens' places and broadcast arguments stay whole; lists of samples and of batches are told apart."""

    class Model(torch.nn.Module):
        def forward(self, x, img_ids, timestep=None, extra=None):
            pass

    def rows(value, which=(0, 2)):
        return divided(Arguments((), {"extra": value}), which, 3, Model()).kwargs["extra"]

    batch = torch.arange(12).view(3, 4)
    own = divided(Arguments((batch, batch), {"timestep": torch.tensor(3.0)}), [0, 2], 3, Model())
    assert torch.equal(own.args[0], batch[[0, 2]])
    assert own.args[1] is batch
    assert own.kwargs["timestep"] == 3
    assert torch.equal(rows({"a": [batch], "image_rotary_emb": (batch, batch)})["a"][0], batch[[0, 2]])
    assert torch.equal(rows({"image_rotary_emb": (batch, batch)})["image_rotary_emb"][1], batch)
    assert rows([torch.ones(1), torch.ones(2), torch.ones(4)])[1].shape == (4,)
    assert rows(batch[:1]).shape == (1, 4)
    assert rows([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(fc.errors.RunError, match="lists 3 tensors of 3 rows"):
        rows([batch, batch, batch])
    parts = [{"sample": batch[[1]]}, {"sample": batch[[0, 2]]}]
    assert torch.equal(joined(parts, [[1], [0, 2]], 3)["sample"], batch)
    with pytest.raises(fc.errors.RunError, match=r"\[1, 1\] rows for \[1, 2\] samples"):
        joined([batch[[1]], batch[[0]]], [[1], [0, 2]], 3)
