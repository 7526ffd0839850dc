"""An HTTP service that samples digits, each request by a plan of its choice.

    python examples/serve/app.py [--port 8000] [--queue 16] [--plan NAME=FILE ...]

POST /v1/images   {"digits": "314", "plan": "goc-50", "steps": 20, "guidance": 1.5, "seed": 7}   a PNG
GET /v1/plans     the plans by name                GET /healthz   200, or 503 while it shuts down
GET /metrics      Prometheus
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from metrics import CONTENT_TYPE, Metrics
from model import Plans
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect
from worker import ClosedError, Done, FullError, Job, StoppedError, Worker

import forecache as fc
from forecache.zoo import Digits

LOGGER = logging.getLogger("forecache.serve")
MOST_BYTES = 4096
"""Of a request's body."""


@dataclass(frozen=True)
class Settings:
    """queue: jobs that may wait. timeout: the most seconds of a request, waiting included. plans: files by name."""

    queue: int = 16
    timeout: float = 60.0
    plans: Mapping[str, Path] = field(default_factory=dict)


class Order(BaseModel):
    """What a client asks for. Nothing in it is a path, and every number has its limits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    digits: Annotated[str, Field(pattern=r"\A[0-9]{1,8}\z")]
    plan: Annotated[str, Field(max_length=64)] = "goc-50"
    steps: Annotated[int, Field(ge=1, le=50)] = 20
    guidance: Annotated[float, Field(ge=1.0, le=10.0, allow_inf_nan=False)] = 1.5
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    timeout: Annotated[float, Field(gt=0.0, le=600.0, allow_inf_nan=False)] | None = None


class RefusedError(Exception):
    """A request that gets another answer than an image: outcome, for the metrics; status; what to tell the client."""

    def __init__(self, outcome: str, status: int, told: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(told)
        self.outcome, self.status, self.told, self.headers = outcome, status, told, dict(headers or {})


def make_app(settings: Settings = Settings(), digits: Digits | None = None) -> FastAPI:
    """The service. The model is loaded, the plans are enabled and the worker starts when the app does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.plans = plans = Plans(digits, settings.plans)
        app.state.worker = worker = Worker(plans.generate, settings.queue)
        app.state.metrics = Metrics(plans, worker)
        LOGGER.info("Ready; plans: %s.", ", ".join(plans.names))
        yield
        await asyncio.to_thread(worker.close)
        plans.close()
        LOGGER.info("Every request is finished, and the model is as it was.")

    app = FastAPI(title="forecache: digits", lifespan=lifespan, openapi_url=None)
    app.state.settings = settings
    app.add_api_route("/v1/images", images, methods=["POST"])
    app.add_api_route("/v1/plans", plans_by_name, methods=["GET"])
    app.add_api_route("/healthz", healthz, methods=["GET"])
    app.add_api_route("/metrics", scrape, methods=["GET"])
    return app


async def images(request: Request) -> Response:
    """One request: read, queued, waited for; what went wrong is told as JSON with the reason."""
    state, started = request.app.state, perf_counter()
    try:
        order = await read(request)
        response = await answer(request, order)
        outcome = "ok"
        state.metrics.latency.labels(order.plan).observe(perf_counter() - started)
    except RefusedError as refused:
        outcome = refused.outcome
        response = JSONResponse({"detail": refused.told}, refused.status, refused.headers)
    except asyncio.CancelledError:
        state.metrics.requests.labels("cancelled").inc()
        raise
    state.metrics.requests.labels(outcome).inc()
    return response


