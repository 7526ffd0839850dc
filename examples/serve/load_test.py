"""A load test: every image of a busy server is compared with the library's own, and the server's memory is watched.

    python examples/serve/load_test.py [--seconds 120] [--clients 4 16] [--together 1 4] [--pair-seconds 30]

Starts the server on loopback. Clients mix steps, guidance scales, plans and sizes, and abandon some requests. Reference
images are sampled first, in a process without a server, each by a freshly loaded model. Writes
benchmarks/results/serving.json, and the tables between the markers in docs/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from model import METHODS, NONE, png
from prometheus_client.parser import text_string_to_metric_families

import forecache as fc
from forecache.environment import environment
from forecache.sampling.loop import sample, to_images
from forecache.zoo import load_digits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULT = ROOT / "benchmarks/results/serving.json"
PAGE = ROOT / "docs/serving.md"
STEPS, GUIDANCE = (10, 12, 20), (1.0, 1.5, 3.0)
ABANDONED = 0.15
"""Share of the requests whose client leaves within a second."""
COUNTED = ("requests", "cancelled", "refused", "failed", "wrong")
QUEUE = 12
RSS = "process_resident_memory_bytes"


@dataclass(frozen=True)
class Case:
    """The content of one request."""

    digits: str
    plan: str
    steps: int
    guidance: float
    seed: int


def cases() -> list[Case]:
    """Every plan at every length and guidance; one, two or three digits."""
    settings = itertools.product((NONE, *METHODS), STEPS, GUIDANCE)
    return [
        Case("".join(str((number + place) % 10) for place in range(1 + number % 3)), *setting, seed=1000 + number)
        for number, setting in enumerate(settings)
    ]


PAIR = {plan: Case("3", plan, 20, 1.5, 7) for plan in (NONE, "goc-50")}
"""The cases that are timed, without and with a cache."""


def reference(case: Case) -> bytes:
    """The case's image sampled by the library alone: a freshly loaded model, and a session for this image only."""
    torch.set_num_threads(1)
    digits = load_digits()
    plan = METHODS[case.plan].plan(fc.grid(digits, case.steps)) if case.plan != NONE else None
    labels = [int(digit) for digit in case.digits]
    how = {"num_steps": case.steps, "guidance": case.guidance, "seed": case.seed}
    with fc.apply(digits, plan) if plan else contextlib.nullcontext():
        return png(to_images(sample(digits.transformer, digits.scheduler, labels, **how)))


