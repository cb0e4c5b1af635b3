"""Classify a shard of embedded videos: each video gets exactly one row, with the predictions for its own vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset.commit import missing_shards
from raypipe.dataset.embedded import read_shard
from raypipe.dataset.plan import StoredPlans
from raypipe.dataset.read import read_embeddings, read_rows
from raypipe.errors import CommitError, JobError
from raypipe.jobs.classify import shard as work
from raypipe.jobs.classify.verify import verify
from raypipe.runs.stages import output_rows
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder
from support.classify_outputs import NAMES, OPTIONS, FakeModel, classified_rows, classify_all, plan_new
from support.embed_outputs import (
    DIM,
    commit_statuses,
    content,
    embed_all,
    places,
    planner,
    replace_object,
    upload,
    video,
)
from support.embed_outputs import PACK as EMBED_PACK
from support.properties import examples


def rows_of(output: Folder) -> dict[str, dict[str, Any]]:
    rows = [row for table in read_rows(output) for row in table.to_pylist()]
    assert len({row[schema.VIDEO_ID] for row in rows}) == len(rows)
    return {row[schema.VIDEO_ID]: row for row in rows}


def one_shard(folder: Folder, videos: dict[str, bytes]) -> tuple[pa.Table, Folder]:
    source, embeddings = places(folder)
    upload(source, videos)
    embed_all(source, embeddings)
    output = Folder(folder.child("labels"))
    plan_new(embeddings, output, max_videos=100)
    return pa.concat_tables(missing_shards(StoredPlans(output), [0])), embeddings


def test_every_row_becomes_one_row_with_its_own_label(folder: Folder) -> None:
    source, embeddings = places(folder)
    output = Folder(folder.child("labels"))
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(7)} | {"bad.mp4": content("timeout")})
    embed_all(source, embeddings)
    assert classify_all(embeddings, output) == [0]
    result = verify(output)
    assert (result.violations, result.statuses) == ([], {"ok": 7, "timeout": 1})
    found = rows_of(output)
    embedded = {row[schema.VIDEO_ID]: row for table in read_embeddings(embeddings) for row in table.to_pylist()}
    assert found.keys() == embedded.keys()
    for video_id, row in found.items():
        vectors = np.array(embedded[video_id][schema.FRAME_EMBEDDINGS], np.float16).reshape(-1, DIM)
        assert (row[schema.STATUS], row[schema.ERROR]) == (
            embedded[video_id][schema.STATUS],
            embedded[video_id][schema.ERROR],
        )
        if len(vectors):
            probabilities = FakeModel().classify([vectors], frame_scores=False, batch_size=2).probabilities[0]
            order = np.argsort(-probabilities)
            assert row[schema.TOP_LABELS] == [NAMES[number] for number in order[:3]]
            assert row[schema.TOP_SCORES] == pytest.approx(probabilities[order[:3]])
            assert (row[schema.LABEL], row[schema.LABELS]) == (NAMES[order[0]], [NAMES[order[0]]])
            assert row[schema.NUM_FRAMES] == 3
            assert (row[schema.FRAME_SCORES], row[schema.ORDER_SCORES]) == ([0.5] * 3, [0, 1, 2])
        else:
            names = (schema.LABEL, schema.SCORE, schema.LABELS, schema.FRAME_SCORES, schema.ORDER_SCORES)
            assert [row[name] for name in names] == [None] * 5


@settings(max_examples=examples(25))
@given(
    generations=st.lists(
        st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([*map(str, Status)]), min_size=1),
        min_size=1,
        max_size=3,
    )
)
def test_every_row_that_counts_is_classified_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, generations: list[dict[str, str]]
) -> None:
    """Any sequence of embedding runs and statuses gives one row per video, and only new embeddings are classified."""
    folder = Folder(str(tmp_path_factory.mktemp("some")))
    embeddings, output = Folder(folder.child("out")), Folder(folder.child("labels"))
    last: dict[str, tuple[int, str]] = {}
    for generation, statuses in enumerate(generations):
        videos = [
            video(name, etag=f"e{generation}", is_gone=status == Status.GONE) for name, status in statuses.items()
        ]
        made = planner(embeddings)
        made.store(made.new_videos(videos), pack=EMBED_PACK)
        commit_statuses(embeddings, statuses)
        last |= {name: (generation, status) for name, status in statuses.items()}
        model = FakeModel()
        assert classify_all(embeddings, output, model) == [generation]
        assert model.shown == [3] * sum(status in HAS_FRAMES for status in statuses.values())
        assert plan_new(embeddings, output) == []
    assert verify(output).violations == []
    found = rows_of(output)
    assert {name: (row[schema.GENERATION], row[schema.STATUS]) for name, row in found.items()} == last
    assert all(row[schema.ETAG] == f"{row[schema.GENERATION]}-e{row[schema.GENERATION]}" for row in found.values())


def test_a_video_that_is_gone_loses_its_labels_until_it_comes_back(folder: Folder) -> None:
    source, embeddings = places(folder)
    output = Folder(folder.child("labels"))
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(4)})
    embed_all(source, embeddings)
    classify_all(embeddings, output)
    replace_object(source, "1.mp4", None)
    embed_all(source, embeddings)
    assert classify_all(embeddings, output) == [1]
    row = rows_of(output)["1.mp4"]
    assert (row[schema.STATUS], row[schema.GENERATION], row[schema.LABEL]) == ("gone", 1, None)
    assert (verify(output).violations, verify(output).statuses) == ([], {"ok": 4, "gone": 1})
    assert plan_new(embeddings, output) == []
    upload(source, {"1.mp4": content(seed=1)})
    embed_all(source, embeddings)
    assert classify_all(embeddings, output) == [2]
    row = rows_of(output)["1.mp4"]
    assert (row[schema.STATUS], row[schema.LABEL] is None) == ("ok", False)


def test_a_multi_label_model_gives_every_label_of_at_least_one_half(folder: Folder) -> None:
    rows, embeddings = one_shard(folder, {f"{number}.mp4": content(seed=number) for number in range(3)})
    model = FakeModel("multi_label_classification", sharpness=0.05, shift=0.2)
    made = classified_rows(rows, embeddings, model).to_pylist()
    assert any(0.5 < score < 0.6 for row in made for score in row[schema.TOP_SCORES])
    assert any(0.4 < score < 0.5 for row in made for score in row[schema.TOP_SCORES])
    for row in made:
        assert row[schema.LABEL] == row[schema.TOP_LABELS][0]
        likely = [
            name for name, score in zip(row[schema.TOP_LABELS], row[schema.TOP_SCORES], strict=True) if score >= 0.5
        ]
        assert row[schema.LABELS][:3] == likely


def test_a_model_of_few_labels_and_no_frame_scores(folder: Folder) -> None:
    rows, embeddings = one_shard(folder, {"a.mp4": content()})
    options = work.ClassifyOptions(top_k=5, frame_scores=False, batch_size=OPTIONS.batch_size)
    made = classified_rows(rows, embeddings, FakeModel(label_names=("yes", "no")), options)
    assert [made[name].to_pylist() for name in (schema.FRAME_SCORES, schema.ORDER_SCORES)] == [[None]] * 2
    assert sorted(made[schema.TOP_LABELS][0].as_py()) == ["no", "yes"]
    assert output_rows(made, schema.predictions_schema()).schema == schema.predictions_schema()


def test_a_shard_without_frames_does_not_call_the_model(folder: Folder) -> None:
    rows, embeddings = one_shard(folder, {"a.mp4": content("crashed"), "b.mp4": content("timeout")})
    model = FakeModel()
    made = classified_rows(rows, embeddings, model)
    assert (model.shown, made[schema.LABEL].to_pylist()) == ([], [None, None])
    about = work.summarize(made)
    assert (about.labels, about.size_bytes, len(about.failures)) == ({}, 0, 2)


def test_a_summary_counts_labels_and_time(folder: Folder) -> None:
    rows, embeddings = one_shard(folder, {f"{number}.mp4": content(seed=number) for number in range(3)})
    made = classified_rows(rows, embeddings, FakeModel())
    about = work.summarize(made)
    assert sum(about.labels.values()) == 3
    assert set(about.labels) <= set(NAMES)
    assert about.size_bytes == 9 * DIM * 2
    assert set(about.stage_seconds) == {"read", "classify"}


def test_invalid_probabilities_fail_the_shard(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, embeddings = one_shard(folder, {"a.mp4": content()})
    monkeypatch.setattr(FakeModel, "logits", lambda *_: np.full(4, np.nan))
    with pytest.raises(JobError) as caught:
        classified_rows(rows, embeddings, FakeModel())
    assert caught.value.key == schema.SCORE


@pytest.mark.parametrize("name", ["frame_scores", "order_scores"])
def test_invalid_scores_of_frames_fail_the_shard(folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows, embeddings = one_shard(folder, {"a.mp4": content()})
    classify = FakeModel.classify

    def invalid(*videos: Any, **options: Any) -> Any:  # noqa: ANN401
        said = classify(*videos, **options)
        getattr(said, name)[0][1] = np.inf
        return said

    monkeypatch.setattr(FakeModel, "classify", invalid)
    with pytest.raises(JobError):
        classified_rows(rows, embeddings, FakeModel())


def test_a_file_changed_since_the_seal_is_named(tmp_path: Path) -> None:
    rows, embeddings = one_shard(Folder(str(tmp_path)), {"a.mp4": content(), "b.mp4": content(seed=2)})
    name = rows[schema.EMBEDDINGS_FILE][0].as_py()
    uri = embeddings.child(name)
    with pytest.raises(CommitError) as caught:
        read_shard(rows, embeddings, embedding_dim=9)
    assert (caught.value.key, caught.value.value, caught.value.expected) == (uri, 8, 9)
    at = rows.schema.get_field_index(schema.ETAG)
    other = rows.set_column(at, schema.ETAG, pa.array(["0-x"] * rows.num_rows))
    with pytest.raises(CommitError) as caught:
        read_shard(other, embeddings, embedding_dim=DIM)
    assert (caught.value.key, caught.value.expected) == (uri, "0-x")
    assert f"raypipe verify {embeddings}" in caught.value.remedy
    at = rows.schema.get_field_index(schema.VIDEO_ID)
    stranger = rows.set_column(at, schema.VIDEO_ID, pa.array(["z"] * rows.num_rows))
    with pytest.raises(CommitError, match="'z'") as caught:
        read_shard(stranger, embeddings, embedding_dim=DIM)
    assert (caught.value.key, caught.value.expected) == (uri, rows[schema.ETAG][0].as_py())
    replace_object(embeddings, name, b"PAR1")
    with pytest.raises(CommitError) as caught:
        read_shard(rows, embeddings, embedding_dim=DIM)
    assert (caught.value.key, caught.value.expected) == (uri, None)
