"""An HTTP service that samples digits; every request names its plan.

    python examples/serve/app.py [--port 8000] [--queue 16] [--together 1] [--max-drift 2] [--plan NAME=FILE ...]

POST /v1/images   {"digits": "314", "plan": "goc-50", "steps": 20, "guidance": 1.5, "seed": 7}   a PNG
GET /v1/plans     the plans by name                GET /healthz   200, or 503 while it shuts down
GET /metrics      Prometheus
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
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
MAX_BYTES = 4096
"""Most bytes of a request's body."""


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    queue: jobs that may wait.
    together: jobs that run at once and take turns, step by step.
    timeout: longest duration of a request in seconds, waiting included.
    plans: plan files by name.
    max_drift: the most by which a request may change faster than what was calibrated; None for no limit.
    """

    queue: int = 16
    together: int = 1
    timeout: float = 60.0
    plans: Mapping[str, Path] = field(default_factory=dict)
    max_drift: float | None = None


class Order(BaseModel):
    """The content of a request. It holds no paths, and every number has limits."""

    model_config = ConfigDict(extra="forbid", strict=True)

    digits: Annotated[str, Field(pattern=r"\A[0-9]{1,8}\z")]
    plan: Annotated[str, Field(max_length=64)] = "goc-50"
    steps: Annotated[int, Field(ge=1, le=50)] = 20
    guidance: Annotated[float, Field(ge=1.0, le=10.0, allow_inf_nan=False)] = 1.5
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    timeout: Annotated[float, Field(gt=0.0, le=600.0, allow_inf_nan=False)] | None = None


class RefusedError(Exception):
    """A request that is answered without an image.

    outcome: its label in the metrics.
    status: HTTP status.
    detail: the reason, for the client.
    headers: further headers of the answer.
    """

    def __init__(self, outcome: str, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.outcome, self.status, self.detail, self.headers = outcome, status, detail, dict(headers or {})


def make_app(settings: Settings = Settings(), digits: Digits | None = None) -> FastAPI:
    """The service; the model is loaded, the plans are applied and the worker starts with the app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.plans = plans = Plans(digits, settings.plans, settings.max_drift)
        app.state.worker = worker = Worker(plans.generate, settings.queue, settings.together)
        app.state.metrics = Metrics(plans, worker)
        LOGGER.info("Ready; plans: %s.", ", ".join(plans.names))
        yield
        await asyncio.to_thread(worker.close)
        plans.close()
        LOGGER.info("Every request is finished, and the plans are taken off.")

    app = FastAPI(title="forecache: digits", lifespan=lifespan, openapi_url=None)
    app.state.settings = settings
    app.add_api_route("/v1/images", images, methods=["POST"])
    app.add_api_route("/v1/plans", plans_by_name, methods=["GET"])
    app.add_api_route("/healthz", healthz, methods=["GET"])
    app.add_api_route("/metrics", scrape, methods=["GET"])
    return app


async def images(request: Request) -> Response:
    """Answer a request with its image, or with the reason of a failure as JSON."""
    state, started = request.app.state, perf_counter()
    try:
        order = await read(request)
        response = await answer(request, order)
        outcome = "ok"
        state.metrics.latency.labels(order.plan).observe(perf_counter() - started)
    except RefusedError as refused:
        outcome = refused.outcome
        response = JSONResponse({"detail": refused.detail}, refused.status, refused.headers)
    except asyncio.CancelledError:
        state.metrics.requests.labels("cancelled").inc()
        raise
    state.metrics.requests.labels(outcome).inc()
    return response


async def read(request: Request) -> Order:
    """The checked order in a request's body."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                raise RefusedError("invalid", 413, f"A request has at most {MAX_BYTES} bytes.")
    except ClientDisconnect:
        raise RefusedError("cancelled", 499, "The client has left.") from None
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
    """The image of an order, or RefusedError. A generation ends with its client's connection and with its timeout."""
    worker: Worker = request.app.state.worker
    seed = random.SystemRandom().randrange(2**63) if order.seed is None else order.seed
    job = Job(order.plan, tuple(map(int, order.digits)), order.steps, order.guidance, seed)
    try:
        worker.submit(job)
    except FullError as full:
        raise RefusedError("full", 503, str(full), {"Retry-After": str(full.retry_after)}) from None
    except ClosedError as closed:
        raise RefusedError("closing", 503, str(closed), {"Retry-After": "5", "Connection": "close"}) from None
    limit = request.app.state.settings.timeout
    try:
        done = await wait_for(job, request, min(limit, order.timeout or limit))
    finally:
        worker.withdraw(job)
    headers = {
        "X-Seed": str(seed),
        "X-Plan": order.plan,
        "X-Computed-Share": f"{done.picture.computed:.4f}",
        "X-Seconds": f"{done.seconds:.4f}",
    }
    return Response(done.picture.png, media_type="image/png", headers=headers)


