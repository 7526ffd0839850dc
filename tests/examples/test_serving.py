"""The HTTP service of examples/serve: right images, limits, a full queue, clients that leave, metrics, its end."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import forecache as fc
from forecache.sampling.loop import sample, to_images
from forecache.zoo import load_digits

ROOT = Path(__file__).parent.parent.parent
SERVE = ROOT / "examples" / "serve"
sys.path.insert(0, str(SERVE))
import app as service  # noqa: E402
import load_test  # noqa: E402
import model as served  # noqa: E402
import worker as working  # noqa: E402

STEPS = 6
ORDER = {"digits": "31", "plan": "goc-50", "steps": STEPS, "guidance": 1.5, "seed": 7}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture
def start(digits):
    """Starts the app in this process: a client of it."""
    with contextlib.ExitStack() as stack:

        def make(**settings):
            return stack.enter_context(TestClient(service.make_app(service.Settings(**settings), digits)))

        yield make
    assert all("forward" not in vars(module) for module in digits.transformer.modules())


def post(client, **changes):
    order = ORDER | changes
    return client.post("/v1/images", json={name: value for name, value in order.items() if value is not None})


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def expected(digits, method=None, labels=(3, 1), steps=STEPS, guidance=1.5, seed=7):
    """What the library's own loop gives in a session of its own, side by side in 8 bits."""
    plan = method and method.plan(fc.grid(digits, steps))
    with fc.apply(digits, plan) if plan else contextlib.nullcontext():
        how = {"num_steps": steps, "guidance": guidance, "seed": seed}
        images = to_images(sample(digits.transformer, digits.scheduler, labels, **how))
    return np.concatenate([(image[0] * 255).round().byte().numpy() for image in images], 1)


