"""Requests whose steps interleave on one model, as an engine makes them: each is as it would be alone."""

import itertools
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
import torch
from support.pipelines import PIPELINES, pipeline
from support.small import noise, small_dit
from support.tiny import TINY, normal
from support.traces import everything

import forecache as fc

METHOD = fc.goc(fc.fora(3), 0.8, history="computed")
LANES = {"cond": 3, "uncond": 10}
"""The label of every lane's call."""


class Sampler:
    """A run as a generator: it yields before every model call, so that runs can take turns."""

    def __init__(self, model, key, steps, seed, around):
        self.model, self.key, self.steps, self.around = model, key, steps, around
        self.x = noise(1, seed=seed)
        self.outputs = []

    def __iter__(self):
        for step in range(self.steps):
            outputs = {}
            for lane, label in LANES.items():
                yield step
                with self.around(self.key, lane), torch.no_grad():
                    t = torch.tensor([900 - 800 * step // self.steps])
                    outputs[lane] = self.model(self.x, timestep=t, class_labels=torch.tensor([label])).sample[:, :4]
            self.x = self.x - 0.1 * (outputs["uncond"] + 2 * (outputs["cond"] - outputs["uncond"]))
            self.outputs.append(self.x)


def alone(steps, seed, method=METHOD):
    """The same run in a session of its own, without a request."""
    model = small_dit()
    with fc.apply(model, method, num_steps=steps) as session:
        sampler = Sampler(model, None, steps, seed, lambda key, lane: session.lane(lane))
        for _ in sampler:
            pass
    return sampler.outputs


# ---- interleaved ----------------------------------------------------------------------------------------------------


def test_three_interleaved_requests_and_a_cancelled_one_are_their_single_runs():
    lengths = {"a": 9, "b": 6, "c": 12, "gone": 8}
    model = small_dit()
    before = everything(model)
    with fc.apply(model, METHOD, only_requests=True) as session:
        requests = session.requests
        runs = {key: Sampler(model, key, steps, seed, requests.call) for seed, (key, steps) in
                enumerate(lengths.items())}  # fmt: skip
        turns = {key: iter(run) for key, run in runs.items()}
        for turn in itertools.count():
            for key in list(turns):
                if turn < 3 * list(lengths).index(key):
                    continue  # they do not begin together
                if turn == 3 * list(lengths).index(key):
                    requests.begin(key, lengths[key])
                if key == "gone" and next(turns[key]) == 4:
                    requests.abort(key)
                    del turns[key]
                elif key != "gone" and next(turns[key], None) is None:
                    requests.end(key)
                    del turns[key]
            if not turns:
                break
        assert requests.keys == []
        assert requests.held_bytes == 0
        assert (session.stats.generations, session.stats.calls) == (4, 2 * (9 + 6 + 12 + 4))
        assert session.stats.skipped > session.stats.computed
    assert everything(model) == before
    for seed, key in enumerate(lengths):
        wanted = alone(lengths[key], seed)
        assert len(runs[key].outputs) == (4 if key == "gone" else lengths[key])
        assert all(map(torch.equal, runs[key].outputs, wanted))


def test_sessions_for_requests_share_a_model_and_its_runs_follow_their_own_plan():
    methods, model = {"goc": METHOD, "fora": fc.fora(2)}, small_dit()
    before = everything(model)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(fc.apply(model, method, only_requests=True)) for name, method in methods.items()
        }
        runs = {name: Sampler(model, name, 8, 0, session.requests.call) for name, session in sessions.items()}
        for name, session in sessions.items():
            session.requests.begin(name, 8)
        for _ in zip(*runs.values(), strict=True):
            pass
        for name, session in sessions.items():
            session.requests.end(name)
            assert (session.stats.generations, session.stats.calls) == (1, 16)
        with pytest.raises(fc.errors.AlreadyAppliedError, match="already samples by a plan"), fc.apply(model, METHOD):
            pass
    assert everything(model) == before
    for name, run in runs.items():
        assert all(map(torch.equal, run.outputs, alone(8, 0, methods[name]))), name


def test_interleaved_requests_decide_while_they_run_each_for_itself():
    method, lengths, model = fc.easycache(2.0), {"a": 9, "b": 7}, small_dit()
    with fc.apply(model, method, only_requests=True) as session:
        runs = {}
        for seed, (key, steps) in enumerate(lengths.items()):
            session.requests.begin(key, steps)
            runs[key] = Sampler(model, key, steps, seed, session.requests.call)
        turns = {key: iter(run) for key, run in runs.items()}
        while turns:
            for key in list(turns):
                if next(turns[key], None) is None:
                    session.requests.end(key)
                    del turns[key]
        assert session.stats.skipped > 0
    for seed, (key, steps) in enumerate(lengths.items()):
        assert all(map(torch.equal, runs[key].outputs, alone(steps, seed, method)))


def test_requests_of_threads_are_their_single_runs():
    model, found = small_dit(), {}
    with fc.apply(model, METHOD, only_requests=True) as session:

        def sample(key):
            session.requests.begin(key, 6)
            sampler = Sampler(model, key, 6, key, session.requests.call)
            for _ in sampler:
                pass
            session.requests.end(key)
            found[key] = sampler.outputs

        threads = [threading.Thread(target=sample, args=(key,)) for key in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for key in range(3):
        assert all(map(torch.equal, found[key], alone(6, key)))


# ---- steps that a host knows ----------------------------------------------------------------------------------------


def call(model, step, label=1):
    with torch.no_grad():
        return model(noise(1, seed=step), timestep=torch.tensor([900 - 50 * step]), class_labels=torch.tensor([label]))[
            0
        ]


def test_steps_that_are_left_out_are_followed_by_a_computed_one():
    """As where guidance begins late, or a sampler starts in the middle: nothing of before is read."""
    model, method = small_dit(), fc.fora(4)
    with fc.apply(model, method, only_requests=True) as session:
        session.requests.begin("a", 12)
        outputs = {}
        for step in (0, 1, 2, 6, 7, 8, 9, 11):
            with session.requests.call("a", step=step):
                outputs[step] = call(model, step)
        session.requests.end("a")
        assert session.stats.last.computed_calls == 4  # 0, 6 and 11 after a gap, 8 by the plan
    for step, output in outputs.items():
        assert torch.equal(output, call(model, step)) == (step in (0, 6, 8, 11))


def test_other_calls_run_as_they_are_and_an_error_ends_a_history():
    model = small_dit()
    bare = [call(model, step) for step in range(4)]
    with fc.apply(model, fc.fora(4), only_requests=True) as session:
        session.requests.begin("a", 4)
        with session.requests.call("a"):
            call(model, 0)
        assert torch.equal(call(model, 1), bare[1])
        with pytest.raises(TypeError), session.requests.call("a"):
            model(noise(1), timestep=torch.tensor([1]), class_labels=torch.tensor([1]), unknown=1)
        with session.requests.call("a", step=1):
            assert torch.equal(call(model, 1), bare[1])  # nothing is left to reuse
        with session.requests.call("a"):
            assert not torch.equal(call(model, 2), bare[2])
        session.requests.abort("a")
        session.requests.abort("a")
        assert session.requests.held_bytes == 0


def test_a_request_of_another_shape_in_the_middle_starts_afresh():
    model = small_dit()
    with fc.apply(model, fc.fora(4), only_requests=True) as session, torch.no_grad():
        session.requests.begin("a", 3)
        for step, count in enumerate((1, 2, 2)):
            x, t, y = noise(count), torch.full((count,), 900 - step), torch.ones(count, dtype=torch.long)
            with session.requests.call("a"):
                output = model(x, timestep=t, class_labels=y).sample
            assert output.shape[0] == count
        session.requests.end("a")
        assert session.stats.last.computed_calls == 2


def test_requests_alone_leave_their_pipeline_as_it_is_and_a_scheduler_announces_nothing_to_them():
    kind, how = PIPELINES["FLUX.1"]
    model = TINY["FLUX.1"].model()
    pipe = pipeline(kind, model)

    def latents():
        return pipe(**how, num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(0))[0]

    def outputs(session):
        session.requests.begin("a", 4)
        found = []
        for step in range(4):
            with session.requests.call("a"), torch.no_grad():
                pipe.scheduler.set_timesteps(2 + step)  # as an engine may that shares one among its requests
                found.append(TINY["FLUX.1"].predict(model, normal(*TINY["FLUX.1"].shape, seed=step), 900 - 200 * step))
        session.requests.end("a")
        return torch.stack(found)

    bare = latents()
    with fc.apply(model, fc.fora(2), only_requests=True) as session:
        wanted = outputs(session)
    with fc.apply(pipe, fc.fora(2), only_requests=True) as session:
        assert torch.equal(latents(), bare)
        assert torch.equal(outputs(session), wanted)
        assert (session.stats.generations, session.stats.last.skipped_calls) == (1, 2)
        with fc.apply(pipe, fc.fora(2)):
            assert not torch.equal(latents(), bare)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_a_host_says_wrongly_is_refused():
    model = small_dit()
    with fc.apply(model, fc.fora(2), only_requests=True) as session:
        requests = session.requests
        for wrong in ({}, {"num_steps": 0}, {"num_steps": 3, "timesteps": (1.0,)}):
            with pytest.raises(fc.errors.StepCountError, match="number of its model calls"):
                requests.begin("a", **wrong)
        requests.begin("a", timesteps=(900.0, 850.0, 800.0))
        with pytest.raises(fc.errors.RunError, match="'a' is in progress"):
            requests.begin("a", 2)
        with pytest.raises(fc.errors.RunError, match="no request 'b'"), requests.call("b"):
            pass
        with pytest.raises(fc.errors.RunError, match="come one by one"), requests.call("a"), requests.call("a"):
            pass
        with requests.call("a"):
            call(model, 0)
        wrong = pytest.raises(fc.errors.StepCountError, match=r"goes on with step 1 of 3.*for step 0")
        with wrong, requests.call("a", step=0):
            call(model, 0)
        for step in (1, 2):
            with requests.call("a", step=step):
                call(model, step)
        with pytest.raises(fc.errors.StepCountError, match="goes on with step 3 of 3"), requests.call("a"):
            call(model, 3)
        requests.begin("b", 4)
        with requests.call("b"):
            call(model, 0)
        with pytest.raises(fc.errors.StepCountError, match="ended after 1 of 4"):
            requests.end("b")
        assert requests.keys == ["a"]
        requests.begin("c", 4)
        with requests.call("c"):
            requests.abort("c")  # as another thread does
            call(model, 0)
            assert requests.keys == ["a"]
        assert requests.held_bytes == 0
    assert requests.keys == []


PROGRAM = """
import sys, torch, forecache as fc
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return x + torch.tanh(self.linear(x))
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(4))
    def forward(self, x, t):
        x = x * t
        for block in self.blocks:
            x = block(x)
        return x
model = Model()
with fc.apply(model, fc.fora(2), level="stack", only_requests=True) as session, torch.no_grad():
    session.requests.begin("a", 4)
    for step in range(4):
        with session.requests.call("a"):
            model(torch.ones(1, 3, 8), 1 - step / 4)
    session.requests.end("a")
print(session.stats.skipped, [name for name in ("diffusers", "transformers") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_host_with_a_model_of_its_own_needs_no_diffusers():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.returncode) == ("2 []\n", 0), done.stderr
