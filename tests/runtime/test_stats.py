"""What `session.stats` tells: counts, and a picture of the last generation with its MACs and seconds."""

import logging
import time
from dataclasses import asdict

import pytest
import torch
from support.pipelines import PAIR, PIPELINES, pipeline
from support.tiny import TIMES, TINY

import forecache as fc
from forecache.parts import schedules

T = len(TIMES)


def one_generation(name, method, **how):
    tiny = TINY[name]
    model = tiny.model()
    with fc.apply(model, method, num_steps=T, **how) as session:
        tiny.generate(model)
    return model, session


def test_a_new_session_has_no_last_generation():
    session = fc.apply(TINY["DiT"].model(), fc.fora(2))
    with session:
        assert session.stats.last is None
        assert "\n" not in str(session.stats)


@pytest.mark.parametrize("name", ["DiT", "PixArt", "FLUX.1", "SD3", "Wan 2.1", "Qwen-Image", "Sana", "LTX-Video"])
def test_macs_are_those_of_the_plan_on_the_calls_that_were_made(name):
    """Of every family, without inputs that the user gives: `plan.cost` is given the arguments of a call."""
    tiny = TINY[name]
    model, session = one_generation(name, fc.goc(fc.fora(3), 0.8))
    cost = session.plan.cost(model, inputs=tiny.inputs(torch.zeros(tiny.shape), 500))
    assert session.stats.last.macs == (cost.macs, cost.macs_uncached)
    assert f"{cost.speedup:.2f}x fewer MACs" in str(session.stats)


@pytest.mark.parametrize(
    ("method", "picture", "counts"),
    [
        (fc.fora(3), "#..#..#.", (3, 5)),
        (fc.taylorseer(fc.fora(4), 1), "#...#~~~", (2, 6)),
        (
            fc.Method("half", schedules.at(schedules.kind("mlp"), schedules.every(1), schedules.every(2))),
            "#5#5#5#5",
            (4, 0),
        ),
        (fc.selective(fc.fora(4), 0, 0.5), "#.o.#.o.", (2, 4)),
        (fc.fora(1), "########", (8, 0)),
    ],
    ids=["reuse", "forecast", "half of the sites", "some tokens", "everything"],
)
def test_a_picture_has_a_sign_a_call(method, picture, counts):
    _, session = one_generation("DiT", method)
    last = session.stats.last
    assert last.picture == picture
    assert (last.computed_calls, last.skipped_calls) == counts
    parts = T - sum(counts)
    assert (f", {parts} in part" in str(last)) == (parts > 0)


def test_the_picture_is_as_long_as_the_generation_has_come():
    tiny = TINY["DiT"]
    model = tiny.model()
    with fc.apply(model, fc.fora(2), num_steps=T) as session:
        tiny.generate(model)
        with torch.no_grad():
            for time_ in TIMES[:3]:
                tiny.predict(model, torch.zeros(tiny.shape), time_)
        assert session.stats.last.picture == "#.#"
        assert session.stats.generations == 2
        session.new_run()


def test_lanes_that_did_the_same_share_a_line():
    pipe = pipeline("WanPipeline", TINY["Wan 2.1"].model())
    how = PAIR | {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 4.0, "output_type": "latent"}
    with fc.apply(pipe, fc.fora(3)) as session:
        pipe(**how, num_inference_steps=6)
    assert session.stats.last.picture == "#..#.."
    assert str(session.stats.last).startswith("last: #..#.. in each of 2 lanes\n      4 computed, 8 skipped, ")


def test_seconds_are_those_of_the_generation_where_they_are_asked_for():
    before = time.perf_counter()
    _, session = one_generation("DiT", fc.fora(2), timed=True)
    assert 0 < session.stats.last.seconds < time.perf_counter() - before
    assert str(session.stats).endswith(" s")
    _, session = one_generation("DiT", fc.fora(2))
    assert session.stats.last.seconds is None


def test_macs_that_cannot_be_counted_are_left_out():
    """An argument that may hold data of its own is not kept."""
    tiny = TINY["SD3"]
    model = tiny.model()
    with fc.apply(model, fc.fora(2), num_steps=T) as session, torch.no_grad():
        for time_ in TIMES:
            model(**tiny.inputs(torch.zeros(tiny.shape), time_), joint_attention_kwargs={"thing": object()})
    assert session.stats.last.macs is None
    assert str(session.stats).endswith("4 computed, 4 skipped")


def test_a_loop_logs_nothing_more_than_what_was_chosen(caplog):
    pipe = pipeline("StableDiffusion3Pipeline", TINY["SD3"].model())
    how = PIPELINES["SD3"][1] | {"num_inference_steps": 6, "output_type": "latent"}
    with caplog.at_level(logging.DEBUG, "forecache"), fc.apply(pipe) as session:
        for _ in range(4):
            pipe(**how)
            str(session.stats)
    assert len([record for record in caplog.records if record.name == "forecache"]) == 1


def test_numbers_for_a_file():
    _, session = one_generation("DiT", fc.fora(2))
    counts = session.stats.counts()
    assert counts == {name: value for name, value in asdict(session.stats).items() if name != "last"}
    assert all(type(value) is int for value in counts.values())


def test_the_record_of_a_generation_holds_no_data():
    """What is kept for the picture has shapes alone."""
    tiny = TINY["DiT"]
    model = tiny.model()
    with fc.apply(model, fc.fora(2), num_steps=T) as session:
        tiny.generate(model)
    for stretch in session.stats.last.stretches:
        kept = [value for value in stretch.inputs.kwargs.values() if isinstance(value, torch.Tensor)]
        assert kept
        assert all(value.is_meta for value in kept)
