"""The system's browser, a check of what must not happen in a page, and a server without Ray."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.limits import Access, RequestLimits, digest_of
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.routes.application import build_application
from raypipe.endpoint.service import Scheduler, Service
from raypipe.endpoint.uploads import Prefixes
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.processes import free_port, wait_until
from support.served_index import put_index

ARGUMENTS = (
    "--no-sandbox",  # tests may run as root, where the sandbox does not start
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000  # a model may keep both processors busy


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, or skip the test if there is none."""
    program = shutil.which("chromium") or shutil.which("/usr/bin/chromium")
    if program is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Watch:
    """Record what must not happen in a page: errors, and requests to any other server."""

    origin: str
    allowed: set[int] = field(default_factory=set)  # statuses that a test causes on purpose
    troubles: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Start listening."""
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("console", self._said)
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        expected = re.search(r"status of (\d+)", message.text)
        if message.type in {"error", "warning"} and not (expected and int(expected[1]) in self.allowed):
            self.troubles.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.troubles.append(f"request: {request.url}")


@contextmanager
def guarded_server(work: Path, token: str) -> Iterator[str]:
    """Run a server that requires a token, without Ray, whose token would apply to all processes; yield its address."""
    folder = Folder(str(work / "index"))
    put_index(folder, num_videos=20)
    with plain_server(folder, work / "cache", token=token) as address:
        yield address


@contextmanager
def plain_server(
    index_folder: Folder,
    cache: Path,
    *,
    token: str | None = None,
    prefixes: tuple[str, ...] = (),
    limits: LimitsConfig = LimitsConfig(),  # noqa: B008 - it is immutable
    log: Callable[[Mapping[str, object]], None] = lambda _: None,
    **models: Any,  # noqa: ANN401 - fields of Service
) -> Iterator[str]:
    """Serve an index without Ray, and yield the address."""
    index = IndexWatcher(Versions(index_folder), cache, reload_seconds=1e6)
    metrics, scheduler = EndpointMetrics(index), Scheduler()
    index.start()
    service = Service(
        index=index, scheduler=scheduler, metrics=metrics, limits=limits, prefixes=Prefixes(prefixes), **models
    )
    application = RequestLimits(
        build_application(service), config=limits, access=Access(digest_of(token)), metrics=metrics, log=log
    )
    options = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}  # as Ray Serve does
    config = uvicorn.Config(application, port=free_port(), **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, what="the server listens")
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()
        index.close()
        scheduler.close()
