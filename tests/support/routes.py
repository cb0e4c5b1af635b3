"""The routes over an index, without Ray: fake models with known answers, and a function that sends requests."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.limits import Access, RequestLimits
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.routes.application import build_application
from raypipe.endpoint.service import Scheduler, Service
from raypipe.endpoint.uploads import ClassifiedUpload, EmbeddedUpload, Upload
from support.served_index import DIM, EMBEDDINGS, make_items

VIDEO = b"\0\0\0\x18ftyp of a video"
Ask = Callable[..., httpx.Response]


class FakeEmbedder:
    """A fake embedder that returns the embedding of a catalogue video, and records what it gets."""

    fingerprint = str(EMBEDDINGS["fingerprint"])

    def __init__(self) -> None:
        self.given: list[Upload] = []
        self.error: Exception | None = None
        self.vector = make_items(200)[1][3]

    async def embed(self, upload: Upload, *, pictures: bool = False) -> EmbeddedUpload:
        self.given.append(upload)
        if self.error is not None:
            raise self.error
        vector = self.vector
        frames, pts_seconds = np.ones((4, DIM), np.float16), np.array([0, 0.5, 1, 2.0])
        jpegs = [b"one", b"two", b"three", b"four"] if pictures else []
        return EmbeddedUpload("ok", 2.5, vector / np.linalg.norm(vector), frames, pts_seconds, jpegs)


async def fake_classify(frame_embeddings: npt.NDArray[np.float16], *, frame_scores: bool) -> ClassifiedUpload:
    """Return three fixed labels and, if asked, fixed scores of four frames."""
    assert frame_embeddings.shape == (4, DIM)
    scored = (np.float32([0.5, 0.1, -0.25, 0]), np.float32([0, 0.125, 0, 1 / 3]))
    return ClassifiedUpload([("music", 0.7), ("news", 0.2), ("sport", 0.1)], scored if frame_scores else None)


def serve(index: IndexWatcher, *, embedder: FakeEmbedder | None = None, **parts: Any) -> Ask:  # noqa: ANN401 - fields of Service
    metrics = EndpointMetrics(index)
    if embedder is not None:
        parts |= {"embed": embedder.embed, "embed_fingerprint": embedder.fingerprint}
    service = Service(index=index, scheduler=Scheduler(), metrics=metrics, **parts)
    application = RequestLimits(
        build_application(service), config=service.limits, access=Access(None), metrics=metrics, log=lambda _: None
    )
    transport = httpx.ASGITransport(application)  # type: ignore[arg-type]

    def ask(method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - of httpx
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    ask.application = application  # type: ignore[attr-defined]  # for tests that need single messages
    return ask


def answer(response: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return json.loads(response.text, parse_constant=pytest.fail)


def error(response: httpx.Response) -> tuple[int, str]:
    said = response.json()["error"]
    assert said["message"].isprintable(), said
    return response.status_code, said["code"]
