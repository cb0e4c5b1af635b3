"""The application on a real Ray Serve over real HTTP: every endpoint, real videos, real models."""

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from raypipe import schema
from raypipe.client import AnswerError
from support.endpoints import LABELS, Endpoint
from support.videos import make_video

pytestmark = pytest.mark.slow
_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return a video that is not in the catalogue."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video(shade=77))
    return path


def test_the_catalogue(endpoint: Endpoint) -> None:
    client = endpoint.client
    about = client.index()
    assert (about["num_videos"], about["can_embed"], about["can_classify"]) == (2012, True, True)
    video = client.video(endpoint.ids[3])
    assert video["video_id"] == endpoint.ids[3]
    assert video["has_thumbnail"]
    assert client.thumbnail(endpoint.ids[3]).startswith(b"\xff\xd8")
    assert client.videos("MUSIC no.", limit=5)["videos"][0]["fields"]["title"].startswith("Music no.")
    assert client.videos()["total"] == 2012


def test_similar_and_recommend(endpoint: Endpoint) -> None:
    client = endpoint.client
    found = client.similar(endpoint.ids[3], top_k=7)
    assert len(found["results"]) == 7
    assert {result["why"]["closest"] for result in found["results"]} == {endpoint.ids[3]}
    same = client.recommend([endpoint.ids[3]], top_k=7)
    assert [one["video"]["video_id"] for one in same["results"]] == [
        one["video"]["video_id"] for one in found["results"]
    ]
    many = client.recommend([*endpoint.ids[:3], "none"], top_k=200, filters={"category": ["music", "news"]})
    assert (many["unknown"], len(many["results"])) == (["none"], 200)
    assert {one["video"]["fields"]["category"] for one in many["results"]} == {"music", "news"}
    assert client.recommend()["fallback"] == "popular"
    assert len(client.recommend_batch([{"top_k": 1}, {"history": [endpoint.ids[0]]}])) == 2


def test_a_video_is_embedded_as_in_the_index(endpoint: Endpoint, clip: Path) -> None:
    client = endpoint.client
    position = endpoint.ids[5]
    found = client.embed(f"{endpoint.source.videos.uri}/{position}", top_k=3)
    assert found["neighbors"]["results"][0]["video"]["video_id"] == position
    assert found["embedding"] == pytest.approx(endpoint.source.embeddings[5].tolist(), abs=1e-6)
    assert (found["num_frames"], found["status"]) == (2, "ok")
    sent = client.embed(clip)
    assert (len(sent["embedding"]), sent["neighbors"]) == (512, None)
    assert np.linalg.norm(sent["embedding"]) == pytest.approx(1, abs=1e-5)
    again = client.recommend(embeddings=[sent["embedding"]], top_k=3)
    assert len(again["results"]) == 3
    assert again["fallback"] is None


def test_a_video_is_labelled(endpoint: Endpoint, clip: Path) -> None:
    client = endpoint.client
    found = client.classify(clip, top_k=3, neighbors=12)
    assert found["label"] in LABELS
    assert found["top"][0]["label"] == found["label"]
    assert len(found["top"]) == 3
    assert len(found["neighbors"]["results"]) == 12
    assert found["frame_scores"] is None
    named = client.classify(f"{endpoint.source.videos.uri}/{endpoint.ids[0]}", frame_scores=True)
    frames = named["frame_scores"]["frames"]
    assert [frame["pts_seconds"] for frame in frames] == sorted({frame["pts_seconds"] for frame in frames})
    assert all(base64.b64decode(frame["picture"]).startswith(b"\xff\xd8") for frame in frames)
    assert [len(frames), any(frame["order"] for frame in frames)] == [named["num_frames"], True]
    assert sum(one["score"] for one in named["top"]) == pytest.approx(1, abs=1e-4)


def test_batches_of_videos(endpoint: Endpoint) -> None:
    uris = [f"{endpoint.source.videos.uri}/{one}" for one in endpoint.ids[:4]]
    for path in ("/v1/embed/batch", "/v1/classify/batch"):
        answers = post(endpoint, path, {"uris": [*uris, "s3://videos/none"]}).json()["answers"]
        assert [one.get("num_frames") for one in answers] == [2, 2, 2, 2, None]
        assert answers[4]["error"]["code"] == "forbidden_uri"


