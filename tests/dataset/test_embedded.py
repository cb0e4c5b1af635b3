"""Plan sealed embeddings: every row that counts is in one shard, and files are split only at the limits."""

from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset.embedded import StoredEmbedding, find_embedded, frames_per_video, pack
from raypipe.dataset.read import embedding_dim, embeddings_manifests
from raypipe.errors import CommitError, ConfigError, FingerprintError, JobError
from raypipe.storage import Folder
from support.classify_outputs import plan_new
from support.embed_outputs import DIM, content, embed_all, make_output, places, replace_object, upload
from support.properties import examples

FILES = st.dictionaries(st.sampled_from([f"data/{number}" for number in range(9)]), st.integers(1, 7), min_size=1)
LIMITS = {"max_videos": st.integers(1, 9), "max_frames": st.integers(1, 60), "frames_per_video": st.integers(1, 9)}


@settings(max_examples=examples(200))
@given(files=FILES, limits=st.fixed_dictionaries({**LIMITS, "slots": st.integers(1, 4)}))
def test_a_file_is_cut_only_at_the_limits(files: dict[str, int], limits: dict[str, int]) -> None:
    videos = [
        StoredEmbedding(f"{file}-{number}", f"s3://v/{file}-{number}", "0-e", 1, file)
        for file, count in files.items()
        for number in range(count)
    ]
    rows = pack(videos, **limits).to_pylist()
    assert sorted(row[schema.VIDEO_ID] for row in rows) == sorted(video.video_id for video in videos)
    shards = [row[schema.SHARD] for row in rows]
    assert shards[0] == 0
    assert all(after - before in {0, 1} for before, after in pairwise(shards))
    at_most = min(limits["max_videos"], max(1, limits["max_frames"] // limits["frames_per_video"]))
    members, homes = defaultdict(list), defaultdict(set)
    for row in rows:
        members[row[schema.SHARD]].append(row[schema.EMBEDDINGS_FILE])
        homes[row[schema.EMBEDDINGS_FILE]].add(row[schema.SHARD])
    for_every_slot = max(1, -(-len(rows) // (4 * limits["slots"])))
    for of_shard in members.values():
        assert len(of_shard) <= at_most
        assert len(set(of_shard)) == 1 or len(of_shard) <= for_every_slot
    assert all(len(homes[file]) == -(-count // at_most) for file, count in files.items())


def test_sealed_embeddings_are_found_with_their_sizes(folder: Folder) -> None:
    embeddings = make_output(folder)
    manifests = embeddings_manifests(embeddings)
    found = list(find_embedded(embeddings, manifests))
    assert sorted(video.video_id for video in found) == sorted([*(f"{number}.mp4" for number in range(6)), "new.mp4"])
    assert {video.file for video in found} == {file["name"] for manifest in manifests for file in manifest["files"]}
    assert embedding_dim(embeddings, manifests) == DIM
    assert frames_per_video(manifests) == 3  # 17 frames of 7 videos


def test_a_newer_embedding_replaces_the_older(folder: Folder) -> None:
    source, embeddings = places(folder)
    upload(source, {"a.mp4": content(), "b.mp4": content(seed=1)})
    embed_all(source, embeddings)
    replace_object(source, "a.mp4", content(seed=2))
    embed_all(source, embeddings)
    found = {video.video_id: video for video in find_embedded(embeddings, embeddings_manifests(embeddings))}
    assert {name: video.etag.partition("-")[0] for name, video in found.items()} == {"a.mp4": "1", "b.mp4": "0"}
    assert found["a.mp4"].file == "data/00001-000000.parquet"


def test_only_sealed_embeddings_are_accepted(folder: Folder) -> None:
    embeddings = make_output(folder)
    output = Folder(folder.child("labels"))
    with pytest.raises(JobError) as caught:
        embeddings_manifests(output)
    assert (caught.value.key, caught.value.value) == (output.uri, None)
    assert plan_new(embeddings, output) == [0]
    with pytest.raises(JobError) as caught:
        embeddings_manifests(output)
    assert (caught.value.key, caught.value.value) == (output.uri, [0])
    assert "raypipe classify" in caught.value.remedy
    replace_object(embeddings, "manifests/00001.json", None)
    with pytest.raises(JobError) as caught:
        embeddings_manifests(embeddings)
    assert (caught.value.key, caught.value.value) == (embeddings.uri, [1])
    assert "raypipe embed" in caught.value.remedy


def test_other_settings_for_the_same_output_are_refused(folder: Folder) -> None:
    embeddings, output = make_output(folder), Folder(folder.child("labels"))
    plan_new(embeddings, output)
    with pytest.raises(FingerprintError) as caught:
        plan_new(embeddings, output, settings={"job": "classify", "format": 1, "model": "n"})
    assert (caught.value.expected["model"], caught.value.value["model"]) == ("m", "n")


def test_an_id_of_other_embeddings_is_refused(folder: Folder) -> None:
    places_of = [places(Folder(folder.child(name))) for name in ("first", "second")]
    for seed, (source, embeddings) in enumerate(places_of):
        upload(source, {"same.mp4": content(seed=seed)})
        embed_all(source, embeddings)
    output = Folder(folder.child("labels"))
    plan_new(places_of[0][1], output)
    with pytest.raises(ConfigError, match=r"'same\.mp4'") as caught:
        plan_new(places_of[1][1], output)
    first, second = (source.child("same.mp4") for source, _ in places_of)
    assert caught.value.key == schema.VIDEO_ID
    assert (caught.value.expected, caught.value.value) == (first, second)
    assert caught.value.remedy


def test_a_file_that_holds_no_embeddings_is_named(folder: Folder) -> None:
    embeddings = make_output(folder)
    manifests = embeddings_manifests(embeddings)
    name = manifests[-1]["files"][0]["name"]
    replace_object(embeddings, name, b"PAR1")
    with pytest.raises(CommitError) as caught:
        embedding_dim(embeddings, manifests)
    assert caught.value.key == embeddings.child(name)
    assert "raypipe verify" in caught.value.remedy