def figures(client):
    """The samples of /metrics: (name, labels) to value."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(each.name, *sorted(each.labels.values())): each.value for family in families for each in family.samples}


def outcomes(client):
    found = figures(client).items()
    return {key[1]: int(value) for key, value in found if key[0] == "forecache_requests_total" and value}


class Held:
    """Holds the worker up in its first model call, until it is let go."""

    def __init__(self, digits):
        self.reached, self.go = threading.Event(), threading.Event()
        self.calls = 0
        self._hook = digits.transformer.register_forward_pre_hook(self._wait)

    def _wait(self, *_):
        self.calls += 1
        self.reached.set()
        assert self.go.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go.set()
        self._hook.remove()


@contextlib.contextmanager
def in_background(*calls):
    """Runs requests in threads: their answers, in a list that is whole after the block."""
    answers = [None] * len(calls)
    threads = [threading.Thread(target=lambda at=at, call=call: answers.__setitem__(at, call()))
               for at, call in enumerate(calls)]  # fmt: skip
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(30)


def until(holds):
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


# ---- images -------------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_library_in_any_order_of_plans_lengths_and_guidance(start, digits):
    requests = [
        ("goc-50", served.METHODS["goc-50"], "31", 6, 1.5),
        ("none", None, "31", 6, 1.5),
        ("taylor-67", served.METHODS["taylor-67"], "8", 9, 3.0),
        ("goc-50", served.METHODS["goc-50"], "31", 5, 1.0),
        ("fora-50", served.METHODS["fora-50"], "2", 6, 1.0),
    ]
    wanted = [
        expected(digits, method, tuple(map(int, labels)), steps, guidance)
        for _, method, labels, steps, guidance in requests
    ]
    client = start()
    for _ in range(2):
        for (plan, method, labels, steps, guidance), image in zip(requests, wanted, strict=True):
            answer = post(client, plan=plan, digits=labels, steps=steps, guidance=guidance)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert np.array_equal(pixels(answer.content), image)
            assert (answer.headers["x-plan"], answer.headers["x-seed"]) == (plan, "7")
            computed = method.plan(fc.grid(digits, steps)).computed_share if method else 1.0
            assert float(answer.headers["x-computed-share"]) == pytest.approx(computed, abs=1e-4)
            assert float(answer.headers["x-seconds"]) > 0


def test_a_seed_that_the_server_drew_is_told_and_gives_the_image_again(start):
    client = start()
    first, other = (post(client, seed=None, plan="fora-50", steps=2) for _ in range(2))
    again = post(client, seed=int(first.headers["x-seed"]), plan="fora-50", steps=2)
    assert again.content == first.content
    assert other.headers["x-seed"] != first.headers["x-seed"]


def test_a_plan_file_is_loaded_at_the_start_and_asked_for_by_name(start, digits, tmp_path):
    method = fc.goc(fc.fora(3), 0.5)
    method.plan(fc.grid(digits, STEPS)).save(tmp_path / "mine.json")
    stats = fc.calibrate(digits, [1, 2], num_steps=STEPS)
    fc.eoc(fc.fora(2), stats).plan(fc.grid(digits, STEPS)).save(tmp_path / "calibrated.json")
    wanted = expected(digits, method)
    client = start(plans={"mine": tmp_path / "mine.json", "calibrated": tmp_path / "calibrated.json"})
    assert np.array_equal(pixels(post(client, plan="mine").content), wanted)
    assert list(client.get("/v1/plans").json()) == ["none", *served.METHODS, "mine", "calibrated"]
    assert post(client, plan="calibrated").status_code == 200
    other = post(client, plan="calibrated", steps=STEPS + 1)
    assert other.status_code == 422
    assert "calibrated for 6 steps and cannot be stretched to 7" in other.json()["detail"]
    assert np.array_equal(pixels(post(client, plan="mine").content), wanted)


def test_a_plan_of_another_model_stops_the_start(digits, dit, tmp_path):
    fc.fora(2).plan(fc.grid(dit, STEPS)).save(tmp_path / "other.json")
    app = service.make_app(service.Settings(plans={"other": tmp_path / "other.json"}), digits)
    with pytest.raises(fc.errors.PlanMismatchError), TestClient(app):
        pass
    assert all("forward" not in vars(module) for module in digits.transformer.modules())


# ---- what is refused ----------------------------------------------------------------------------------------------

WRONG = [
    {"digits": ""}, {"digits": "123456789"}, {"digits": "3a"}, {"digits": "٣"}, {"digits": "3\n"}, {"digits": 3},
    {"steps": 0}, {"steps": 51}, {"steps": 2.5}, {"steps": "6"}, {"steps": True},
    {"guidance": 0.9}, {"guidance": 10.1}, {"guidance": "1"},
    {"seed": -1}, {"seed": 2**63}, {"timeout": 0.0}, {"timeout": 1e9}, {"more": 1},
    {"plan": "goc"}, {"plan": "../plan.json"}, {"plan": "/etc/passwd"}, {"plan": "x" * 65},
]  # fmt: skip


def test_wrong_requests_are_refused_with_the_reason_and_nothing_runs(start, digits):
    client = start()
    with Held(digits) as held:
        for wrong in WRONG:
            answer = post(client, **wrong)
            assert answer.status_code == 422, wrong
            name = next(iter(wrong))
            assert name in str(answer.json()["detail"]), wrong
        assert "there are none, fora-50, goc-50" in post(client, plan="goc").json()["detail"]
        for body in (b"", b"[]", b"{", b'{"digits": "3", "guidance": NaN}', b"\xff\xfe"):
            assert client.post("/v1/images", content=body).status_code == 422, body
        assert client.post("/v1/images", content=b" " * 5000).status_code == 413
        assert held.calls == 0
    assert client.get("/v1/images").status_code == 405
    assert outcomes(client) == {"invalid": len(WRONG) + 7}


def test_a_full_queue_says_when_to_come_again(start, digits):
    client = start(queue=2)
    with Held(digits) as held, in_background(lambda: post(client)) as first:
        until(held.reached.is_set)
        with in_background(*[lambda: post(client)] * 2) as others:
            until(lambda: client.app.state.worker.waiting == 2)
            assert figures(client)["forecache_queue_depth",] == 2
            refused = post(client)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "full" in refused.json()["detail"]
            held.go.set()
    assert len({answer.content for answer in first + others}) == 1
    assert outcomes(client) == {"ok": 3, "full": 1}
    assert figures(client)["forecache_queue_depth",] == 0


def test_time_that_is_over_ends_a_request_that_runs_and_one_that_waits(start, digits):
    wanted = expected(digits, served.METHODS["goc-50"])
    client = start()
    with Held(digits) as held:
        with in_background(lambda: post(client, timeout=0.3), lambda: post(client, timeout=0.2)) as answers:
            until(held.reached.is_set)
        assert [answer.status_code for answer in answers] == [504, 504]
        assert "not finished within" in answers[0].json()["detail"]
        assert client.app.state.worker.waiting == 0
        assert held.calls == 1
    assert np.array_equal(pixels(post(client).content), wanted)
    assert outcomes(client) == {"timeout": 2, "ok": 1}


def test_a_model_that_fails_is_told_without_its_words_and_the_next_request_is_right(start, digits, caplog):
    wanted = expected(digits, served.METHODS["goc-50"])
    client = start()
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("secret")

    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(digits.transformer.register_forward_pre_hook(fail).remove)
        answer = post(client)
    assert (answer.status_code, answer.json()) == (500, {"detail": "The model failed; the log says why."})
    assert "secret" in caplog.text
    assert np.array_equal(pixels(post(client).content), wanted)
    assert outcomes(client) == {"error": 1, "ok": 1}


# ---- clients that leave -------------------------------------------------------------------------------------------


def leaving(app, order, leave):
    """A request whose client goes when ``leave`` is set."""
    sent = []

    async def request():
        async def receive():
            if not asked:
                asked.append(1)
                return {"type": "http.request", "body": json.dumps(order).encode(), "more_body": False}
            await asyncio.to_thread(leave.wait, 30)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        asked = []
        scope = {"type": "http", "method": "POST", "path": "/v1/images", "raw_path": b"/v1/images", "headers": []}
        scope |= {"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}, "scheme": "http"}
        await app(scope | {"server": ("test", 80), "client": ("test", 1), "root_path": ""}, receive, send)

    asyncio.run(request())
    return sent[0]["status"]


def kept(app):
    """The requests that any session holds, and their bytes."""
    requests = [session.requests for session in app.state.plans.sessions.values()]
    return [key for each in requests for key in each.keys] + [each.held_bytes for each in requests if each.held_bytes]


def test_a_generation_stops_within_a_step_of_its_clients_leaving_and_leaves_nothing(start, digits):
    wanted = expected(digits, served.METHODS["goc-50"])
    client = start()
    leave = threading.Event()
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == 3:
            leave.set()
            until(lambda: outcomes(client).get("cancelled"))

    hook = digits.transformer.register_forward_pre_hook(count)
    status = leaving(client.app, ORDER | {"steps": 20}, leave)
    until(lambda: not client.app.state.worker.busy)
    hook.remove()
    assert (status, len(calls)) == (499, 3)
    assert kept(client.app) == []
    assert np.array_equal(pixels(post(client).content), wanted)
    assert outcomes(client) == {"cancelled": 1, "ok": 1}


def test_a_client_that_leaves_the_queue_gives_its_place_free(start, digits):
    client = start(queue=1)
    leave = threading.Event()
    with Held(digits) as held, in_background(lambda: post(client)) as answers:
        until(held.reached.is_set)
        with in_background(lambda: leaving(client.app, ORDER, leave)) as left:
            until(lambda: client.app.state.worker.waiting == 1)
            assert post(client).status_code == 503
            leave.set()
        assert left == [499]
        assert client.app.state.worker.waiting == 0
        held.go.set()
    assert answers[0].status_code == 200
    assert held.calls == STEPS


# ---- metrics, health, the end -------------------------------------------------------------------------------------


def test_a_request_that_leaves_what_was_calibrated_is_computed_and_counted(start, digits):
    """At a limit far below what is normal, from the third step on; without a limit nothing is measured."""
    client = start(max_drift=0.01)
    answer = post(client, plan="fora-50")
    assert answer.headers["x-computed-share"] == f"{5 / 6:.4f}"
    assert figures(client)["forecache_drifted_total", "fora-50"] == 1
    assert figures(client)["forecache_drifted_total", "goc-50"] == 0


def test_metrics_count_what_was_done(start, digits):
    client = start()
    for plan in ("fora-50", "fora-50", "none"):
        post(client, plan=plan)
    found = figures(client)
    grid = fc.grid(digits, STEPS)
    half = len(grid.sites) * STEPS // 2
    assert found["forecache_requests_total", "ok"] == 3
    assert found["forecache_latency_seconds_count", "fora-50"] == 2
    assert found["forecache_latency_seconds_sum", "fora-50"] > 0
    assert found["forecache_features_total", "computed", "fora-50"] == 2 * half
    assert found["forecache_features_total", "fora-50", "skipped"] == 2 * half
    assert found["forecache_computed_share", "fora-50"] == 0.5
    assert found["forecache_computed_share", "none"] == 1
    cost = served.METHODS["fora-50"].plan(grid).cost(digits, batch_size=2)
    assert found["forecache_cache_peak_bytes", "fora-50"] == cost.cache_bytes
    assert found["forecache_cache_peak_bytes", "goc-50"] == 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_a_server_that_closes_finishes_what_it_took_and_refuses_what_comes(start, digits):
    client = start()
    assert client.get("/healthz").json() == {"status": "ok"}
    with Held(digits) as held, in_background(*[lambda: post(client)] * 2) as answers:
        until(lambda: held.reached.is_set() and client.app.state.worker.waiting == 1)
        client.app.state.worker.closing = True
        assert (client.get("/healthz").status_code, post(client).status_code) == (503, 503)
        held.go.set()
        client.app.state.worker.close()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert outcomes(client) == {"ok": 2, "closing": 1}


def jobs_of(worker, count):
    jobs = [working.Job("none", (1,), 3, 1.0, seed) for seed in range(count)]
    for job in jobs:
        worker.submit(job)
    return jobs


@pytest.mark.parametrize("together", [1, 3])
def test_jobs_begin_in_their_order_and_take_turns(together):
    made, go = [], threading.Event()

    def generate(plan, labels, steps, guidance, seed):
        assert go.wait(30)
        for step in range(steps):
            made.append((seed, step))
            yield
        return served.Picture(b"", 1.0)

    worker = working.Worker(generate, 20, together)
    jobs = jobs_of(worker, 6)
    go.set()
    worker.close()
    assert all(job.result.result().picture.computed == 1 for job in jobs)
    one_by_one = [(seed, step) for seed in range(6) for step in range(3)]
    assert sorted(made) == one_by_one
    assert [seed for seed, step in made if step == 0] == list(range(6))
    assert (made == one_by_one) == (together == 1)
    running = [sum(other in made[:at] and (other[0], 2) not in made[:at] for other in ((s, 0) for s in range(6)))
               for at in range(len(made))]  # fmt: skip
    assert max(running) == together
    with pytest.raises(working.ClosedError):
        worker.submit(jobs[0])


def test_one_of_the_jobs_that_take_turns_fails_and_one_is_stopped():
    ended = []

    def generate(plan, labels, steps, guidance, seed):
        try:
            for step in range(steps):
                if (seed, step) == (1, 1):
                    raise RuntimeError("no")
                if (seed, step) == (0, 1):
                    jobs[2].stopped.set()
                yield
        finally:
            ended.append(seed)
        return served.Picture(b"", seed)

    worker = working.Worker(generate, 20, 4)
    with worker._change:
        jobs = [working.Job("none", (1,), 3, 1.0, seed) for seed in range(4)]
        worker._waiting.extend(jobs)
        worker._change.notify()
    worker.close()
    assert [jobs[seed].result.result().picture.computed for seed in (0, 3)] == [0, 3]
    assert isinstance(jobs[1].result.exception(), RuntimeError)
    assert isinstance(jobs[2].result.exception(), working.StoppedError)
    assert sorted(ended) == [0, 1, 2, 3]


def test_images_of_requests_that_take_turns_are_those_of_the_library(start, digits):
    asked = [("goc-50", "31", 6), ("taylor-67", "8", 9), ("none", "2", 5), ("goc-50", "7", 8)]
    wanted = [
        expected(digits, served.METHODS.get(plan), tuple(map(int, labels)), steps) for plan, labels, steps in asked
    ]
    client = start(together=4)
    with (
        Held(digits) as held,
        in_background(
            *(lambda order=order: post(client, plan=order[0], digits=order[1], steps=order[2]) for order in asked)
        ) as answers,
    ):
        worker = client.app.state.worker
        until(lambda: held.reached.is_set() and worker.waiting + len(worker._turns) == 4)
        held.go.set()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(np.array_equal(pixels(answer.content), image) for answer, image in zip(answers, wanted, strict=True))
    assert kept(client.app) == []


def check_the_load_test(address):
    """It counts an image that is not the one it was told, and no other, with clients that leave and that stay."""
    case = load_test.Case("2", "fora-50", 2, 1.0, 5)
    for image in (load_test.reference(case), b"another"):
        outcomes, seconds = asyncio.run(load_test.load(address, {case: image}, clients=2, seconds=0.4, leaving=0.0))
        images = len(outcomes.latency)
        assert images == outcomes.counts["requests"] > 1
        assert outcomes.counts["wrong"] == (images if image == b"another" else 0)
        assert not any(outcomes.counts[name] for name in ("cancelled", "refused", "failed"))
        assert seconds >= 0.4
    long = load_test.Case("12345678", "none", 50, 3.0, 5)
    left, _ = asyncio.run(load_test.load(address, {long: b""}, clients=1, seconds=0.1, leaving=1.0))
    assert left.counts["cancelled"] == left.counts["requests"] > 0


@pytest.mark.slow
def test_a_real_server_finishes_its_request_on_sigterm(digits):
    """The one test over a socket: uvicorn in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVE / "app.py"), "--port", str(port), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=address, timeout=30) as client:
            ends = time.monotonic() + 240  # a busy machine imports slowly
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("/healthz").status_code == 200:
                        break
                assert server.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.1)
            first = post(client, steps=20)
            assert first.status_code == 200
            check_the_load_test(address)
            with in_background(lambda: post(httpx2.Client(base_url=address, timeout=30), steps=20)) as answers:
                until(lambda: figures(client)["forecache_features_total", "computed", "goc-50"] > 250)
                server.send_signal(signal.SIGTERM)
            assert answers[0].content == first.content
            _, log = server.communicate(timeout=20)
            with pytest.raises(httpx2.TransportError):
                client.get("/healthz")
        assert server.returncode == 0
        assert "Every request is finished" in log
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
