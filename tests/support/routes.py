"""The routes over an index, without Ray: models that know their answers, and a way to ask."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from raypipe.endpoint.access import Access
from raypipe.endpoint.lane import Lane
from raypipe.endpoint.limits import Limits
from raypipe.endpoint.live import LiveIndex
from raypipe.endpoint.metrics import Metrics
from raypipe.endpoint.routes import build_application
from raypipe.endpoint.service import EmbeddedVideo, Service
from raypipe.endpoint.sources import Source
from support.served_index import DIM, EMBEDDINGS, make_items

VIDEO = b"\0\0\0\x18ftyp of a video"
Ask = Callable[..., httpx.Response]


class FakeEmbedder:
    """Embeds a video as one of the catalogue, and remembers what it was given."""

    fingerprint = str(EMBEDDINGS["fingerprint"])

    def __init__(self) -> None:
        self.given: list[Source] = []
        self.error: Exception | None = None

    async def embed(self, source: Source) -> EmbeddedVideo:
        self.given.append(source)
        if self.error is not None:
            raise self.error
        vector = make_items(200)[1][3]
        return EmbeddedVideo("ok", 2.5, vector / np.linalg.norm(vector), np.ones((4, DIM), np.float16))


class FakeClassifier:
    """Knows three labels."""

    async def classify(self, frame_embeddings: npt.NDArray[np.float16]) -> list[tuple[str, float]]:
        assert frame_embeddings.shape == (4, DIM)
        return [("music", 0.7), ("news", 0.2), ("sport", 0.1)]


def serve(live: LiveIndex, **parts: Any) -> Ask:  # noqa: ANN401 - fields of Service
    metrics = Metrics(live)
    service = Service(index=live, lane=Lane(), metrics=metrics, **parts)
    application = Limits(
        build_application(service), config=service.limits, access=Access(None), watcher=metrics, log=lambda _: None
    )
    transport = httpx.ASGITransport(application)  # type: ignore[arg-type]

    def ask(method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - of httpx
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    return ask


def answer(response: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return json.loads(response.text, parse_constant=pytest.fail)


def error(response: httpx.Response) -> tuple[int, str]:
    said = response.json()["error"]
    assert said["message"].isprintable(), said
    return response.status_code, said["code"]