async def wait_for(job: Job, request: Request, timeout: float) -> Done:
    """The finished job; RefusedError if its client leaves, its time is over, or the model fails."""
    result = asyncio.wrap_future(job.result)
    left = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({result, left}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        if left.done():
            raise RefusedError("cancelled", 499, "The client has left.")
        raise RefusedError("timeout", 504, f"It was not finished within {timeout:g} s.")
    except fc.errors.PlanError as error:
        raise RefusedError("invalid", 422, str(error)) from None
    except StoppedError:
        raise RefusedError("cancelled", 499, "The client has left.") from None
    except (RefusedError, asyncio.CancelledError):
        result.add_done_callback(forget)
        raise
    except Exception:
        raise RefusedError("error", 500, "The model failed; the log says why.") from None
    finally:
        left.cancel()


def forget(result: asyncio.Future[Done]) -> None:
    """Retrieve an error that nobody awaits, so that asyncio does not log it."""
    if not result.cancelled():
        result.exception()


async def disconnected(request: Request) -> None:
    """Wait until the client closes the connection; the body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def plans_by_name(request: Request) -> dict[str, str]:
    """The picture of every plan that a request may ask for; "" for the plan none."""
    plans: Plans = request.app.state.plans
    applied = {name: session.plan for name, session in plans.sessions.items()}
    return {name: plan.picture() if (plan := applied.get(name)) is not None else "" for name in plans.names}


async def healthz(request: Request) -> Response:
    """Whether requests are accepted."""
    worker: Worker = request.app.state.worker
    if worker.closing or not worker.thread.is_alive():
        return JSONResponse({"status": "closing" if worker.closing else "broken"}, 503)
    return JSONResponse({"status": "ok"})


async def scrape(request: Request) -> Response:
    """The metrics, in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


class Server(uvicorn.Server):
    """A server that refuses requests on open connections as soon as a signal arrives; uvicorn closes the port."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        worker = getattr(self.config.app.state, "worker", None)  # type: ignore[union-attr]
        if worker is not None:
            worker.closing = True  # nothing else: a signal handler must not wait for a lock
        super().handle_exit(sig, frame)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait")
    parser.add_argument(
        "--together", type=int, default=4, help="requests that run at once and take turns, step by step"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="longest duration of a request in seconds, waiting included"
    )
    parser.add_argument("--grace", type=int, default=30, help="seconds to finish the accepted requests after SIGTERM")
    parser.add_argument("--threads", type=int, help="CPU threads of the model [all cores]")
    parser.add_argument(
        "--plan",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further plan, a file of Plan.save; repeatable",
    )
    parser.add_argument(
        "--max-drift",
        type=float,
        help="compute the rest of a request that changes this many times as fast as what was calibrated",
    )
    args = parser.parse_args()
    if args.together < 1:
        parser.error(f"--together is 1 or more: {args.together} was given")
    if args.max_drift is not None and not 0 < args.max_drift < math.inf:
        parser.error(f"--max-drift is a ratio over 0: {args.max_drift:g} was given")
    matches = [re.fullmatch(r"([a-z0-9][a-z0-9.-]{0,63})=(.+)", word) for word in args.plan]
    if not all(matches):
        parser.error("--plan takes NAME=FILE, and a name has lower-case letters, digits, dots and dashes")
    args.plan = {match[1]: Path(match[2]) for match in matches if match}
    return args


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    app = make_app(Settings(args.queue, args.together, args.timeout, args.plan, args.max_drift))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda *_: None
        )  # uvicorn raises the signal again when it has ended; nothing is left to do then
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=args.grace
    )
    Server(config).run()


if __name__ == "__main__":
    main()