def references(requests: Sequence[Case]) -> dict[Case, bytes]:
    """The reference image of every case, sampled in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return dict(zip(requests, pool.map(reference, requests), strict=True))


@dataclass
class Outcomes:
    """The outcomes of the requests of clients.

    counts: requests by outcome, and all of them as "requests".
    latency: (plan, seconds from the request to the image) of every image.
    seconds: (plan, seconds of the model) of every image.
    """

    counts: Counter[str] = field(default_factory=Counter)
    latency: list[tuple[str, float]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """The counts, and percentiles of the times with and without a plan."""
        counts = {name: self.counts[name] for name in COUNTED}
        kinds = {"without_cache": lambda plan: plan == NONE, "with_cache": lambda plan: plan != NONE}
        return counts | {
            "images": len(self.latency),
            **{
                name: {
                    "images": sum(fits(plan) for plan, _ in self.latency),
                    "latency": percentiles([value for plan, value in self.latency if fits(plan)]),
                    "model_seconds": percentiles([value for plan, value in self.seconds if fits(plan)]),
                }
                for name, fits in kinds.items()
            },
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (50, 95)} if values else {}


async def ask(client: httpx2.AsyncClient, case: Case, wanted: bytes, outcomes: Outcomes) -> int:
    """Send one request and compare its image; returns the status of the answer."""
    started = time.perf_counter()
    answer = await client.post("/v1/images", json=vars(case))
    if answer.status_code == 503:
        outcomes.counts["refused"] += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))
    elif answer.status_code != 200:
        outcomes.counts["failed"] += 1
    else:
        outcomes.latency.append((case.plan, time.perf_counter() - started))
        outcomes.seconds.append((case.plan, float(answer.headers["x-seconds"])))
        outcomes.counts["wrong"] += answer.content != wanted
    return answer.status_code


async def one_client(url: str, wanted: dict[Case, bytes], seconds: float, seed: int, leaving: float) -> Outcomes:
    """A client that sends random requests one after the other, and abandons some of them."""
    outcomes, rng, choices = Outcomes(), random.Random(seed), list(wanted)
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            case, patience = rng.choice(choices), rng.uniform(0.02, 1.0)
            leaves = rng.random() < leaving
            outcomes.counts["requests"] += 1
            try:
                async with asyncio.timeout(patience if leaves else None):
                    await ask(client, case, wanted[case], outcomes)
            except TimeoutError:
                outcomes.counts["cancelled"] += 1
    return outcomes


async def load(
    url: str, wanted: dict[Case, bytes], clients: int, seconds: float, leaving: float = ABANDONED
) -> tuple[Outcomes, float]:
    """Run a number of clients at once; returns their outcomes, and the seconds until the last answer."""
    started = time.monotonic()
    running = [one_client(url, wanted, seconds, seed, leaving) for seed in range(clients)]
    total = Outcomes()
    for outcomes in await asyncio.gather(*running):
        for name, value in vars(outcomes).items():
            setattr(total, name, getattr(total, name) + value)
    return total, time.monotonic() - started


async def one_by_one(url: str, wanted: dict[Case, bytes]) -> int:
    """Request every case once on an idle server; returns the number of wrong images."""
    outcomes = Outcomes()
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        for case, image in wanted.items():
            if await ask(client, case, image, outcomes) != 200:
                sys.exit(f"{case} was not answered")
    return outcomes.counts["wrong"]


async def scraped(url: str) -> dict[tuple[str, ...], float]:
    """The server's metrics, by name and labels."""
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        text = (await client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


async def watch(url: str, memory: list[int]) -> None:
    """Record the server's memory every ten seconds until cancelled."""
    while True:
        await asyncio.sleep(10)
        memory.append(int((await scraped(url))[RSS,]))


@contextlib.asynccontextmanager
async def server(threads: int, together: int) -> AsyncIterator[str]:
    """Start a server in a process of its own, yield its address, and end it with SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--queue", str(QUEUE), "--timeout", "120", "--threads", str(threads)]
    options += ["--together", str(together)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    process = subprocess.Popen([sys.executable, str(HERE / "app.py"), *options], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(base_url=url) as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get("/healthz")).status_code == 200:
                        break
                if process.poll() is not None:
                    sys.exit("the server did not start")
                await asyncio.sleep(0.2)
        yield url
    finally:
        process.terminate()
        code = await asyncio.to_thread(process.wait)
    if code:
        sys.exit(f"the server ended with {code}")


async def measured(clients: int, together: int, wanted: dict[Case, bytes], args: argparse.Namespace) -> dict[str, Any]:
    """Measure a fresh server: every case alone, the mixed load, every case alone again; then a plan and none."""
    async with server(args.threads, together) as url:
        wrong = await one_by_one(url, wanted)
        before = await scraped(url)
        print(f"{clients} clients, {together} together, for {args.seconds:g} s ...", flush=True)
        memory: list[int] = []
        watching = asyncio.create_task(watch(url, memory))
        mixed, _ = await load(url, {case: wanted[case] for case in cases()}, clients, args.seconds)
        watching.cancel()
        after = await scraped(url)
        wrong += await one_by_one(url, wanted)
        pair = {}
        for plan, case in PAIR.items():
            outcomes, seconds = await load(url, {case: wanted[case]}, clients, args.pair_seconds, leaving=0.0)
            kind = outcomes.figures()["without_cache" if plan == NONE else "with_cache"]
            pair[plan] = kind | {"images_per_second": round(kind["images"] / seconds, 3)}
            wrong += outcomes.counts["wrong"]
    return {
        "clients": clients,
        "together": together,
        "seconds": args.seconds,
        **mixed.figures(),
        "wrong_alone_before_and_after": wrong,
        "server_outcomes": {key[1]: int(value) for key, value in after.items() if key[0] == "forecache_requests_total"},
        "rss_bytes": {"after_warm_up": int(before[RSS,]), "every_10_s": memory, "at_the_end": int(after[RSS,])},
        "pair": pair,
    }


def tables(document: dict[str, Any]) -> list[str]:
    """The tables of docs/serving.md."""
    lines = [
        "| clients | together | requests | images | cancelled | refused | wrong images | memory, MiB | at the end |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for run in document["runs"]:
        counts = [run[name] for name in ("clients", "together", "requests", "images", "cancelled", "refused")]
        rss = [f"{run['rss_bytes'][name] / 2**20:.0f}" for name in ("after_warm_up", "at_the_end")]
        wrong = run["wrong"] + run["wrong_alone_before_and_after"]
        lines.append("| " + " | ".join(map(str, [*counts, wrong, *rss])) + " |")
    lines += [
        "",
        "| clients | together | plan | images a second | p50, s | p95, s | model alone, p50, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, (plan, one) in itertools.product(document["runs"], [*document["runs"][0]["pair"].items()]):
        one = run["pair"][plan]
        cells = [one["images_per_second"], one["latency"]["p50"], one["latency"]["p95"], one["model_seconds"]["p50"]]
        lines.append(
            f"| {run['clients']} | {run['together']} | {plan} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
        )
    lines += [
        "",
        "| clients, mixed | together | with or without a cache | p50, s | p95, s | model alone, p50, s |",
        "|---|---|---|---|---|---|",
    ]
    for run in document["runs"]:
        for kind in ("without_cache", "with_cache"):
            figures = run[kind]
            cells = [figures["latency"]["p50"], figures["latency"]["p95"], figures["model_seconds"]["p50"]]
            words = kind.replace("_", " ")
            lines.append(
                f"| {run['clients']} | {run['together']} | {words} | "
                + " | ".join(f"{cell:.2f}" for cell in cells)
                + " |"
            )
    place = document["environment"]
    note = (
        f"{document['runs'][0]['seconds']:g} s of mixed load each; {place['cpu']}, {place['cores']} cores, the model "
        f"on {document['threads']} thread, torch {place['torch']}, diffusers {place['diffusers']}. The load average "
        f"was {document['load_average']:.1f}, with the clients and the server themselves in it; compare rows of one "
        "table alone."
    )
    return [*lines, "", note]


def fill(path: Path, name: str, lines: list[str]) -> None:
    """Replace the text between <!-- name --> and <!-- /name -->."""
    text = path.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{path} needs the markers <!-- {name} --> and <!-- /{name} --> once")
    path.write_text(new, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of mixed load, for each number of clients")
    parser.add_argument("--pair-seconds", type=float, default=30.0, help="of load with one plan, and without")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4], help="of the server; 1 is a queue")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    parser.add_argument("--out", type=Path, help="write the figures to this file only, and leave the docs unchanged")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    requests = [*cases(), *PAIR.values()]
    print(f"{len(requests)} references ...", flush=True)
    wanted = references(requests)
    loads = itertools.product(args.clients, args.together)
    runs = [asyncio.run(measured(clients, together, wanted, args)) for clients, together in loads]
    document = {
        "command": shlex.join(["python", "examples/serve/load_test.py", *sys.argv[1:]]),
        "environment": environment(),
        "threads": args.threads,
        "load_average": os.getloadavg()[2],
        "queue": QUEUE,
        "runs": runs,
    }
    (args.out or RESULT).write_text(json.dumps(document, indent=2) + "\n")
    print("\n".join(tables(document)))
    if args.out is None:
        fill(PAGE, "serving", tables(document))
    if any(run["wrong"] + run["wrong_alone_before_and_after"] + run["failed"] for run in runs):
        sys.exit("images were wrong, or requests failed")


if __name__ == "__main__":
    main()
