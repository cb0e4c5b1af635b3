"""Measure what a request of the endpoint costs beyond its search, in one process and without a network.

    python benchmarks/request_cost.py [--videos 100000] [--requests 2000] [--repeats 5] [--quick]

The layers are measured in turns, on the same requests: the vector search alone (one query, with the filter of the
request), ``VideoIndex.similar`` or ``recommend``, which also parses, ranks and explains, and the whole application,
from an ASGI request to its response. What HTTP and Ray Serve add is measured by serve.py. Times are CPU time of all
threads of the process, per request.
"""

import asyncio
import json
import logging
import random
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.limits import Access, RequestLimits
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.routes.application import build_application
from raypipe.endpoint.service import Scheduler, Service
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from serve import CATEGORIES, write_index
from support import describe_machine, make_parser, print_table, scratch_folder, spread
from support.processes import Stopwatch

TOP_K = {"similar": 10, "recommend": 20}
HISTORY = 10
Request = tuple[list[str], str | None]  # the history, and the category to filter by


def make_requests(kind: str, *, num_videos: int, count: int) -> list[Request]:
    chance = random.Random(7)  # noqa: S311 - seeded data
    made: list[Request] = []
    for _ in range(count):
        ids = [f"video-{chance.randrange(num_videos):07d}" for _ in range(HISTORY if kind == "recommend" else 1)]
        made.append((ids, f"category-{chance.randrange(CATEGORIES):02d}" if kind == "recommend" else None))
    return made


def search_alone(index: VideoIndex, kind: str, requests: Sequence[Request]) -> Callable[[], None]:
    """Return a function that searches for all requests. Positions and filters are prepared in advance."""
    prepared = []
    for history, category in requests:
        positions = [int(video_id[-7:]) for video_id in history]
        eligible = None if category is None else index.filters.eligible({"category": category})
        prepared.append((index.vectors[positions].astype(np.float32).mean(axis=0), eligible))

    def search() -> None:
        for query, eligible in prepared:
            index.ann.nearest(query, top_k=TOP_K[kind] + HISTORY, eligible=eligible)

    return search


def index_alone(index: VideoIndex, kind: str, requests: Sequence[Request]) -> Callable[[], None]:
    def recommend() -> None:
        for history, category in requests:
            if category is None:
                index.similar(history[0], top_k=TOP_K[kind])
            else:
                index.recommend(Query(history=tuple(history), filters={"category": category}, top_k=TOP_K[kind]))

    return recommend


def whole_application(application: RequestLimits, kind: str, requests: Sequence[Request]) -> Callable[[], None]:
    """Return a function that sends all requests to the application, one after the other."""

    async def send(history: list[str], category: str | None) -> None:
        body, method, path, query = b"", "GET", f"/v1/similar/{history[0]}", f"top_k={TOP_K[kind]}"
        if category is not None:
            asked = {"history": history, "filters": {"category": category}, "top_k": TOP_K[kind]}
            body, method, path, query = json.dumps(asked).encode(), "POST", "/v1/recommend", ""
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def respond(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await application(scope, receive, respond)  # type: ignore[arg-type]
        if statuses != [200]:
            sys.exit(f"{method} {path} was answered with {statuses}.")

    async def send_all() -> None:
        for history, category in requests:
            await send(history, category)

    return lambda: _run(send_all())


_loop = asyncio.new_event_loop()


def _run(work: Coroutine[Any, Any, None]) -> None:
    _loop.run_until_complete(work)


def main() -> None:
    parser = make_parser(__doc__, quick="20,000 videos, 200 requests, 1 repeat")
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.videos, options.requests, options.repeats = 20_000, 200, 1
    logging.disable(logging.INFO)
    with scratch_folder() as scratch:
        write_index(scratch / "index", options.videos)
        watcher = IndexWatcher(Versions(Folder(str(scratch / "index"))), Path(scratch, "cache"), reload_seconds=1e6)
        live, _ = watcher.reload()
        metrics = EndpointMetrics(watcher)
        service = Service(index=watcher, scheduler=Scheduler(), metrics=metrics)
        application = RequestLimits(
            build_application(service), config=service.limits, access=Access(None), metrics=metrics, log=lambda _: None
        )
        rows = []
        for kind in TOP_K:
            asked = make_requests(kind, num_videos=options.videos, count=options.requests)
            layers = {
                "vector search": search_alone(live.index, kind, asked),
                "VideoIndex": index_alone(live.index, kind, asked),
                "application": whole_application(application, kind, asked),
            }
            spent: dict[str, list[float]] = {name: [] for name in layers}
            for repeat in range(options.repeats + 1):
                for name, run in layers.items():
                    watch = Stopwatch()
                    run()
                    if repeat:  # the first round warms up
                        spent[name].append(1e6 * watch.read().cpu / len(asked))
            base = median(spent["vector search"])
            rows += [(kind, name, spread(found, 0), f"{median(found) / base:.2f}") for name, found in spent.items()]
        service.scheduler.close()
    print(describe_machine())
    print(f"{options.videos:,} videos, {options.requests:,} requests, one after the other\n")
    print_table(("request", "layer", "CPU µs", "over its search"), rows)


if __name__ == "__main__":
    main()
