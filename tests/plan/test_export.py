"""Schedules for other engines: what they hold, that they run as the plan does, and what is refused."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from support.small import noise, small_dit

import forecache as fc
from forecache.plan.export import exported
from forecache.plan.sampler import Sampler

T = 10
TIMES = [900 - 80 * step for step in range(T)]
REQUEST = {
    "pipeline": "QwenImagePipeline",
    "checkpoint": "0123abcd",
    "num_inference_steps": T,
    "height": 1024,
    "width": 768,
    "guidance_scale": 4,
    "do_classifier_free_guidance": True,
    "quality": "standard",
    "attention_backend": None,
    "dtype": "bfloat16",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "scheduler_config_sha256": "0" * 64,
    "timesteps": [float(time) for time in TIMES],
    "sigmas": [1 - step / T for step in range(T + 1)],
}


def stack(method, of="residual", steps=T):
    return method.plan(fc.grid(small_dit(), steps, level="stack", of=of))


def line(base):
    return fc.taylorseer(fc.warmup(base, 4), 1)


def by_hand(model, plan, first=0):
    """A run in which the blocks from ``first`` on are one feature, estimated by the weights of the plan's stack.

    first: number of first blocks that always run, after which the feature is what the others add; 0 for the output of
        the last block.
    """
    blocks, kept, now = model.transformer_blocks, {}, SimpleNamespace(step=0, h=None)
    own = [block.forward for block in blocks]

    def forward(number):
        def run(h, *args, **kwargs):
            reads = plan.rows[0][now.step].reads
            if number < first or not reads:
                if number == first:
                    now.h = h
                h = own[number](h, *args, **kwargs)
                if number == len(blocks) - 1:
                    kept[now.step] = h - now.h if first else h
                return h
            if number < len(blocks) - 1:
                now.h = h if number == first else now.h
                return h
            total = sum(weight * kept[step] for step, weight in reads)
            kept[now.step] = total
            return now.h + total if first else total

        return run

    outputs = []
    for number, block in enumerate(blocks):
        block.forward = forward(number)
    with torch.no_grad():
        for now.step in range(plan.num_steps):
            outputs.append(call(model, now.step))
    for block in blocks:
        del block.forward
    return outputs


def call(model, step):
    return model(noise(2, seed=step), timestep=torch.full((2,), TIMES[step]), class_labels=torch.tensor([1, 2])).sample


# ---- a list of steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [fc.fora(3), fc.explicit(pattern="##.#..#..#")])
def test_a_list_of_steps_is_the_plan_again(method):
    plan = method.plan(fc.grid(small_dit(), T))
    again = fc.explicit(pattern=json.loads(exported(plan, "steps"))).plan(plan.grid)
    assert again.rows == plan.rows


# ---- SGLang's DPCache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda request: request, lambda request: {"request": request, "schema": "x"}])
def test_a_dpcache_schedule_is_what_its_reader_asks_for_and_means_the_plan(wrap):
    plan = stack(line(fc.fora(3)), "output")
    document = json.loads(exported(plan, "sglang-dpcache", request=wrap(REQUEST)))
    full, leading = document["full_steps"], document["mandatory_full_steps"]
    # the checks of its reader, as its source has them
    assert document["schema"] == "sglang-dpcache-schedule-v2"
    assert (document["predictor"]["name"], document["predictor"]["order"]) == ("final-feature-linear-extrapolation", 1)
    assert document["request"] == REQUEST
    assert full == sorted(set(full))
    assert document["num_full_steps"] == len(full)
    assert max(full) < T
    assert leading == list(range(len(leading))) == full[: len(leading)]
    assert len(leading) >= 2
    assert math.isfinite(document["calibrated_cost"])
    assert document["calibration"]["num_samples"] == 0
    assert set(document["calibration"]["manifest_sha256"]) <= set("0123456789abcdef")
    assert document["source_commit"]
    # its predictor over these steps gives the weights of the plan
    assert full == [step for step in range(T) if plan.rows[0][step].computed]
    for step in set(range(T)) - set(full):
        i, j = [at for at in full if at < step][-2:]
        slope = (step - j) / (j - i)
        assert dict(plan.rows[0][step].reads) == pytest.approx({j: 1 + slope, i: -slope})
    # and the plan runs as one that keeps the output of the last block does
    model = small_dit()
    wanted = by_hand(model, plan)
    with fc.apply(model, plan), torch.no_grad():
        for step in range(T):
            torch.testing.assert_close(call(model, step), wanted[step], rtol=1e-4, atol=1e-5)


# ---- cache-dit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [fc.fora(3), line(fc.fora(3)), fc.taylorseer(fc.warmup(fc.fora(3), 5), 2)],
    ids=["reuse", "order 1", "order 2"],
)
def test_cache_dit_skips_the_steps_of_the_plan_and_estimates_by_its_weights(method, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "CACHE_DIT_LOG_LEVEL", "ERROR")
    cache_dit = pytest.importorskip("cache_dit")
    plan = stack(method)
    path = tmp_path / "cache.yaml"
    path.write_text(exported(plan, "cache-dit"))
    settings = yaml.safe_load(path.read_text())["cache_config"]
    assert settings["steps_computation_mask"] == [int(cell.computed) for cell in plan.rows[0]]
    options = {name: value for name, value in cache_dit.load_configs(str(path)).items() if value is not None}
    wanted = by_hand(small_dit(), plan, first=1)
    model, ran = small_dit(), []
    for number, block in enumerate(model.transformer_blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    cache_dit.enable_cache(model, **options)
    for _ in range(2):  # its calibrator counts from one step before, the first time
        with torch.no_grad():
            for step in range(T):
                ran.clear()
                torch.testing.assert_close(call(model, step), wanted[step], rtol=1e-4, atol=1e-5)
                assert ran == ([0, 1, 2] if plan.rows[0][step].computed else [0])
        cache_dit.refresh_context(model, **options)


# ---- what is refused ------------------------------------------------------------------------------------------------

DDIM = Sampler(json.dumps({"class": "DDIMScheduler"}), 8)
MIXED = fc.Method("two schedules", fc.parts.schedules.at(fc.parts.schedules.kind("mlp"), fc.parts.schedules.every(2),
                                                         fc.parts.schedules.every(3)))  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "format", "options", "words"),
    [
        (lambda: stack(fc.fora(2)), "onnx", {}, "steps, cache-dit, sglang-dpcache, not for 'onnx'"),
        (lambda: stack(fc.fora(2)), "steps", {"request": REQUEST}, "request= is for sglang-dpcache"),
        (lambda: MIXED.plan(fc.grid(small_dit(), T)), "steps", {}, r"different steps \(2 schedules\)"),
        (lambda: stack(fc.goc(fc.fora(2), 0.8)), "steps", {}, r"step 3, \+1.8 x step 2 -0.8 x step 0.*--schedule-only"),
        (lambda: fc.selective(fc.fora(4), share=0.4, importance="random").plan(fc.grid(small_dit(), T)), "steps", {},
         "no format for other engines knows tokens"),
        (lambda: fc.fora(2).plan(fc.grid(small_dit(), T)), "cache-dit", {}, "on 6 sites.*level='stack', of='residual'"),
        (lambda: stack(fc.fora(2), "output"), "cache-dit", {}, "of='residual'"),
        (lambda: stack(fc.goc(fc.fora(2), 0.8)), "cache-dit", {}, "cannot say how the plan estimates step 3"),
        (lambda: stack(fc.taylorseer(fc.fora(2), 1)), "cache-dit", {}, r"4 steps have to be computed first.*warmup"),
        (lambda: stack(fc.warmup(fc.fora(2), 2)), "sglang-dpcache", {}, "of='output'"),
        (lambda: stack(fc.fora(2), "output"), "sglang-dpcache", {}, r"steps \[0, 2, 4, 6\] first.*warmup"),
        (lambda: stack(fc.warmup(fc.fora(2), 2), "output"), "sglang-dpcache", {}, "takes a straight line, "),
        (lambda: stack(line(fc.fora(2)), "output"), "sglang-dpcache", {}, "--request FILE"),
        (lambda: stack(line(fc.fora(2)), "output"), "sglang-dpcache", {"request": {"height": 8}}, "it has .'height'."),
        (lambda: stack(line(fc.fora(2)), "output", 8), "sglang-dpcache", {"request": REQUEST}, "has 8 steps"),
        (lambda: stack(line(fc.fora(2)), "output"), "sglang-dpcache", {"request": REQUEST | {"height": True}},
         "height of a DPCache request cannot be True"),
        (lambda: stack(line(fc.fora(2)), "output"), "sglang-dpcache", {"request": REQUEST | {"dtype": "float32"}},
         "bfloat16 alone"),
        (lambda: stack(fc.easycache(0.1)), "steps", {}, r"decides while it runs.*session.decided\(\)"),
        (lambda: stack(fc.easycache(0.1)), "steps", {"schedule_only": True}, r"decides while it runs"),
        (lambda: replace(stack(fc.fora(2)), sampler=DDIM), "steps", {}, "brings a DDIMScheduler of 8 steps"),
    ],
)  # fmt: skip
def test_a_plan_that_says_more_than_a_format_can_is_refused(plan, format, options, words):
    with pytest.raises(fc.errors.PlanError, match=words):
        exported(plan(), format, **options)


def test_what_a_run_decided_is_a_list_of_steps():
    model = small_dit()
    with fc.apply(model, stack(fc.easycache(5.0))) as session, torch.no_grad():
        for step in range(T):
            call(model, step)
    decided = session.decided()
    assert 0 < decided.picture().count("#") < T
    assert json.loads(exported(decided, "steps")) == [int(sign == "#") for sign in decided.picture()]


def test_the_steps_alone_of_a_plan_that_says_more():
    plan = fc.goc(fc.warmup(fc.fora(3), 2), 0.8).plan(fc.grid(small_dit(), T))
    mask = [1, 1, 0, 1, 0, 0, 1, 0, 0, 1]
    assert json.loads(exported(plan, "steps", schedule_only=True)) == mask
    settings = yaml.safe_load(exported(plan, "cache-dit", schedule_only=True))["cache_config"]
    assert settings["steps_computation_mask"] == mask
    assert "enable_taylorseer" not in settings
    document = json.loads(exported(plan, "sglang-dpcache", request=REQUEST, schedule_only=True))
    assert document["full_steps"] == [step for step in range(T) if mask[step]]


def test_the_command_writes_the_file(forecache, tmp_path):
    path, request = tmp_path / "plan.json", tmp_path / "schedule.json"
    stack(line(fc.fora(3)), "output").save(path)
    request.write_text(json.dumps({"request": REQUEST}))
    words = ["export", path, "--format", "sglang-dpcache", "--request", request, "--out", tmp_path / "out.json"]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert out == f"Wrote {tmp_path / 'out.json'}.\n"
    assert json.loads((tmp_path / "out.json").read_text())["full_steps"] == [0, 1, 2, 3, 6, 9]
    code, out, _ = forecache("export", path, "--format", "steps", "--schedule-only")
    assert json.loads(out) == [1, 1, 1, 1, 0, 0, 1, 0, 0, 1]
    code, out, err = forecache("export", path, "--format", "cache-dit")
    assert code == 1
    assert out == ""
    assert "of='residual'" in err
    request.write_text("[]")
    code, _, err = forecache(*words)
    assert code == 1
    assert "it is no object" in err
