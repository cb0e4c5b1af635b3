"""The inputs of embed: list the videos of a folder or manifest, and plan new videos and videos that are gone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.config.embed import Gone
from raypipe.dataset.plan import MAX_PLAN_VIDEOS, PlannedVideo, StoredPlans, plan_table, planned_videos
from raypipe.dataset.planner import GoneVideos, Planner, Retry, Unlisted, normalised_input
from raypipe.errors import ConfigError, ObjectDeniedError, ObjectError, StorageError
from raypipe.storage import Folder, Listed, list_videos
from raypipe.storage.folder import normalise, place_of, storage_of
from raypipe.tables import is_table, read_text_columns
from raypipe.text import format_skipped

_COLUMNS = (schema.VIDEO_ID, schema.VIDEO_URI)
_STATS_AT_ONCE = 32
_STATS_AHEAD = 1024
MAX_UNGUARDED = 100  # up to this many videos may be marked as gone, even if max_gone_fraction allows fewer
_SHARD_MAX_BYTES = 1024**3  # a limit, so that the loss of a shard of large files does not cost hours of work


def find_videos(input_uri: str, *, output_uri: str, listed: Listed | None = None) -> Iterator[PlannedVideo]:
    """Yield every video of a folder, prefix, glob or manifest.

    A manifest is a ``.parquet``, ``.csv`` or ``.jsonl`` file with the column ``video_uri``. If the iteration ends
    without an exception, the listing is complete. The kind of the input is recorded in ``listed``.

    Raises:
        ConfigError: the manifest cannot be read, lacks a column, or does not give each video exactly one unique id.
        StorageError: the input cannot be listed, or the storage as a whole cannot be read.
    """
    listed = listed or Listed()
    if is_table(input_uri):
        listed.kind = "manifest"
        yield from _manifest_videos(input_uri)
        return
    for stored in list_videos(input_uri, exclude_under=output_uri, listed=listed):
        yield PlannedVideo.of(stored)


def _manifest_videos(uri: str) -> Iterator[PlannedVideo]:
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
            msg = f"{uri}: two videos have the video_id {video_id!r}: {both[0]!r} and {both[1]!r}."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=both, remedy="Give each video its own video_id.")
        if named.setdefault(located, video_id) != video_id:
            both = (named[located], video_id)
            msg = f"{uri}: {located!r} has two video_ids: {both[0]!r} and {both[1]!r}."
            raise ConfigError(msg, key=schema.VIDEO_URI, value=both, remedy="Give each video one video_id.")
    rows = iter(named.items())
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        while some := list(islice(rows, _STATS_AHEAD)):
            yield from pool.map(lambda row: _stat(*row), some)


def _locate(folder: Folder, video_uri: str) -> str:
    """Return the normalised URI of a video. A relative path is relative to the manifest's folder."""
    located = normalise(video_uri if "://" in video_uri or video_uri.startswith("/") else folder.child(video_uri))
    if located.startswith("s3://") and not any(located.split("/", 3)[3:]):
        msg = f"{video_uri!r} is a bucket, not a video."
        raise ConfigError(msg, key=schema.VIDEO_URI, value=video_uri, remedy="Write s3://BUCKET/KEY.")
    return located


def _stat(video_uri: str, video_id: str) -> PlannedVideo:
    """Look up one object and return it as a video to plan.

    A missing object, or one with denied access, is planned too. Its row will have that status.
    """
    try:
        stored = storage_of(video_uri).stat(video_uri)
    except StorageError:
        if not _is_denied(video_uri):
            raise
        stored = None
    if stored is None:
        return PlannedVideo(video_id, video_uri, "", 0)
    return PlannedVideo(video_id, stored.uri, stored.etag, stored.size_bytes)


def _is_denied(video_uri: str) -> bool:
    """Return whether access to this one object is denied.

    This sends a GET, because S3 does not give the reason for a failed HEAD.

    Raises:
        StorageError: the storage as a whole cannot be read.
    """
    try:
        storage_of(video_uri).read(video_uri, tail_bytes=1)
    except ObjectError as error:
        return isinstance(error, ObjectDeniedError)
    return False


