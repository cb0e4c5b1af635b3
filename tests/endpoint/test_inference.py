"""The endpoints for videos outside the catalogue, with fake models whose answers are known."""

import numpy as np
import pytest

from raypipe.endpoint.http import HttpError
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.uploads import ClassifiedUpload
from support.routes import VIDEO, Ask, FakeEmbedder, answer, error, fake_classify, serve
from support.served_index import DIM


def test_a_video_is_embedded_from_a_body_or_a_uri(ask: Ask, ids: list[str], embedder: FakeEmbedder) -> None:
    found = answer(ask("POST", "/v1/embed", content=VIDEO, headers={"Content-Type": "video/mp4"}))
    assert (len(found["embedding"]), found["num_frames"], found["status"]) == (DIM, 4, "ok")
    assert (found["duration_seconds"], found["neighbors"]) == (2.5, None)
    assert found["anomaly"]["closest"] == ids[3]
    assert (found["anomaly"]["p_value"], found["anomaly"]["num_compared"]) == (1.0, 200)
    named = answer(ask("POST", "/v1/embed?top_k=3", json={"uri": "s3://videos/open/a.mp4"}))
    assert named["neighbors"]["results"][0]["video"]["video_id"] == ids[3]
    assert embedder.given == [VIDEO, "s3://videos/open/a.mp4"]
    again = answer(ask("POST", "/v1/recommend", json={"embeddings": [found["embedding"]], "top_k": 3}))
    assert again["results"] == named["neighbors"]["results"]


def test_a_video_unlike_the_catalogue_has_a_small_p_value(
    ask: Ask, embedder: FakeEmbedder, live_index: IndexWatcher
) -> None:
    found = {}
    for sign in (1, -1):
        embedder.vector = sign * embedder.vector
        said = answer(ask("POST", "/v1/embed", content=VIDEO, headers={"Content-Type": "video/mp4"}))
        found[sign] = said["anomaly"]
    assert found[-1]["p_value"] == round(1 / 201, 6)
    assert found[-1]["neighbor_distance"] > found[1]["neighbor_distance"]
    assert found[-1]["mahalanobis_length"] > found[1]["mahalanobis_length"] > 0
    assert live_index.live is not None
    assert live_index.live.anomaly(np.zeros(DIM)) is None


def test_a_video_is_classified(ask: Ask) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    found = answer(ask("POST", "/v1/classify?top_k=2", content=VIDEO, headers=headers))
    assert found == {
        "label": "music",
        "score": 0.7,
        "top": [{"label": "music", "score": 0.7}, {"label": "news", "score": 0.2}],
        "num_frames": 4,
        "frame_scores": None,
        "neighbors": None,
    }
    found = answer(ask("POST", "/v1/classify?neighbors=12", content=VIDEO, headers=headers))
    assert (len(found["top"]), len(found["neighbors"]["results"])) == (3, 12)


def test_the_frames_of_a_video_are_scored_on_request(ask: Ask, live_index: IndexWatcher) -> None:
    headers = {"Content-Type": "video/mp4"}
    path = "/v1/classify?frame_scores=true"
    found = answer(ask("POST", path, content=VIDEO, headers=headers))["frame_scores"]
    assert found == {
        "frames": [
            {"pts_seconds": 0.0, "probe": 0.5, "order": 0.0, "picture": "b25l"},
            {"pts_seconds": 0.5, "probe": 0.1, "order": 0.125, "picture": "dHdv"},
            {"pts_seconds": 1.0, "probe": -0.25, "order": 0.0, "picture": "dGhyZWU="},
            {"pts_seconds": 2.0, "probe": 0.0, "order": 0.333333, "picture": "Zm91cg=="},
        ],
        "reason": None,
    }
    assert error(ask("POST", "/v1/classify?frame_scores=some", content=VIDEO, headers=headers)) == (
        422,
        "invalid_request",
    )

    async def unscored(_: object, *, frame_scores: bool) -> ClassifiedUpload:
        assert frame_scores
        return ClassifiedUpload([("music", 0.7)])

    other = serve(live_index, embedder=FakeEmbedder(), classify=unscored)
    found = answer(other("POST", path, content=VIDEO, headers=headers))["frame_scores"]
    assert found["frames"] == []
    assert found["reason"]


def test_batches_of_videos(ask: Ask) -> None:
    uris = ["s3://videos/open/a.mp4", "s3://videos/shut/a.mp4", "http://127.0.0.1/x"]
    for path in ("/v1/embed/batch", "/v1/classify/batch"):
        found = answer(ask("POST", path, json={"uris": uris, "top_k": 1}))["answers"]
        assert found[0]["num_frames"] == 4
        assert [one["error"]["code"] for one in found[1:]] == ["forbidden_uri", "forbidden_uri"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (HttpError(422, "The video cannot be decoded (decode_error): no moov.", "undecodable"), (422, "undecodable")),
        (HttpError(429, "Busy."), (429, "overloaded")),
        (HttpError(503, "Gone."), (503, "unavailable")),
    ],
)
def test_errors_of_the_embedder_are_passed_on(
    ask: Ask, embedder: FakeEmbedder, failure: HttpError, expected: tuple[int, str]
) -> None:
    embedder.error = failure
    for path in ("/v1/embed", "/v1/classify"):
        assert error(ask("POST", path, content=VIDEO, headers={"Content-Type": "video/mp4"})) == expected


def test_without_models_a_server_says_what_it_lacks(live_index: IndexWatcher) -> None:
    ask = serve(live_index)
    found = answer(ask("GET", "/v1/index"))
    assert (found["can_embed"], found["can_classify"]) == (False, False)
    for path in ("/v1/embed", "/v1/classify"):
        response = ask("POST", path, content=VIDEO, headers={"Content-Type": "video/mp4"})
        assert error(response) == (501, "not_available")
    assert error(ask("POST", "/v1/embed/batch", json={"uris": ["a"]})) == (501, "not_available")


def test_an_index_of_other_embeddings_is_not_searched(live_index: IndexWatcher, embedder: FakeEmbedder) -> None:
    embedder.fingerprint = "other"
    ask = serve(live_index, embedder=embedder, classify=fake_classify)
    assert not answer(ask("GET", "/v1/index"))["can_embed"]
    response = ask("POST", "/v1/embed", content=VIDEO, headers={"Content-Type": "video/mp4"})
    assert error(response) == (501, "not_available")
    assert embedder.given == []
