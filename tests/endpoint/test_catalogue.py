"""The endpoints that need only the index, over a small real one."""

from urllib.parse import quote

import pytest

from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.search.query import Query, Recommendation, Recommendations
from support.routes import Ask, answer, error
from support.served_index import CATEGORIES


def test_index_says_what_is_served(ask: Ask, live_index: IndexWatcher) -> None:
    found = answer(ask("GET", "/v1/index"))
    assert live_index.live is not None
    assert found["version"] == live_index.live.version
    assert (found["num_videos"], found["dim"], found["kind"]) == (200, 16, "flat")
    assert found["columns"]["popularity"] == "int64"
    assert sorted(found["categories"]) == sorted(found["labels"]) == sorted(CATEGORIES)
    assert (found["can_embed"], found["can_classify"], found["can_play"]) == (True, True, True)
    assert (found["strategies"], found["ranker"]) == (["content"], None)


def test_videos_are_listed_page_by_page(ask: Ask, ids: list[str]) -> None:
    found = answer(ask("GET", "/v1/videos"))
    assert (found["total"], len(found["videos"])) == (200, 48)
    listed = [
        video["video_id"]
        for offset in range(0, 250, 50)
        for video in answer(ask("GET", "/v1/videos", params={"offset": offset, "limit": 50}))["videos"]
    ]
    assert listed == ids


def test_videos_are_found_by_text_and_category(ask: Ask) -> None:
    found = answer(ask("GET", "/v1/videos", params={"text": "MUSIC NO.", "category": "music", "limit": 200}))
    assert 0 < found["total"] < 200
    assert found["total"] == len(found["videos"])
    assert {video["fields"]["category"] for video in found["videos"]} == {"music"}
    labelled = answer(ask("GET", "/v1/videos", params={"label": "news", "text": ""}))
    assert {video["label"] for video in labelled["videos"]} == {"news"}
    assert answer(ask("GET", "/v1/videos", params={"text": "日本"}))["total"] == 200
    assert answer(ask("GET", "/v1/videos", params={"category": "none"})) == {"videos": [], "total": 0}


def test_a_video_has_the_fields_of_the_catalogue(ask: Ask, ids: list[str]) -> None:
    found = answer(ask("GET", f"/v1/videos/{quote(ids[5], safe='')}"))
    assert found == answer(ask("GET", f"/v1/videos/{quote(ids[5])}"))  # with its slash unescaped
    assert (found["video_id"], found["video_uri"]) == (ids[5], f"s3://videos/{ids[5]}")
    assert (found["has_thumbnail"], found["duration_seconds"], found["label"], found["score"]) == (
        False,
        7.0,
        ids[5].partition("/")[0],
        0.75,
    )
    assert set(found["fields"]) == {"title", "category", "published_at", "popularity", "rating"}
    assert found["fields"]["rating"] is None  # NaN, which JSON cannot express
    assert found["fields"]["published_at"].startswith("2024-01-01T05:00")
    assert answer(ask("GET", f"/v1/videos/{quote(ids[1])}"))["has_thumbnail"]