def post(endpoint: Endpoint, path: str, body: Any, **headers: str) -> httpx.Response:  # noqa: ANN401 - JSON or bytes
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{endpoint.url}{path}", content=content, headers=_JSON | headers, timeout=120)


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "status", "code"),
    [
        ("GET", "/v1/videos/none", b"", None, 404, "not_found"),
        ("GET", "/v1/videos/none/thumbnail", b"", None, 404, "not_found"),
        ("GET", "/v1/similar/none", b"", None, 404, "not_found"),
        ("GET", "/v1/none", b"", None, 404, "not_found"),
        ("DELETE", "/v1/index", b"", None, 405, "method_not_allowed"),
        ("GET", "/v1/similar/a?top_k=201", b"", None, 422, "invalid_request"),
        ("POST", "/v1/recommend", b"{", "application/json", 422, "invalid_request"),
        ("POST", "/v1/recommend", b'{"filters": {"none": 1}}', "application/json", 422, "invalid_request"),
        ("POST", "/v1/recommend", b'{"history": "a"}', "application/json", 422, "invalid_request"),
        ("POST", "/v1/recommend", b" " * 5_000_000, "application/json", 413, "body_too_large"),
        ("POST", "/v1/embed", b"no video at all", "video/mp4", 422, "undecodable"),
        ("POST", "/v1/embed", b"#EXTM3U\nhttp://127.0.0.1/x\n", "video/mp4", 422, "undecodable"),
        ("POST", "/v1/embed", b"x", "text/plain", 415, "unsupported_media_type"),
        ("POST", "/v1/embed", b'{"uri": "file:///etc/passwd"}', "application/json", 403, "forbidden_uri"),
        ("POST", "/v1/classify", b'{"uri": "http://127.0.0.1/x"}', "application/json", 403, "forbidden_uri"),
        ("POST", "/v1/classify", b"", "video/mp4", 422, "invalid_request"),
    ],
)
def test_every_error_is_json_under_the_requests_id(  # noqa: PLR0917 - the parameters
    endpoint: Endpoint, method: str, path: str, content: bytes, kind: str | None, status: int, code: str
) -> None:
    headers = {"X-Request-Id": "an-id"} | ({"Content-Type": kind} if kind else {})
    response = httpx.request(method, f"{endpoint.url}{path}", content=content, headers=headers, timeout=120)
    answer = response.json()
    assert (response.status_code, answer["error"]["code"]) == (status, code), answer
    assert (response.headers["x-request-id"], answer["request_id"]) == ("an-id", "an-id")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_uri_that_does_not_exist_is_404(endpoint: Endpoint) -> None:
    with pytest.raises(AnswerError) as caught:
        endpoint.client.embed(f"{endpoint.source.videos.uri}/none.mp4")
    assert caught.value.status == 404


def test_a_video_of_the_catalogue_is_played(endpoint: Endpoint) -> None:
    video_id = endpoint.ids[2]
    data = endpoint.source.videos.read(video_id)
    url = endpoint.url + endpoint.client.play(video_id)["url"]
    head, tail = (httpx.get(url, headers={"Range": one}) for one in ("bytes=0-99", "bytes=100-"))
    assert (head.status_code, tail.status_code) == (206, 206)
    assert head.content + tail.content == data
    assert httpx.get(url).content == data
    made_up = endpoint.source.items[schema.VIDEO_ID].to_pylist()[-1]
    with pytest.raises(AnswerError) as caught:
        endpoint.client.play(made_up)
    assert (caught.value.status, caught.value.code) == (403, "forbidden_uri")


def test_another_site_may_not_act(endpoint: Endpoint) -> None:
    assert post(endpoint, "/v1/admin/reload", {}, Origin="https://evil.example").json()["error"]["code"] == (
        "forbidden_origin"
    )
    assert post(endpoint, "/v1/admin/reload", {}, Host="evil.example").json()["error"]["code"] == "forbidden_host"


def test_the_page_and_the_probes(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/healthz").json() == {"ok": True}
    assert httpx.get(f"{endpoint.url}/readyz").json()["ready"]
    page = httpx.get(f"{endpoint.url}/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("app.js", "style.css"):
        assert httpx.get(f"{endpoint.url}/page/{name}").status_code == 200
    endpoint.client.similar(endpoint.ids[0])
    text = httpx.get(f"{endpoint.url}/metrics").text
    assert 'raypipe_requests_total{endpoint="similar",status="200"}' in text
    assert "raypipe_index_info{" in text


def test_many_uploads_at_once_are_answered_or_refused(endpoint: Endpoint, clip: Path) -> None:
    headers, data = {"Content-Type": "video/mp4"}, clip.read_bytes()

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=endpoint.url, timeout=120) as client:
            return await asyncio.gather(*(client.post("/v1/embed", content=data, headers=headers) for _ in range(24)))

    responses = asyncio.run(run())
    statuses = {response.status_code for response in responses}
    assert statuses <= {200, 429}
    assert 200 in statuses
    assert {response.headers["retry-after"] for response in responses if response.status_code == 429} <= {"1"}
    assert len({response.text for response in responses if response.status_code == 200}) == 1


def test_a_large_upload_reaches_the_sandbox(endpoint: Endpoint) -> None:
    size = 6_000_000
    data = make_video(shade=3)
    padded = data + (size - len(data)).to_bytes(4, "big") + b"free" + random.Random(0).randbytes(size - len(data) - 8)
    response = httpx.post(
        f"{endpoint.url}/v1/embed", content=padded, headers={"Content-Type": "video/mp4"}, timeout=120
    )
    assert response.status_code == 200, response.text
    assert len(response.json()["embedding"]) == 512
