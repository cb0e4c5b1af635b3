"""What there is to embed: a listing of a bucket, or a manifest that names the videos."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed.plan import Video
from raypipe.errors import ConfigError, ObjectError
from raypipe.storage import Folder, list_videos

_MANIFESTS = (".parquet", ".csv", ".jsonl")
_STATS_AT_ONCE = 32
_STATS_AHEAD = 1024


def find_videos(input_uri: str, *, output_uri: str) -> Iterator[Video]:
    """Yield every video of a folder, prefix, glob or manifest (``.parquet``, ``.csv``, ``.jsonl`` with ``video_uri``).

    Raises:
        ConfigError: the manifest cannot be read, lacks a column, or gives one id to two videos.
        StorageError: the input cannot be listed.
    """
    if input_uri.endswith(_MANIFESTS):
        yield from _manifest_videos(input_uri)
        return
    for stored in list_videos(input_uri, exclude_under=output_uri):
        yield Video.of(stored)


def _manifest_videos(uri: str) -> Iterator[Video]:
    folder_uri, _, name = Folder(uri).uri.rpartition("/")
    folder = Folder(folder_uri or "/")
    table = _read_manifest(folder, name)
    uris = table[schema.VIDEO_URI].to_pylist()
    ids = table[schema.VIDEO_ID].to_pylist() if schema.VIDEO_ID in table.column_names else uris
    seen: dict[str, str] = {}
    for video_id, video_uri in zip(ids, uris, strict=True):
        if not video_id or not video_uri:
            msg = f"{uri}: a row lacks its video_uri or video_id. Every row needs a video_uri."
            raise ConfigError(msg)
        if seen.setdefault(video_id, video_uri) != video_uri:
            msg = f"{uri}: video_id {video_id!r} names {seen[video_id]!r} and {video_uri!r}. Give each video its own."
            raise ConfigError(msg)
    named = iter(seen.items())
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        while some := list(islice(named, _STATS_AHEAD)):
            yield from pool.map(lambda item: _stat(folder, *item), some)


def _stat(folder: Folder, video_id: str, video_uri: str) -> Video:
    """Ask for one named object; one that is gone is planned all the same, and becomes a row that says so."""
    located = video_uri if "://" in video_uri or video_uri.startswith("/") else folder.child(video_uri)
    parent, _, name = Folder(located).uri.rpartition("/")
    stored = Folder(parent or "/").stat(name)
    if stored is None:
        return Video(video_id, Folder(located).uri, "", 0)
    return Video(video_id, stored.uri, stored.etag, stored.size_bytes)


def _read_manifest(folder: Folder, name: str) -> pa.Table:
    try:
        data = io.BytesIO(folder.read(name))
        if name.endswith(".parquet"):
            table = pq.read_table(data)
        elif name.endswith(".csv"):
            table = pyarrow.csv.read_csv(data)
        else:
            table = pyarrow.json.read_json(data)
        if schema.VIDEO_URI not in table.column_names:
            msg = f"{folder.child(name)} has no column 'video_uri'; its columns are {', '.join(table.column_names)}."
            raise ConfigError(msg)
        names = [column for column in (schema.VIDEO_ID, schema.VIDEO_URI) if column in table.column_names]
        return table.select(names).cast(pa.schema([(column, pa.string()) for column in names]))
    except (pa.ArrowException, ObjectError) as error:
        msg = f"Cannot read the manifest {folder.child(name)}: {' '.join(str(error).split())}"
        raise ConfigError(msg) from None
