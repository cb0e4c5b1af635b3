"""The whole job without Ray: the content of a version, appending to it, and what is refused before any work."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raypipe import schema
from raypipe.config import IndexConfig
from raypipe.dataset.commit import describe_shard, missing_shards, put_shard, seal, unsealed_plans
from raypipe.dataset.plan import StoredPlans, fingerprint
from raypipe.errors import ConfigError, FingerprintError, IndexVersionError, JobError, RaypipeError
from raypipe.jobs.index.job import run_index
from raypipe.runs.stages import output_rows
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.classify_outputs import FakeModel, classified_rows
from support.classify_outputs import plan_new as plan_labels
from support.embed_outputs import (
    MARK,
    SETTINGS,
    VERSIONS,
    content,
    embed_all,
    make_output,
    places,
    plan_new,
    replace_object,
    upload,
)
from support.train_runs import DIM, video_ids
from support.train_runs import embed_all as embed_numbers

OTHER_SETTINGS = {**SETTINGS, "backbone": "other"}


def configured(embeddings: Folder, output: Folder, **keys: Any) -> IndexConfig:  # noqa: ANN401
    return IndexConfig(**{"embeddings": embeddings.uri, "output": output.uri} | keys)


def opened(output: Folder, cache: Path, version: str | None = None) -> VideoIndex:
    versions = Versions(output)
    version = version or versions.require_current()
    return VideoIndex.load(versions.fetch(version, cache), versions.read_manifest(version))


def classify(embeddings: Folder, output: Folder, *, of: str = MARK, sealed: bool = True) -> Folder:
    """Commit predictions for the embeddings of ``make_output``."""
    settings = {"job": "classify", "format": 1, "model": "m", "embeddings": of}
    plan_labels(embeddings, output, settings=settings)
    for rows in missing_shards(StoredPlans(output), unsealed_plans(output)):
        plan, shard = rows["generation"][0].as_py(), rows["shard"][0].as_py()
        made = output_rows(classified_rows(rows, embeddings, FakeModel()), schema.predictions_schema())
        assert put_shard(output, made, describe_shard(made, plan=plan, shard=shard, fingerprint=fingerprint(settings)))
    if sealed:
        assert all(seal(StoredPlans(output), number, versions=VERSIONS) for number in unsealed_plans(output))
    return output


def catalogue_of(folder: Folder, ids: Sequence[str], *, name: str = "catalogue.csv") -> str:
    lines = [f"{one},Title of {one},{one.partition('/')[0]},{at}" for at, one in enumerate(ids)]
    folder.put(name, "\n".join(["video_id,title,category,popularity", *lines]).encode())
    return folder.child(name)


def test_a_version_holds_all_sealed_rows(folder: Folder, tmp_path: Path) -> None:
    embeddings = embed_numbers(Folder(folder.child("embeddings")), video_ids())
    output = Folder(folder.child("index"))
    catalogue = catalogue_of(folder, [*video_ids()[:90], "no/such.mp4"])
    run = run_index(configured(embeddings, output, catalogue=catalogue))
    made = run.manifest
    assert run.is_new
    assert (made["num_videos"], made["kind"], made["embedding_dim"], made["previous"]) == (96, "flat", DIM, None)
    assert made["recall_at_10"] == 1
    assert (run.joined.num_not_embedded, run.joined.num_uncatalogued) == (1, 6)
    assert made["embeddings"] == {
        "uri": embeddings.uri,
        "fingerprint": MARK,
        "settings": SETTINGS,
        "num_plans": 1,
    }
    assert {"title", "category", "popularity", "video_id", "duration_seconds"} <= set(made["columns"])
    assert Versions(output).current() == made["id"]
    index = opened(output, tmp_path / "cache")
    position = index.items.position("cat/000.mp4")
    assert position is not None
    row = index.items.row(position)
    assert (row["title"], row["category"], row["popularity"]) == ("Title of cat/000.mp4", "cat", 0)
    assert (row["video_uri"], row["generation"], row["label"]) == ("s3://nowhere/cat/000.mp4", 0, None)
    similar = [one.video_id for one in index.similar("cat/000.mp4", top_k=10).results]
    assert len(similar) == 10
    assert sum(one.startswith("cat/") for one in similar) >= 8


def test_new_videos_are_appended(folder: Folder, tmp_path: Path) -> None:
    embeddings, output = Folder(folder.child("embeddings")), Folder(folder.child("index"))
    embed_numbers(embeddings, video_ids(40))
    catalogue = catalogue_of(folder, video_ids(60))
    config = configured(embeddings, output, append=True, catalogue=catalogue)
    first = run_index(config)
    assert (first.is_new, first.changes) == (True, None), "the first version is a whole one"
    again = run_index(config)
    assert (again.is_new, again.manifest) == (False, first.manifest)
    assert Versions(output).list() == [first.manifest["id"]]

    embed_numbers(embeddings, video_ids(60)[40:])
    second = run_index(config)
    assert second.changes is not None
    assert (second.changes.num_new, second.changes.num_changed, second.changes.num_deleted) == (20, 0, 0)
    assert second.manifest["previous"] == first.manifest["id"]
    assert second.manifest["trained"] == first.manifest["trained"], "nothing was learned again"
    index = opened(output, tmp_path / "cache")
    assert len(index.items) == 60
    before = opened(output, tmp_path / "cache", first.manifest["id"])
    np.testing.assert_array_equal(index.projection.matrix, before.projection.matrix)

    catalogue_of(folder, video_ids(59))
    third = run_index(config)
    assert third.changes is not None
    assert third.changes.describes_anew
    assert third.manifest["previous"] == second.manifest["id"]
    assert not run_index(config).is_new
    wider = run_index(configured(embeddings, output, append=True, catalogue=catalogue, index={"dim": 4}))
    assert (wider.is_new, wider.manifest["dim"]) == (True, 4)


def test_a_video_that_changed_and_one_that_failed_since(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    embeddings, output, source = make_output(place), Folder(place.child("index")), places(place)[0]
    run_index(configured(embeddings, output))
    replace_object(source, "3.mp4", content(seed=33))
    replace_object(source, "4.mp4", content("crashed"))
    upload(source, {"6.mp4": content(seed=6)})
    embed_all(source, embeddings)
    run = run_index(configured(embeddings, output, append=True))
    assert run.changes is not None
    assert (run.changes.num_new, run.changes.num_changed, run.changes.num_deleted) == (1, 1, 1)
    index = opened(output, tmp_path / "cache")
    assert index.items.position("4.mp4") is None
    assert run.num_left_out == 3


@pytest.mark.parametrize("append", [False, True])
def test_a_video_that_is_gone_leaves_the_index(folder: Folder, tmp_path: Path, append: bool) -> None:  # noqa: FBT001
    (source, embeddings), output = places(folder), Folder(folder.child("index"))
    names = [f"{number:02d}.mp4" for number in range(12)]
    upload(source, {name: content(seed=at) for at, name in enumerate(names)})
    embed_all(source, embeddings)
    config = configured(embeddings, output, append=append)
    assert run_index(config).manifest["num_videos"] == 12
    for name in names[:3]:
        replace_object(source, name, None)
    embed_all(source, embeddings)
    run = run_index(config)
    assert (run.manifest["num_videos"], run.num_left_out) == (9, 0)
    if append:
        assert run.changes is not None
        assert (run.changes.num_new, run.changes.num_changed, run.changes.num_deleted) == (0, 0, 3)
    index = opened(output, tmp_path / "cache")
    assert [index.items.position(name) is None for name in names] == [True] * 3 + [False] * 9
    answer = index.recommend(Query(history=(names[0], names[5]), top_k=12))
    assert not {one.video_id for one in answer.results} & {*names[:3]}
    upload(source, {names[0]: content(seed=0)})
    embed_all(source, embeddings)
    assert run_index(config).manifest["num_videos"] == 10


def test_labels_are_joined_with_their_videos(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    embeddings, output = make_output(place), Folder(place.child("index"))
    labels = classify(embeddings, Folder(place.child("labels")))
    run = run_index(configured(embeddings, output, labels=labels.uri))
    assert (run.joined.num_unlabelled, run.num_left_out) == (0, 2)
    predicted = {
        row["video_id"]: (row["label"], row["score"])
        for stored in labels.list("data/")
        for row in pq.read_table(labels.child(stored.key)).to_pylist()
    }
    items = pq.read_table(f"{output.uri}/versions/{run.manifest['id']}/items.parquet").to_pylist()
    assert len(items) == 5
    assert {row["video_id"]: (row["label"], row["score"]) for row in items}.items() <= predicted.items()
    assert all(row["label"] for row in items)


def test_a_mismatch_is_one_line_before_any_work(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    embeddings, output = make_output(place), Folder(place.child("index"))
    labels = classify(embeddings, Folder(place.child("labels")))
    other_labels = classify(embeddings, Folder(place.child("other labels")), of="0" * 16)
    unsealed_labels = classify(embeddings, Folder(place.child("unsealed labels")), sealed=False)
    unsealed, nothing = Folder(place.child("unsealed")), Folder(place.child("nothing"))
    plan_new(places(place)[0].uri, unsealed)
    colliding = Folder(place.child("c"))
    colliding.put("c.csv", b"video_id,score\na,1\n")

    def of(**keys: str) -> IndexConfig:
        return configured(embeddings, output, **keys)

    refused: list[tuple[IndexConfig, type[RaypipeError], str, object, str]] = [
        (configured(unsealed, output), JobError, unsealed.uri, [0], "raypipe embed again"),
        (configured(nothing, output), JobError, nothing.uri, None, "raypipe embed"),
        (configured(labels, output), ConfigError, labels.uri, "classify", "raypipe embed"),
        (configured(embeddings, embeddings), ConfigError, embeddings.uri, None, ""),
        (configured(embeddings, labels), ConfigError, labels.uri, None, ""),
        (of(labels=embeddings.uri), ConfigError, embeddings.uri, "embed", "raypipe classify"),
        (of(labels=unsealed_labels.uri), JobError, unsealed_labels.uri, [0], "raypipe classify"),
        (of(labels=other_labels.uri), FingerprintError, other_labels.uri, "0" * 16, "raypipe classify"),
        (of(catalogue=colliding.child("c.csv")), ConfigError, "score", None, "video_uri"),
        (of(catalogue=colliding.child("d.csv")), ConfigError, colliding.child("d.csv"), None, ""),
    ]
    for config, kind, key, value, remedy in refused:
        with pytest.raises(kind) as raised:
            run_index(config)
        assert (raised.value.key, raised.value.value) == (key, value)
        assert raised.value.expected == (MARK if kind is FingerprintError else None)
        assert remedy in raised.value.remedy
        assert str(raised.value).isprintable()
    assert not Path(output.uri).exists()


def test_embeddings_of_another_fingerprint_are_not_appended(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    embeddings, output = make_output(place), Folder(place.child("index"))
    first = run_index(configured(embeddings, output))
    other = Folder(place.child("other"))
    embed_numbers(other, video_ids(20), settings=OTHER_SETTINGS)
    with pytest.raises(FingerprintError) as raised:
        run_index(configured(other, output, append=True))
    error = raised.value
    assert (error.key, error.value, error.expected) == (first.manifest["id"], MARK, fingerprint(OTHER_SETTINGS))
    assert str(other) in str(error)
    assert "--append" in error.remedy
    run = run_index(configured(other, output))
    assert (run.manifest["num_videos"], run.manifest["previous"]) == (20, first.manifest["id"])


def test_a_broken_version_is_not_appended_to(tmp_path: Path) -> None:
    place = Folder(str(tmp_path))
    embeddings, output = make_output(place), Folder(place.child("index"))
    first = run_index(configured(embeddings, output)).manifest["id"]
    replace_object(output, f"versions/{first}/vectors.npy", b"")
    with pytest.raises(IndexVersionError):
        run_index(configured(embeddings, output, append=True))
    assert run_index(configured(embeddings, output)).manifest["previous"] == first


def test_nothing_is_left_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    embeddings, output = make_output(Folder(str(tmp_path))), Folder(str(tmp_path / "index"))
    run_index(configured(embeddings, output))
    assert list(work.iterdir()) == []
    assert json.loads(output.read(f"versions/{Versions(output).current()}/manifest.json"))["num_videos"] == 5
