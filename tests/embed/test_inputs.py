"""Find the videos to embed, in a listing or a manifest, on both kinds of storage."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.dataset.plan import PlannedVideo
from raypipe.dataset.read import read_embeddings
from raypipe.errors import ConfigError
from raypipe.jobs.embed.fetch import fetch_video
from raypipe.jobs.embed.inputs import find_videos
from raypipe.jobs.embed.verify import verify
from raypipe.status import Status
from raypipe.storage import Folder
from support.embed_outputs import DIM, PACK, content, finish, places, planner, replace_object, upload

NAMES = ["a.mp4", "b/c.MOV", "b/d/e"]
ODD_NAMES = [
    "a b.mp4",
    "é/日本 😀.mp4",
    "new\nline.mp4",
    "#1?x=2.mp4",
    "50%25+.mp4",
    "x[1]*.mp4",
    "'quote\",.mp4",
    "\u202egpj.mp4",
]
KINDS = ("parquet", "csv", "jsonl")


def find(uri: str, output_uri: str = "") -> list[PlannedVideo]:
    return sorted(find_videos(uri, output_uri=output_uri), key=lambda video: video.video_id)


def ids(uri: str, output_uri: str = "") -> list[str]:
    return [video.video_id for video in find(uri, output_uri)]


def put_table(folder: Folder, kind: str, columns: dict[str, list[str]], name: str = "manifest") -> str:
    """Write a manifest and return its URI."""
    table = pa.table(columns)
    file = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file)
    elif kind == "csv":
        quoted = [
            [f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row] for row in zip(*columns.values(), strict=True)
        ]
        file.write("\n".join([",".join(columns), *map(",".join, quoted)]).encode())
    else:
        table.to_pandas().to_json(file, orient="records", lines=True)
    return put(folder, f"{name}.{kind}", file.getvalue())


def put(folder: Folder, name: str, data: bytes) -> str:
    assert folder.put_new(name, data)
    return folder.child(name)


# Listings


def test_a_folder_a_prefix_a_glob_and_one_object(folder: Folder) -> None:
    upload(folder, dict.fromkeys(NAMES, b"x") | {"b/d/e.json": b"{}"})
    assert ids(folder.uri) == ids(f"{folder.uri}/") == NAMES
    assert ids(folder.child("b")) == ["c.MOV", "d/e"]
    assert ids(folder.child("b/c.MOV")) == ["c.MOV"]
    assert ids(folder.child("b/**")) == ["c.MOV", "d/e", "d/e.json"]
    assert ids(folder.child("*/*.MOV")) == ["b/c.MOV"]
    assert ids(folder.child("nowhere")) == []


def test_a_video_is_what_its_storage_says(folder: Folder) -> None:
    upload(folder, {"b/c.mp4": b"12345"})
    stored = folder.stat("b/c.mp4")
    assert stored
    assert find(folder.uri) == [PlannedVideo("b/c.mp4", folder.child("b/c.mp4"), stored.etag, 5)]


def test_an_output_inside_the_input_is_left_out(folder: Folder) -> None:
    upload(folder, {"a.mp4": content(), "out2/b.mp4": content(seed=1)})
    output = Folder(folder.child("out"))
    made = planner(output)
    made.store(find_videos(folder.uri, output_uri=output.uri), pack=PACK)
    finish(output)
    upload(output, {"clip.mp4": b"x"})
    assert ids(folder.uri, output.uri) == ids(folder.uri, f"{output.uri}/") == ["a.mp4", "out2/b.mp4"]
    with pytest.raises(ConfigError) as caught:
        find(folder.uri, folder.uri)
    assert (caught.value.key, caught.value.value) == ("output", folder.uri)


def test_odd_names_are_planned_fetched_and_read_as_they_are(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {name: content(seed=at) for at, name in enumerate(ODD_NAMES)})
    assert ids(source.uri) == sorted(ODD_NAMES)
    made = planner(output)
    made.store(find_videos(source.uri, output_uri=output.uri), pack=PACK)
    finish(output)
    rows = pa.concat_tables(read_embeddings(output, columns=["video_id", "status"])).to_pylist()
    assert {row["video_id"]: row["status"] for row in rows} == dict.fromkeys(ODD_NAMES, "ok")
    assert verify(output).violations == []


def test_a_local_name_that_is_not_utf8_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / b"caf\xe9.mp4".decode(errors="surrogateescape")).write_bytes(b"x")
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert ids(str(tmp_path)) == ["a.mp4"]
    assert len(caplog.records) == 1
    assert "UTF-8" in caplog.text
    assert r"caf\udce9.mp4" in caplog.text


# Manifests


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_names_videos_anywhere(folder: Folder, kind: str) -> None:
    source, other = places(folder)
    upload(source, {"a.mp4": b"1", "b/c.mp4": b"22"})
    upload(other, {"d.mp4": b"333"})
    uris = ["a.mp4", "b/c.mp4", other.child("d.mp4")]
    uri = put_table(source, kind, {"video_uri": uris, "more": ["x", "y", "z"], "video_id": ["1st", "2nd", "3rd"]})
    stored = [source.stat("a.mp4"), source.stat("b/c.mp4"), other.stat("d.mp4")]
    assert find(uri) == [
        PlannedVideo(name, one.uri, one.etag, size)
        for name, one, size in zip(["1st", "2nd", "3rd"], stored, [1, 2, 3], strict=True)
        if one
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_without_ids_the_uris_as_they_are_written_are_the_ids(folder: Folder, kind: str) -> None:
    upload(folder, dict.fromkeys(ODD_NAMES, b"x"))
    uris = [*ODD_NAMES[:4], *map(folder.child, ODD_NAMES[4:])]
    uri = put_table(folder, kind, {"video_uri": uris})
    found = find(uri)
    assert [video.video_id for video in found] == sorted(uris)
    assert sorted(video.video_uri for video in found) == sorted(map(folder.child, ODD_NAMES))
    assert all(video.etag for video in found)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_kept_as_they_are_written(folder: Folder, kind: str) -> None:
    written = ["007", "1e5", "2024-01-01", "true", "null", "NaN", " x "]
    upload(folder, {f"{at}.mp4": b"x" for at in range(len(written))})
    for at, one in enumerate([written, ["2024-01-01", "2024-01-02"], ["007", "008"], ["true", "false"]]):
        uris = [f"{number}.mp4" for number in range(len(one))]
        uri = put_table(folder, kind, {"video_id": one, "video_uri": uris}, name=f"manifest-{at}")
        assert ids(uri) == sorted(one)


def test_ids_that_are_numbers_become_text(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"x", "b.mp4": b"x"})
    file = io.BytesIO()
    pq.write_table(pa.table({"video_id": [7, 12], "video_uri": ["a.mp4", "b.mp4"]}), file)
    assert ids(put(folder, "m.parquet", file.getvalue())) == ["12", "7"]
    lines = b'\xef\xbb\xbf{"video_id": 7, "video_uri": "a.mp4"}\r\n\r\n{"video_uri": "b.mp4", "video_id": 12, "x": [1]}'
    assert ids(put(folder, "m.jsonl", lines)) == ["12", "7"]
    assert ids(put(folder, "m.csv", b"\xef\xbb\xbfvideo_id,video_uri\r\n7,a.mp4\r\n12,b.mp4\r\n")) == ["12", "7"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_object_that_is_missing_becomes_a_row(folder: Folder, kind: str) -> None:
    uri = put_table(folder, kind, {"video_uri": ["gone.mp4"]})
    assert find(uri) == [PlannedVideo("gone.mp4", folder.child("gone.mp4"), "", 0)]
    fetched = fetch_video(find(uri)[0], max_size_bytes=100)
    assert (fetched.status, fetched.file) == (Status.MISSING, None)
    assert fetched.error.startswith(folder.child("gone.mp4"))
    output = Folder(folder.child("out"))
    planner(output).store(find_videos(uri, output_uri=output.uri), pack=PACK)
    finish(output)
    assert verify(output).statuses == {"missing": 1}
    assert next(read_embeddings(output)).schema.field("embedding").type.list_size == DIM


def test_an_object_that_appears_after_it_was_planned_has_changed(folder: Folder) -> None:
    uri = put_table(folder, "csv", {"video_uri": ["late.mp4"]})
    found = find(uri)[0]
    upload(folder, {"late.mp4": b"x"})
    assert fetch_video(found, max_size_bytes=100).status is Status.CHANGED


def test_a_repeated_row_is_one_video(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"x"})
    assert ids(put_table(folder, "csv", {"video_uri": ["a.mp4", "a.mp4"]})) == ["a.mp4"]


def test_a_manifest_in_capitals_is_a_manifest(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"x"})
    assert ids(put(folder, "M.CSV", b"video_uri\na.mp4\n")) == ["a.mp4"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_of_thousands_is_read_in_order_and_once(tmp_path: Path, kind: str) -> None:
    names = [f"{number:04d}.mp4" for number in range(2500)]
    for name in names[::500]:
        (tmp_path / name).write_bytes(b"x")
    uri = put_table(Folder(str(tmp_path)), kind, {"video_uri": names})
    found = list(find_videos(uri, output_uri=""))
    assert [video.video_id for video in found] == names
    assert [video.video_id for video in found if video.etag] == names[::500]


# Errors of the whole manifest name its URI and quote the parser; all other errors name the column.
UNREADABLE = [
    ("m.csv", b"", ""),
    ("m.csv", b"video_uri\n\xff\n", r"\b2\b.*UTF-8"),
    ("m.csv", b"video_uri,video_id\na\n", r"\b2\b.*\b1\b.*\b2\b"),
    ("m.csv", b'video_uri,video_id\na,1\nb,"2\nc,3\n', r"\b3\b"),
    ("m.jsonl", b'{"video_uri": "a"}\n{oops', r"\b2\b.* property name "),
    ("m.jsonl", b"[1, 2]", r"\b1\b.*\[1, 2\]"),
    ("m.jsonl", b"7", r"\b1\b.* 7\b"),
    ("m.jsonl", b"[" * 100_000, r"\b1\b"),
    ("m.jsonl", b'{"video_uri": "\xff"}', r"\b1\b.* 0xff "),
    ("m.jsonl", b'{"video_uri": "\\ud800"}', r"\b1\b.* surrogates not allowed"),
    ("m.jsonl", b'{"video_uri": {"x": 1}}', r"\b1\b.*\{'x': 1\}"),
    ("m.parquet", b"", " 0 bytes"),
    ("m.parquet", b"PAR1" + b"\xff" * 64 + b"\x20\0\0\0PAR1", "thrift|Thrift"),
]
FAULTY = [
    ("m.csv", b"video_id\nx\n", {"key": "video_uri", "value": 0, "expected": 1}),
    ("m.csv", b"video_uri,video_uri\na,b\n", {"key": "video_uri", "value": 2, "expected": 1}),
    ("m.jsonl", b"", {"key": "video_uri", "value": 0, "expected": 1}),
    ("m.jsonl", b'{"x": 1}\n{"y": 1}', {"key": "video_uri", "value": 0, "expected": 1}),
    ("m.csv", b"video_uri,video_id\n,b\n", {"key": "video_uri", "value": ""}),
    ("m.csv", b"video_uri,video_id\na,\n", {"key": "video_id", "value": ""}),
    ("m.jsonl", b'{"video_uri": "a"}\n{"x": 1}', {"key": "video_uri", "value": None, "expected": None}),
    ("m.csv", b"video_uri\ns3://bucket\n", {"key": "video_uri", "value": "s3://bucket"}),
    ("m.csv", b"video_uri\ns3://bucket/\n", {"key": "video_uri", "value": "s3://bucket/"}),
]


def refused(folder: Folder, name: str, data: bytes) -> ConfigError:
    """Put a manifest and return the error of reading it, which must be one line."""
    uri = put(folder, name, data)
    with pytest.raises(ConfigError) as caught:
        find(uri)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "data", "reason"), UNREADABLE)
def test_a_manifest_that_cannot_be_read_is_named(folder: Folder, name: str, data: bytes, reason: str) -> None:
    error = refused(folder, name, data)
    assert error.key == folder.child(name)
    assert re.search(reason, str(error).partition(error.key)[2])


@pytest.mark.parametrize(("name", "data", "fields"), FAULTY)
def test_a_manifest_that_is_wrong_is_named(folder: Folder, name: str, data: bytes, fields: dict[str, object]) -> None:
    error = refused(folder, name, data)
    assert {field: getattr(error, field) for field in fields} == fields


def test_a_uri_of_another_storage_is_named(folder: Folder) -> None:
    message = str(refused(folder, "m.csv", b"video_uri\ngs://bucket/x\n"))
    assert "'gs://bucket/x'" in message
    assert "s3://BUCKET/" in message


def test_one_id_of_two_videos_is_named(folder: Folder) -> None:
    error = refused(folder, "m.csv", b"video_id,video_uri\nx,a\nx,b\n")
    assert (error.key, error.value) == ("video_id", (folder.child("a"), folder.child("b")))
    assert "'x'" in str(error)


def test_two_ids_of_one_video_are_named(folder: Folder) -> None:
    error = refused(folder, "m.csv", b"video_id,video_uri\nx,a\ny,a\n")
    assert (error.key, error.value) == ("video_uri", ("x", "y"))
    assert folder.child("a") in str(error)


def test_a_parquet_without_text_is_named(folder: Folder) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"video_uri": [["a"]]}), file)
    uri = put(folder, "m.parquet", file.getvalue())
    with pytest.raises(ConfigError, match="list") as caught:
        find(uri)
    assert caught.value.key == uri


def test_a_missing_manifest_is_named(folder: Folder) -> None:
    with pytest.raises(ConfigError) as caught:
        find(folder.child("none.csv"))
    assert caught.value.key == folder.child("none.csv")


def test_a_manifest_without_rows_names_nothing(folder: Folder) -> None:
    assert find(put(folder, "m.csv", b"video_uri\n")) == []


def test_a_listing_finds_replaced_objects(folder: Folder) -> None:
    upload(folder, {"a.mp4": b"x"})
    before = find(folder.uri)[0]
    replace_object(folder, "a.mp4", b"yy")
    after = find(folder.uri)[0]
    assert (after.video_uri, after.size_bytes) == (before.video_uri, 2)
    assert after.etag != before.etag