@dataclass
class Planning:
    """Compares one listing of the input with the stored plans. Exhaust ``new_videos`` before you call ``gone``."""

    planner: Planner
    input_uri: str
    retry: Retry
    policy: Gone
    num_found: int = 0
    listed: Listed = field(default_factory=Listed)

    @classmethod
    def load(
        cls,
        plans: StoredPlans,
        settings: Mapping[str, Any],
        input_uri: str,
        *,
        retry: Retry = "none",
        gone: Gone = "auto",
    ) -> "Planning":
        """Read every stored plan. Raises the same errors as ``Planner.load``."""
        planner = Planner(plans, settings, normalised_input(input_uri))
        if gone == "mark" or (gone == "auto" and not is_table(input_uri)):
            planner.unlisted = Unlisted(plans, input_uri)
        planner.load()
        return cls(planner, input_uri, retry, gone)

    @property
    def may_mark(self) -> bool:
        """Return whether the listing could show that any planned video is gone."""
        return self.planner.unlisted is not None and self.planner.unlisted.num_planned > 0

    def new_videos(self) -> Iterator[PlannedVideo]:
        """List the input, and yield the videos to embed.

        Raises the same errors as ``find_videos`` and ``Planner.new_videos``.
        """
        found = find_videos(self.input_uri, output_uri=self.planner.plans.output.uri, listed=self.listed)
        return self.planner.new_videos(self._counted(found), retry=self.retry)

    def _counted(self, videos: Iterable[PlannedVideo]) -> Iterator[PlannedVideo]:
        for video in videos:
            self.num_found += 1
            yield video

    def check_found(self) -> None:
        """Raise ConfigError if neither the input nor any plan has a video, because the input is probably mistyped."""
        if not self.num_found and not self.planner.known:
            skipped = format_skipped(self.listed.skipped)
            msg = f"No videos found in {self.input_uri!r}.{f' Skipped: {skipped}.' if skipped else ''}"
            remedy = "Give a folder, prefix, glob or manifest that has videos."
            raise ConfigError(msg, key="input", value=self.input_uri, remedy=remedy)

    def gone(self) -> GoneVideos:
        """Return the planned videos that are missing from the complete listing.

        For a manifest or a glob, the result is empty unless the policy is ``mark``.
        """
        unlisted = self.planner.unlisted
        is_place = self.listed.kind not in {"glob", "manifest"}
        if unlisted is None or not (is_place or self.policy == "mark"):
            return GoneVideos(self.planner.plans, {}, 0)
        return unlisted.find(self.listed.covers)


def plan_listing(
    planning: Planning, *, max_gone_fraction: float, pack: Callable[[list[PlannedVideo]], pa.Table]
) -> list[int]:
    """Plan the videos that are new or gone, and return the numbers of the new plans.

    If videos can be marked as gone, the listing is read to its end before anything is planned.

    Raises:
        ConfigError: more videos are gone than ``max_gone_fraction`` allows, or an id belongs to another video. Nothing
            is planned in this case.
        StorageError: the input cannot be listed to its end.
    """
    if not planning.may_mark:
        return planning.planner.store(planning.new_videos(), pack=pack)
    new = _held(planning.new_videos())
    gone = planning.gone()
    if is_too_much(gone, max_gone_fraction=max_gone_fraction):
        msg = (
            f"{gone.num_videos} of the {gone.num_planned} videos of {planning.input_uri} are no longer there; "
            f"max_gone_fraction={max_gone_fraction:g} allows fewer. Nothing was planned."
        )
        remedy = "Check the input. If they were deleted, mark them with --set max_gone_fraction=1."
        raise ConfigError(
            msg, key="max_gone_fraction", value=gone.num_videos, expected=max_gone_fraction, remedy=remedy
        )
    return planning.planner.store(chain(new, gone), pack=pack)


def is_too_much(gone: GoneVideos, *, max_gone_fraction: float) -> bool:
    """Return whether so many videos are gone that the input is probably wrong."""
    return gone.num_videos > MAX_UNGUARDED and gone.fraction > max_gone_fraction


def _held(videos: Iterable[PlannedVideo]) -> Iterator[PlannedVideo]:
    """Read all videos immediately, and return an iterator over them.

    In between, they are held in memory as Arrow columns, which take a fifth of the memory of Python objects.
    """
    coming = iter(videos)
    batches = iter(lambda: list(islice(coming, MAX_PLAN_VIDEOS)), [])
    tables = [plan_table(batch, [0] * len(batch)) for batch in batches]
    return chain.from_iterable(map(planned_videos, tables))


def pack(
    videos: Iterable[PlannedVideo], *, max_videos: int, max_frames: int, frames_per_video: int, slots: int
) -> pa.Table:
    """Return a plan that assigns each video to a numbered shard.

    The videos with the most work come first. Shards are small enough for every slot (parallel actor) to get several.
    The work of a video is approximated by the size of its file.
    """
    ordered = sorted(videos, key=lambda video: (-video.size_bytes, video.video_uri, video.etag))
    per_shard = min(max_videos, max(1, max_frames // frames_per_video), max(1, -(-len(ordered) // (4 * slots))))
    shards: list[int] = []
    shard, members, size_bytes = 0, 0, 0
    for video in ordered:
        if members and (members == per_shard or size_bytes + video.size_bytes > _SHARD_MAX_BYTES):
            shard, members, size_bytes = shard + 1, 0, 0
        shards.append(shard)
        members += 1
        size_bytes += video.size_bytes
    return plan_table(ordered, shards)
