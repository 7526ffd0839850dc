"""What is picked becomes the right plan and the right images; one at a time, and cancelled without a trace."""

import json
import math
import shlex
import threading
import time

import pytest
import torch

import forecache as fc
from forecache import zoo
from forecache.compare import comparer as comparer_module
from forecache.compare.comparer import Comparer
from forecache.compare.selection import Selection, bases, corrections
from forecache.sampling.loop import sample, to_images
from forecache.zoo import load_digits, load_digits_text

DIGITS = zoo.record("digits")

FEW = {"images": "3,1", "steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def comparer():
    return Comparer()


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def alone(digits, plan, labels, steps, seed, guidance=1.5):
    """What the library's own loop gives in a session of its own, or without one."""

    def images():
        how = {"num_steps": steps, "guidance": guidance, "seed": seed}
        return to_images(sample(digits.transformer, digits.scheduler, labels, **how))

    if plan is None:
        return images()
    with fc.apply(digits, plan):
        return images()


def is_clean(model):
    return all("forward" not in vars(module) and not module._forward_hooks for module in model.modules())


# ---- what is picked -------------------------------------------------------------------------------------------------

GATE = {"stats": DIGITS.statistics_path(20)}
"""GOC has a gate by the model's statistics."""

PICKED = {
    "reuse": ({"correction": "none"}, lambda: fc.fora(2)),
    "goc": ({"values": {"interval": 3, "eta": 1.2}}, lambda: fc.goc(fc.fora(3), 1.2, **GATE)),
    "taylorseer": ({"correction": "taylorseer", "values": {"order": 2}}, lambda: fc.taylorseer(fc.fora(2), 2)),
    "spread": ({"base": "spread", "values": {"speedup": 2.5}}, lambda: fc.goc(fc.methods.spread(2.5), 0.8, **GATE)),
    "by hand": (
        {"base": "explicit", "values": {"skip": "1, 3,6"}},
        lambda: fc.goc(fc.explicit(skip=[1, 3, 6]), 0.8, **GATE),
    ),
    "a pattern": (
        {"base": "explicit", "values": {"pattern": "#.#.################"}},
        lambda: fc.goc(fc.explicit(pattern="#.#.################"), 0.8, **GATE),
    ),
    "l2c": (
        {"base": "l2c", "values": {"router": "digits-40"}},
        lambda: fc.goc(fc.l2c(DIGITS.router_path(40)), 0.8, **GATE),
    ),
    "l2c alone": ({"base": "l2c", "correction": "none"}, lambda: fc.l2c(DIGITS.router_path(22))),
    "smoothcache": (
        {"base": "smoothcache", "values": {"change": 0.4}, "correction": "none"},
        lambda: fc.smoothcache(DIGITS.statistics_path(20), 0.4),
    ),
    "eoc": (
        {"correction": "eoc", "values": {"form": "additive", "theta": 0.5}},
        lambda: fc.eoc(fc.fora(2), DIGITS.statistics_path(20), 0.5, form="additive"),
    ),
    "procache": (
        {"correction": "procache", "values": {"interval": 4, "share": 0.5}},
        lambda: fc.procache(fc.fora(4), 0.75, 0.5, "attn_norm"),
    ),
    "selective": (
        {"correction": "selective", "values": {"interval": 4, "every": 1, "importance": "random"}},
        lambda: fc.selective(fc.fora(4), importance="random", every=1),
    ),
    "toca": ({"correction": "toca", "values": {"interval": 3}}, lambda: fc.toca(fc.fora(3))),
    "feedback": ({"correction": "feedback", "values": {"strength": 0.8}}, lambda: fc.feedback(fc.fora(2), 2, 0.8)),
    "warmup": ({"correction": "warmup", "values": {"warmup": 4}}, lambda: fc.warmup(fc.fora(2), 4)),
    "the papers' levels": (
        {"base": "fora_paper", "values": {"caching_level": 50}, "correction": "none"},
        lambda: fc.methods.fora_paper(50),
    ),
    "fbcache": (
        {"base": "fbcache", "values": {"online_threshold": 0.3, "max_gap": 3}},
        lambda: fc.goc(fc.fbcache(0.3, max_gap=3), 0.8, **GATE),
    ),
    "dbcache": (
        {"base": "dbcache", "values": {"online_threshold": 0.3, "tail": 1}, "correction": "none"},
        lambda: fc.dbcache(0.3, tail=1),
    ),
    **{
        name: (
            {"base": name, "values": {"online_threshold": 0.3}, "correction": "none"},
            lambda method=method: method(0.3),
        )
        for name, method in {"easycache": fc.easycache, "seacache": fc.seacache, "dicache": fc.dicache}.items()
    },
    "teacache": (
        {"base": "teacache", "values": {"online_threshold": 0.3}, "correction": "none"},
        lambda: fc.teacache(0.3, **GATE),
    ),
    "magcache": ({"base": "magcache", "correction": "none"}, lambda: fc.magcache(**GATE)),
    "adaptive": (
        {"base": "adaptive", "values": {"pattern": "#." * 10}, "correction": "none"},
        lambda: fc.adaptive("#." * 10, **GATE),
    ),
    "hindsight": ({"correction": "hindsight"}, lambda: fc.hindsight(fc.fora(2))),
}


@pytest.mark.parametrize(("given", "expected"), PICKED.values(), ids=PICKED)
def test_what_is_picked_is_the_library_s_method(digits, given, expected):
    grid = fc.grid(digits, 20)
    assert Selection(**given).method().plan(grid) == expected().plan(grid)


def test_every_base_and_correction_can_be_picked():
    picked = [Selection(**given) for given, _ in PICKED.values()]
    assert {each.base for each in picked} == set(bases("digits")) - {"procache_paper"}  # of 50 steps
    assert {each.correction for each in picked} == set(corrections("digits"))


def test_what_a_plan_decided_is_what_is_shown_and_counted(comparer):
    picked = Selection(**FEW | {"steps": 10}, base="easycache", correction="none", values={"online_threshold": 2.0})
    found = comparer.compare(picked)
    assert found.plan.is_undecided
    assert not found.ran.is_undecided
    assert found.ran.computed_share < 1
    figures = {name: values for name, *values in found.figures()}
    assert figures["features computed"][1] == f"{found.ran.computed_share:.1%}"
    assert figures["MACs"][2] == f"{found.ran.cost(load_digits().transformer).speedup:.2f}x fewer"


def test_the_other_models_have_what_they_have():
    """No router is bundled for digits-text, and no statistics for a model of one's own."""
    assert "l2c" not in bases("digits-text")
    assert "eoc" in corrections("digits-text")
    assert set(bases("facebook/DiT-XL-2-256")) == {
        "fora", "fora_paper", "explicit", "procache_paper", "spread",
        "fbcache", "dbcache", "teacache", "easycache", "seacache", "dicache",
    }  # fmt: skip
    assert "eoc" not in corrections("facebook/DiT-XL-2-256")
    grid = fc.grid(load_digits_text(), 20)
    picked = Selection(model="digits-text", images="two fives", correction="eoc", guidance=2.0)
    assert picked.method().plan(grid) == fc.eoc(fc.fora(2), zoo.record("digits-text").statistics_path(20)).plan(grid)


REFUSED = {
    "base": ({"base": "nothing"}, "the base is one of adaptive, dicache"),
    "of another model": ({"model": "digits-text", "base": "l2c"}, "For digits-text the base is one of"),
    "correction": ({"correction": "x" * 500}, "the correction is one of"),
    "router": ({"base": "l2c", "values": {"router": "../../secret"}}, "The router is one of digits-22, digits-40"),
    "form": ({"correction": "eoc", "values": {"form": "odd"}}, "The form is one of relative, additive"),
    "no number": ({"seed": None}, "seed is a whole number from 0"),
    "not whole": ({"steps": 20.5}, "steps is a whole number from 2 to 250"),
    "true is no number": ({"values": {"interval": True}}, "interval is a whole number"),
    "too many": ({"steps": 10**9}, "steps is a whole number from 2 to 250; not 1000000000"),
    "not finite": ({"values": {"eta": math.nan}}, "eta is a number from 0 to 2; not nan"),
    "long": ({"images": "3," * 9000}, "at most 4000 characters"),
}


@pytest.mark.parametrize(("given", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_picked_is_refused(given, sentence):
    with pytest.raises(fc.errors.InputError, match=sentence):
        Selection(**given)


def test_what_is_not_used_is_not_looked_at():
    picked = Selection(correction="none", values={"eta": math.nan, "share": None, "theta": ""})
    assert picked.method().name == Selection(correction="none").method().name


def test_images_that_cannot_be_made_are_refused(comparer):
    for given, sentence in [
        ({"images": "3,11"}, "11 is not"),
        ({"images": ",".join("1" * 17)}, "these are 17"),
        ({"model": "digits-text", "images": " \n "}, "1 to 16 images"),
        ({"model": "/etc/passwd"}, "there are digits, digits-text"),
        ({"base": "explicit", "values": {"skip": " "}}, "one of the three"),
        ({"base": "explicit", "values": {"skip": "1,x"}}, "whole numbers"),
    ]:
        with pytest.raises(fc.ForecacheError, match=sentence):
            comparer.compare(Selection(**{"steps": 4, **given}))


# ---- what is made ---------------------------------------------------------------------------------------------------


def test_a_pair_is_what_the_library_makes(comparer, digits):
    comparison = comparer.compare(Selection(images="three,1", steps=6, seed=5, guidance=2.0, values={"eta": 1.2}))
    plan = fc.goc(fc.fora(2), 1.2).plan(fc.grid(digits, 6))
    bare, cached = (alone(digits, each, [3, 1], 6, 5, 2.0) for each in (None, plan))
    assert torch.equal(comparison.uncached.images, bare)
    assert torch.equal(comparison.cached.images, cached)
    assert not torch.equal(bare, cached)
    by_hand = [10 * math.log10(1 / ((a - b).double() ** 2).mean().item()) for a, b in zip(bare, cached, strict=True)]
    assert comparison.psnr == pytest.approx(by_hand, abs=1e-3)
    assert torch.equal(comparison.difference, ((cached - bare).abs() * 8).clip(0, 1))
    lines = {name: values for name, *values in comparison.figures()}
    cost = plan.cost(digits, batch_size=2)
    assert comparison.cost == cost
    assert lines["MACs"] == [
        f"{cost.macs_uncached / 1e9:.4g} G",
        f"{cost.macs / 1e9:.4g} G",
        f"{cost.speedup:.2f}x fewer",
    ]
    assert lines["peak cache memory"][1] == f"{cost.cache_bytes / 2**20:.1f} MiB"
    assert lines["features computed"] == ["100.0%", "50.0%", ""]
    assert lines["PSNR"][1:] == [f"{sum(by_hand) / 2:.1f} dB", f"{min(by_hand):.1f} to {max(by_hand):.1f} dB"]
    ratio, spread = comparison.time_ratio, comparison.timing.spread
    assert lines["time"] == [
        f"{spread('no cache').median:.2f} s",
        f"{spread('with the plan').median:.2f} s",
        f"{ratio.median:.2f}x as fast ({ratio.low:.2f} to {ratio.high:.2f}, 3 rounds)",
    ]


def test_a_long_comparison_shows_no_time(comparer, monkeypatch):
    monkeypatch.setattr(comparer_module, "PATIENCE", 0)
    comparison = comparer.compare(Selection(**FEW))
    assert (comparison.timing, comparison.time_ratio) == (None, None)
    assert comparison.figures()[0] == ("time", "", "", "not measured: both runs together took over 0 s")


def test_equal_images_are_said_to_be_equal(comparer):
    comparison = comparer.compare(Selection(**FEW, base="explicit", values={"pattern": "####"}, correction="none"))
    assert {name: rest for name, *rest in comparison.figures()}["PSNR"] == ["", "equal images", ""]


def test_the_plan_is_saved_with_its_constants(comparer, tmp_path):
    comparison = comparer.compare(Selection(images="3", steps=20, correction="eoc"))
    plan, constants = comparison.save(tmp_path)
    assert (plan.name, constants.name) == ("plan.json", "plan.constants.safetensors")
    assert fc.Plan.load(plan) == comparison.plan
    again = comparer.compare(Selection(**FEW))
    assert again.save(tmp_path)[0] == plan
    assert fc.Plan.load(plan) == again.plan


@pytest.mark.parametrize("model", ["digits", "digits-text"])
def test_the_command_that_it_gives_makes_the_same(comparer, forecache, tmp_path, model):
    images = {"digits": "3,one", "digits-text": "a seven left of a three\ntwo 'fives'"}[model]
    comparison = comparer.compare(Selection(model=model, images=images, steps=4, seed=3, correction="taylorseer"))
    program, *words = shlex.split(comparison.command)
    assert program == "forecache"
    code, out, err = forecache(*words, "--out", tmp_path, "--json")
    assert (code, err) == (0, "")
    assert fc.Plan.load(tmp_path / "plan.json") == comparison.plan
    found = [entry["psnr"] for entry in json.loads(out)["images"]]
    assert found == pytest.approx(comparison.psnr, abs=1e-4)


def test_steps_are_told(comparer):
    told = []
    comparer.compare(Selection(**FEW), on_step=lambda done, total: told.append((done, total)))
    assert told == [(number, 8) for number in range(1, 9)]


# ---- one at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 4, 5, 8])
def test_what_is_cancelled_leaves_no_trace(comparer, digits, after):
    def step(done, _):
        assert done <= after
        if done == after:
            assert comparer.stop("me")
            assert not comparer.stop("somebody else")

    made = comparer.compare(Selection(**FEW), "me", step)
    assert (made is None) == (after < 8), "after the last step there is nothing left to stop"
    assert is_clean(comparer.source("digits").transformer)
    assert not comparer.stop("me")
    again = comparer.compare(Selection(**FEW), "me")
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(digits, 4))
    assert torch.equal(again.uncached.images, alone(digits, None, [3, 1], 4, 7))
    assert torch.equal(again.cached.images, alone(digits, plan, [3, 1], 4, 7))


def test_an_error_leaves_no_trace(comparer):
    def step(done, _):
        if done == 6:
            raise RuntimeError("from outside")

    with pytest.raises(RuntimeError, match="from outside"):
        comparer.compare(Selection(**FEW), "me", step)
    assert is_clean(comparer.source("digits").transformer)
    assert comparer.compare(Selection(**FEW), "me") is not None


class Slow:
    """A comparison made in a thread, which stands still after its first step until it is let go."""

    def __init__(self, comparer, choices, who):
        self.reached, self.go, self.made, self.before = threading.Event(), threading.Event(), [], []

        def step(*_):
            self.reached.set()
            assert self.go.wait(60)

        def make():
            self.made.append(comparer.compare(choices, who, step, self.before.append))

        self.thread = threading.Thread(target=make, daemon=True)
        self.thread.start()

    def end(self):
        self.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.made[0]


def test_a_second_one_of_the_same_person_is_refused(comparer):
    first = Slow(comparer, Selection(**FEW), "me")
    assert first.reached.wait(60)
    with pytest.raises(fc.errors.InputError, match="still running"):
        comparer.compare(Selection(**FEW), "me")
    assert first.end() is not None


def test_two_people_wait_for_each_other_and_get_their_own(comparer, digits):
    first = Slow(comparer, Selection(**FEW), "a")
    assert first.reached.wait(60)
    second = Slow(comparer, Selection(**FEW | {"images": "8", "correction": "none"}), "b")
    second.go.set()
    assert not second.reached.wait(0.5), "the model is one comparison's at a time"
    a, b = first.end(), second.end()
    grid = fc.grid(digits, 4)
    assert torch.equal(a.cached.images, alone(digits, fc.goc(fc.fora(2), 0.8).plan(grid), [3, 1], 4, 7))
    assert torch.equal(b.cached.images, alone(digits, fc.fora(2).plan(grid), [8], 4, 7))
    assert torch.equal(b.uncached.images, alone(digits, None, [8], 4, 7))


def within(seconds, true):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_asked_first_is_first(comparer):
    """They are told how many are before them; one who goes makes the others move up."""
    slow = []
    for number, who in enumerate("abcd"):
        slow.append(Slow(comparer, Selection(**FEW), who))
        within(60, lambda number=number: len(comparer._requests) == number + 1)
    a, b, c, d = slow
    within(60, lambda: (b.before, c.before, d.before) == ([1], [2], [3]))
    assert comparer.stop("b")
    assert b.end() is None
    within(60, lambda: (c.before, d.before) == ([2, 1], [3, 2]))
    assert a.end() is not None
    assert c.reached.wait(60)
    assert not d.reached.is_set()
    assert c.end() is not None
    assert d.end() is not None
    assert d.before == [3, 2, 1]


def test_more_than_may_wait_are_refused(comparer, monkeypatch):
    monkeypatch.setattr(comparer_module, "MAX_WAITING", 1)
    a = Slow(comparer, Selection(**FEW), "a")
    assert a.reached.wait(60)
    b = Slow(comparer, Selection(**FEW), "b")
    within(60, lambda: b.before)
    with pytest.raises(fc.errors.InputError, match="1 comparisons are waiting already"):
        comparer.compare(Selection(**FEW), "c")
    assert a.end() is not None
    assert b.end() is not None


def test_who_waits_can_be_stopped(comparer):
    first = Slow(comparer, Selection(**FEW), "a")
    assert first.reached.wait(60)
    second = Slow(comparer, Selection(**FEW), "b")
    while not comparer.stop("b"):
        pass
    assert second.end() is None
    assert not second.reached.is_set()
    assert first.end() is not None


def test_who_stopped_may_begin_again_at_once(comparer):
    """The new one waits until the old one has ended, and is not stopped with it."""
    first = Slow(comparer, Selection(**FEW), "me")
    assert first.reached.wait(60)
    assert comparer.stop("me")
    second = Slow(comparer, Selection(**FEW), "me")
    second.go.set()
    assert not second.reached.wait(0.3)
    assert first.end() is None
    assert second.end() is not None
