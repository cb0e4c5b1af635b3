"""What there is to embed: a listing of a bucket, or a manifest that names the videos."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from raypipe import schema
from raypipe.dataset.plan import Video
from raypipe.errors import ConfigError, ObjectDeniedError, ObjectError, StorageError
from raypipe.storage import Folder, Listed, list_videos
from raypipe.storage.folder import normalise, place_of, storage_of
from raypipe.storage.tables import is_table, read_text_columns

_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI)
_STATS_AT_ONCE = 32
_STATS_AHEAD = 1024


def find_videos(input_uri: str, *, output_uri: str, listed: Listed | None = None) -> Iterator[Video]:
    """Yield every video of a folder, prefix, glob or manifest (``.parquet``, ``.csv``, ``.jsonl`` with ``video_uri``).

    It ends when the input holds no other; ``listed`` is told what kind of input it was.

    Raises:
        ConfigError: the manifest cannot be read, lacks a column, gives one id to two videos, or two ids to one.
        StorageError: the input cannot be listed, or none of the named objects be read.
    """
    listed = listed or Listed()
    if is_table(input_uri):
        listed.kind = "manifest"
        yield from _manifest_videos(input_uri)
        return
    for stored in list_videos(input_uri, exclude_under=output_uri, listed=listed):
        yield Video.of(stored)


def _manifest_videos(uri: str) -> Iterator[Video]:
    folder, name = place_of(uri)
    table = read_text_columns(folder, name, _COLUMNS, required=(schema.VIDEO_URI,), what="manifest")
    uris = table[schema.VIDEO_URI].to_pylist()
    ids = table[schema.VIDEO_ID].to_pylist() if schema.VIDEO_ID in table.column_names else uris
    named: dict[str, str] = {}  # URI -> id
    uri_of: dict[str, str] = {}
    for number, (video_id, video_uri) in enumerate(zip(ids, uris, strict=True), start=1):
        if not video_id or not video_uri:
            column, empty = (schema.VIDEO_ID, video_id) if video_uri else (schema.VIDEO_URI, video_uri)
            msg = f"{uri}: row {number} has no {column}."
            raise ConfigError(msg, key=column, value=empty, remedy="Fill it in every row.")
        located = _locate(folder, video_uri)
        if uri_of.setdefault(video_id, located) != located:
            both = (uri_of[video_id], located)
            msg = f"{uri}: video_id {video_id!r} names {both[0]!r} and {both[1]!r}."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=both, remedy="Give each video its own.")
        if named.setdefault(located, video_id) != video_id:
            both = (named[located], video_id)
            msg = f"{uri}: {located!r} is both {both[0]!r} and {both[1]!r}."
            raise ConfigError(msg, key=schema.VIDEO_URI, value=both, remedy="Give each video one video_id.")
    rows = iter(named.items())
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        while some := list(islice(rows, _STATS_AHEAD)):
            yield from pool.map(lambda row: _stat(*row), some)


def _locate(folder: Folder, video_uri: str) -> str:
    """The normalised URI; one without a scheme is relative to the manifest's folder."""
    located = normalise(video_uri if "://" in video_uri or video_uri.startswith("/") else folder.child(video_uri))
    if located.startswith("s3://") and not any(located.split("/", 3)[3:]):
        msg = f"{video_uri!r} names a bucket and no video."
        raise ConfigError(msg, key=schema.VIDEO_URI, value=video_uri, remedy="Write s3://BUCKET/KEY.")
    return located


def _stat(video_uri: str, video_id: str) -> Video:
    """Ask for one named object; one that is gone or denied is planned all the same, and becomes a row that says so."""
    try:
        stored = storage_of(video_uri).stat(video_uri)
    except StorageError:
        if not _is_denied(video_uri):
            raise
        stored = None
    if stored is None:
        return Video(video_id, video_uri, "", 0)
    return Video(video_id, stored.uri, stored.etag, stored.size_bytes)


def _is_denied(video_uri: str) -> bool:
    """Tell whether this object alone may not be read: S3 gives the reason to a GET, and to no HEAD.

    Raises:
        StorageError: no object can be read.
    """
    try:
        storage_of(video_uri).read(video_uri, tail_bytes=1)
    except ObjectError as error:
        return isinstance(error, ObjectDeniedError)
    return False