def test_a_thumbnail_is_a_picture_that_a_browser_keeps(ask: Ask, ids: list[str]) -> None:
    path = f"/v1/videos/{quote(ids[1], safe='')}/thumbnail"
    found = ask("GET", path)
    assert (found.status_code, found.headers["content-type"]) == (200, "image/jpeg")
    assert found.content.startswith(b"\xff\xd8")
    again = ask("GET", path, headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert error(ask("GET", f"/v1/videos/{quote(ids[5], safe='')}/thumbnail")) == (404, "not_found")
    assert error(ask("GET", "/v1/videos/none/thumbnail")) == (404, "not_found")


def test_similar_videos_are_of_the_same_cluster(ask: Ask, ids: list[str], live_index: IndexWatcher) -> None:
    found = answer(ask("GET", f"/v1/similar/{quote(ids[3], safe='')}", params={"top_k": 5}))
    kinds = {result["video"]["video_id"].partition("/")[0] for result in found["results"]}
    assert kinds == {ids[3].partition("/")[0]}
    assert ids[3] not in [result["video"]["video_id"] for result in found["results"]]
    assert {result["why"]["closest"] for result in found["results"]} == {ids[3]}
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert live_index.live is not None
    assert (found["unknown"], found["fallback"], found["version"]) == ([], None, live_index.live.version)
    filtered = answer(ask("GET", f"/v1/similar/{quote(ids[3])}", params={"category": "news", "diversity": 0.5}))
    assert {result["video"]["fields"]["category"] for result in filtered["results"]} == {"news"}
    assert len(filtered["results"]) == 20


def test_recommend_gives_the_answer_of_the_index(ask: Ask, ids: list[str], live_index: IndexWatcher) -> None:
    body = {
        "history": [ids[3], "unknown", ids[9]],
        "weights": [1, 2.5, 0],
        "filters": {"popularity": {"gte": 10, "lt": 90}, "category": ["music", "news"]},
        "exclude": [ids[4]],
        "top_k": 7,
        "diversity": 0.3,
        "max_per_category": 4,
        "freshness": 0.1,
    }
    found = answer(ask("POST", "/v1/recommend", json=body))
    assert live_index.live is not None
    query = Query(**{**body, "history": tuple(body["history"]), "weights": (1, 2.5, 0), "exclude": (ids[4],)})  # type: ignore[arg-type]
    expected = live_index.live.index.recommend(query)
    assert [result["video"]["video_id"] for result in found["results"]] == [one.video_id for one in expected.results]
    assert [result["score"] for result in found["results"]] == pytest.approx(
        [one.score for one in expected.results], abs=1e-5
    )
    assert found["unknown"] == ["unknown"]
    assert len(found["results"]) == 7


def test_a_disliked_video_is_not_recommended(ask: Ask, ids: list[str]) -> None:
    plain = answer(ask("POST", "/v1/recommend", json={"history": [ids[3]], "top_k": 5}))
    first = plain["results"][0]["video"]["video_id"]
    body = {"history": [ids[3]], "dislikes": [first, "unknown"], "top_k": 200}
    found = answer(ask("POST", "/v1/recommend", json=body))
    assert len(found["results"]) == 198
    assert first not in [result["video"]["video_id"] for result in found["results"]]


def test_an_answer_says_how_it_was_ranked(ask: Ask, ids: list[str]) -> None:
    found = answer(ask("POST", "/v1/recommend", json={"history": [ids[3]], "strategy": "content"}))
    assert (found["strategy"], found["ranker"]) == ("content", None)
    assert {result["why"]["reason"] for result in found["results"]} == {"similar"}
    popular = answer(ask("POST", "/v1/recommend", json={}))
    assert popular["strategy"] == "popular"
    assert {result["why"]["reason"] for result in popular["results"]} == {"popular"}
    for strategy in ("ranker", "popular", "none"):  # this index has no ranker
        assert error(ask("POST", "/v1/recommend", json={"strategy": strategy})) == (422, "invalid_request")


def test_the_number_of_people_is_in_the_reasons(live_index: IndexWatcher) -> None:
    assert live_index.live is not None
    after = (
        Recommendation(0, "a", 1.0, reason="watched_after", after="b", num_users=31),
        Recommendation(1, "b", 0.9, reason="popular"),
        Recommendation(2, "c", 0.8, closest="b", similarity=0.5),
    )
    found = live_index.live.recommended(Recommendations(after, strategy="ranker", ranker="r1"))
    assert (found["strategy"], found["ranker"]) == ("ranker", "r1")
    reasons = [(one["why"]["reason"], one["why"]["after"], one["why"]["num_users"]) for one in found["results"]]
    assert reasons == [("watched_after", "b", 31), ("popular", None, None), ("similar", None, None)]


def test_nothing_watched_gives_popular_videos_and_says_so(ask: Ask) -> None:
    assert answer(ask("POST", "/v1/recommend", json={}))["fallback"] == "popular"
    found = answer(ask("POST", "/v1/recommend", json={"history": ["none"], "top_k": 200}))
    assert (found["fallback"], found["unknown"], len(found["results"])) == ("popular", ["none"], 200)


def test_a_batch_answers_each_request(ask: Ask, ids: list[str]) -> None:
    found = answer(ask("POST", "/v1/similar/batch", json={"video_ids": [ids[0], "none"], "top_k": 3}))["answers"]
    assert found[0] == answer(ask("GET", f"/v1/similar/{quote(ids[0])}", params={"top_k": 3}))
    assert found[1]["error"]["code"] == "not_found"
    requests = [{"history": [ids[0]], "top_k": 2}, {"filters": {"none": 1}}, {}]
    found = answer(ask("POST", "/v1/recommend/batch", json={"requests": requests}))["answers"]
    assert found[0] == answer(ask("POST", "/v1/recommend", json=requests[0]))
    assert (found[1]["error"]["code"], found[2]["fallback"]) == ("invalid_request", "popular")
