"""What there is to embed: a listing of a bucket, or a manifest that names the videos."""

import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.errors import ConfigError, ObjectError
from raypipe.sealed.plan import Video
from raypipe.storage import Folder, list_videos
from raypipe.storage.folder import normalise, storage_of

_MANIFESTS = (".parquet", ".csv", ".jsonl")
_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI)
_STATS_AT_ONCE = 32
_STATS_AHEAD = 1024


def find_videos(input_uri: str, *, output_uri: str) -> Iterator[Video]:
    """Yield every video of a folder, prefix, glob or manifest (``.parquet``, ``.csv``, ``.jsonl`` with ``video_uri``).

    Raises:
        ConfigError: the manifest cannot be read, lacks a column, gives one id to two videos, or two ids to one.
        StorageError: the input cannot be listed.
    """
    if input_uri.lower().endswith(_MANIFESTS):
        yield from _manifest_videos(input_uri)
        return
    for stored in list_videos(input_uri, exclude_under=output_uri):
        yield Video.of(stored)


def _manifest_videos(uri: str) -> Iterator[Video]:
    folder_uri, _, name = normalise(uri).rpartition("/")
    folder = Folder(folder_uri or "/")
    table = _read_manifest(folder, name)
    uris = table[schema.VIDEO_URI].to_pylist()
    ids = table[schema.VIDEO_ID].to_pylist() if schema.VIDEO_ID in table.column_names else uris
    named: dict[str, str] = {}  # URI -> id
    uri_of: dict[str, str] = {}
    for video_id, video_uri in zip(ids, uris, strict=True):
        if not video_id or not video_uri:
            msg = f"{uri}: a row lacks its video_uri or video_id. Every row needs a video_uri."
            raise ConfigError(msg)
        located = _locate(folder, video_uri)
        if uri_of.setdefault(video_id, located) != located:
            msg = f"{uri}: video_id {video_id!r} names {uri_of[video_id]!r} and {located!r}. Give each video its own."
            raise ConfigError(msg)
        if named.setdefault(located, video_id) != video_id:
            msg = f"{uri}: {located!r} is both {named[located]!r} and {video_id!r}. Give each video one video_id."
            raise ConfigError(msg)
    rows = iter(named.items())
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        while some := list(islice(rows, _STATS_AHEAD)):
            yield from pool.map(lambda row: _stat(*row), some)


def _locate(folder: Folder, video_uri: str) -> str:
    """The normalised URI; one without a scheme is relative to the manifest's folder."""
    located = normalise(video_uri if "://" in video_uri or video_uri.startswith("/") else folder.child(video_uri))
    if located.startswith("s3://") and not any(located.split("/", 3)[3:]):
        msg = f"{video_uri!r} names a bucket and no video. Write s3://BUCKET/KEY."
        raise ConfigError(msg)
    return located


def _stat(video_uri: str, video_id: str) -> Video:
    """Ask for one named object; one that is gone is planned all the same, and becomes a row that says so."""
    stored = storage_of(video_uri).stat(video_uri)
    if stored is None:
        return Video(video_id, video_uri, "", 0)
    return Video(video_id, stored.uri, stored.etag, stored.size_bytes)


def _read_manifest(folder: Folder, name: str) -> pa.Table:
    """Read the columns ``video_uri`` and, where there is one, ``video_id``, both as text exactly as it is written."""
    try:
        data = io.BytesIO(folder.read(name))
        if name.lower().endswith(".parquet"):
            table = pq.read_table(data)
        elif name.lower().endswith(".csv"):  # an id such as 007 is no number
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
            newlines = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(data, parse_options=newlines, convert_options=as_text)
        else:
            table = _read_json_lines(data)
        if schema.VIDEO_URI not in table.column_names:
            columns = ", ".join(table.column_names) or "none"
            msg = f"{folder.child(name)} has no column 'video_uri'; its columns are {columns}."
            raise ConfigError(msg)
        names = [column for column in _COLUMNS if column in table.column_names]
        return table.select(names).cast(pa.schema([(column, pa.string()) for column in names]))
    except (pa.ArrowException, ObjectError, OSError, KeyError, ValueError) as error:
        msg = f"Cannot read the manifest {folder.child(name)}: {' '.join(str(error).split())}"
        raise ConfigError(msg) from None


def _read_json_lines(lines: Iterable[bytes]) -> pa.Table:
    """Not by Arrow, which would take an id that looks like a date for one."""
    keys: dict[str, None] = {}
    rows: list[list[Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line.decode("utf-8-sig")))
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"line {number} is not a JSON object: {error}"
            raise ValueError(msg) from None
        keys.update(dict.fromkeys(row))
        rows.append([str(value) if isinstance(value := row.get(column), int) else value for column in _COLUMNS])
    texts = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=False))
    return pa.table({key: pa.array(texts[key], pa.string()) if key in texts else pa.nulls(len(rows)) for key in keys})