async def read(request: Request) -> Order:
    """The order in a request's body, checked."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise RefusedError("invalid", 413, f"A request has at most {MOST_BYTES} bytes.")
    except ClientDisconnect:
        raise RefusedError("cancelled", 499, "The client is gone.") from None
    try:
        order = Order.model_validate_json(body)
    except ValidationError as error:
        raise RefusedError(
            "invalid", 422, error.errors(include_url=False, include_input=False, include_context=False)
        ) from None
    names = request.app.state.plans.names
    if order.plan not in names:
        raise RefusedError("invalid", 422, f"There is no plan of that name; there are {', '.join(names)}.")
    return order


async def answer(request: Request, order: Order) -> Response:
    """The image of an order, or RefusedError; no generation goes on whose client is gone or whose time is over."""
    worker: Worker = request.app.state.worker
    seed = random.SystemRandom().randrange(2**63) if order.seed is None else order.seed
    job = Job(order.plan, tuple(map(int, order.digits)), order.steps, order.guidance, seed)
    try:
        worker.submit(job)
    except FullError as full:
        raise RefusedError("full", 503, str(full), {"Retry-After": str(full.retry_after)}) from None
    except ClosedError as closed:
        raise RefusedError("closing", 503, str(closed), {"Retry-After": "5", "Connection": "close"}) from None
    most = request.app.state.settings.timeout
    try:
        done = await wait_for(job, request, min(most, order.timeout or most))
    finally:
        worker.withdraw(job)
    headers = {
        "X-Seed": str(seed),
        "X-Plan": order.plan,
        "X-Computed-Share": f"{done.made.computed:.4f}",
        "X-Seconds": f"{done.seconds:.4f}",
    }
    return Response(done.made.png, media_type="image/png", headers=headers)


async def wait_for(job: Job, request: Request, timeout: float) -> Done:
    """What the worker made of a job; RefusedError if the client goes first, the time is over or the model fails."""
    result = asyncio.wrap_future(job.result)
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({result, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        if gone.done():
            raise RefusedError("cancelled", 499, "The client is gone.")
        raise RefusedError("timeout", 504, f"It was not finished within {timeout:g} s.")
    except fc.errors.PlanError as error:
        raise RefusedError("invalid", 422, str(error)) from None
    except StoppedError:
        raise RefusedError("cancelled", 499, "The client is gone.") from None
    except (RefusedError, asyncio.CancelledError):
        result.add_done_callback(forget)
        raise
    except Exception:
        raise RefusedError("error", 500, "The model failed; the log says why.") from None
    finally:
        gone.cancel()


def forget(result: asyncio.Future[Done]) -> None:
    """Look at an error that nobody waits for any more, so that asyncio does not tell of it."""
    if not result.cancelled():
        result.exception()


async def disconnected(request: Request) -> None:
    """Returns when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def plans_by_name(request: Request) -> dict[str, str]:
    """Every plan that a request may ask for, as its picture; "" for none."""
    plans: Plans = request.app.state.plans
    return {name: plans.sessions[name].plan.picture() if name in plans.sessions else "" for name in plans.names}


async def healthz(request: Request) -> Response:
    """Whether requests are taken."""
    worker: Worker = request.app.state.worker
    if worker.closing or not worker.thread.is_alive():
        return JSONResponse({"status": "closing" if worker.closing else "broken"}, 503)
    return JSONResponse({"status": "ok"})


async def scrape(request: Request) -> Response:
    """The metrics, in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


class Server(uvicorn.Server):
    """Refuses what comes from the signal on, over connections that are open already; uvicorn closes the port."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        worker = getattr(self.config.app.state, "worker", None)  # type: ignore[union-attr]
        if worker is not None:
            worker.closing = True  # and nothing else: a signal handler must not wait for a lock
        super().handle_exit(sig, frame)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--queue", type=int, default=16, help="how many requests may wait")
    parser.add_argument("--timeout", type=float, default=60.0, help="the most seconds of a request, waiting included")
    parser.add_argument(
        "--grace", type=int, default=30, help="seconds that SIGTERM leaves the requests that were taken"
    )
    parser.add_argument("--threads", type=int, help="of the model; all cores without")
    parser.add_argument("--plan", action="append", default=[], metavar="NAME=FILE", help="a further plan, of Plan.save")
    args = parser.parse_args()
    named = [re.fullmatch(r"([a-z0-9][a-z0-9.-]{0,63})=(.+)", each) for each in args.plan]
    if not all(named):
        parser.error("--plan takes NAME=FILE, and a name has small letters, digits, dots and dashes")
    args.plan = {found[1]: Path(found[2]) for found in named if found}
    return args


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    app = make_app(Settings(args.queue, args.timeout, args.plan))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda *_: None
        )  # uvicorn hands the signal on when it is done; then nothing is left to do
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=args.grace
    )
    Server(config).run()


if __name__ == "__main__":
    main()
