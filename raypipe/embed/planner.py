"""Decide what is new, and store it as plans that any number of drivers agree on."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed import plan as plans
from raypipe.embed.plan import Plan, Video
from raypipe.errors import CommitError, ConfigError
from raypipe.status import HAS_FRAMES, TRANSIENT
from raypipe.storage import Folder

Retry = Literal["none", "transient", "all"]
_READS_AT_ONCE = 16
_FAILED = {
    "none": frozenset[str](),
    "transient": frozenset(map(str, TRANSIENT)),
    "all": None,  # every status without frames
}


@dataclass(frozen=True, slots=True)
class Packing:
    """How large a shard may be."""

    max_videos: int
    max_frames: int
    frames_per_video: int
    slots: int  # actors that will work at once


@dataclass
class Planner:
    """What the stored plans hold, and the making of new ones.

    For each URI the last plan that holds it counts: an object that was replaced and then put back is new each time.
    """

    output: Folder
    settings: Mapping[str, Any]  # what makes the fingerprint
    input_uri: str = ""
    known: dict[bytes, bytes] = field(default_factory=dict)  # a URI -> its etag in the last plan that holds it: digests
    other_ids: dict[bytes, str] = field(default_factory=dict)  # digest of an id -> its URI, in plans of other inputs
    taken: set[bytes] = field(default_factory=set)  # digests of the URIs that another driver planned meanwhile
    next_number: int = 0

    def load(self) -> None:
        """Read every stored plan.

        Raises:
            FingerprintError: they were made with other settings.
            CommitError: a stored file is no plan.
        """
        for number in plans.plan_numbers(self.output):
            self._learn(plans.read_plan(self.output, number))

    def new_videos(self, found: Iterable[Video], *, retry: Retry) -> Iterator[Video]:
        """Those of the videos found that are not planned as they are now, or whose row failed in a way to be retried.

        Raises:
            CommitError: a stored file is not what its name promises.
            ConfigError: a video has the id of another one, planned from another input.
        """
        again = failed_videos(self.output, retry=retry) if retry != "none" else set()
        seen: set[bytes] = set()
        for video in found:
            uri = _digest(video.video_uri)
            if uri in seen or uri in self.taken:
                continue
            if uri in again or self._is_new(uri, video.etag):
                seen.add(uri)
                self._check_id(video)
                yield video

    def _is_new(self, uri: bytes, etag: str) -> bool:
        planned = self.known.get(uri)
        if planned is None:
            return True
        return bool(etag) and planned != _digest(etag)  # one that is gone, and has no etag, keeps the row it has

    def _check_id(self, video: Video) -> None:
        """Within one input an id is one URI; of another input it may be another video, whose row it would supersede."""
        other = self.other_ids.get(_digest(video.video_id), video.video_uri) if self.other_ids else video.video_uri
        if other != video.video_uri:
            msg = (
                f"video_id {video.video_id!r} is {other!r} in {self.output} and would become {video.video_uri!r}. "
                "Choose another output, or give a manifest with ids of its own."
            )
            raise ConfigError(msg)

    def store(self, videos: Iterable[Video], *, packing: Packing) -> list[int]:
        """Store plans for the videos; those that another driver plans meanwhile are left to it."""
        stored: list[int] = []
        batch: list[Video] = []
        for video in videos:
            batch.append(video)
            if len(batch) == plans.MAX_PLAN_VIDEOS:
                stored += self._store_batch(batch, packing=packing)
                batch = []
        return stored + self._store_batch(batch, packing=packing)

    def _store_batch(self, batch: list[Video], *, packing: Packing) -> list[int]:
        mark = plans.fingerprint(self.settings)
        while batch:
            table = plans.pack(
                batch,
                max_videos=packing.max_videos,
                max_frames=packing.max_frames,
                frames_per_video=packing.frames_per_video,
                slots=packing.slots,
            )
            plan = Plan(self.next_number, table, mark, self.settings, self.input_uri)
            if plans.put_plan(self.output, plan):
                self._learn(plan)
                return [plan.number]
            self.taken |= self._learn(plans.read_plan(self.output, plan.number))
            batch = [video for video in batch if _digest(video.video_uri) not in self.taken]
        return []

    def _learn(self, plan: Plan) -> set[bytes]:
        plans.check_fingerprint(plan, self.settings)
        uris, etags = (plan.videos[name].to_pylist() for name in (schema.VIDEO_URI, schema.ETAG))
        planned = {_digest(uri): _digest(etag) for uri, etag in zip(uris, etags, strict=True)}
        self.known |= planned
        if plan.input != self.input_uri:
            ids = plan.videos[schema.VIDEO_ID].to_pylist()
            self.other_ids |= {_digest(video_id): uri for video_id, uri in zip(ids, uris, strict=True)}
        self.next_number = plan.number + 1
        return set(planned)


def _digest(text: str) -> bytes:
    """12 bytes that stand for a URI or an etag: of a hundred million, two are alike with probability 1e-13."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def failed_videos(output: Folder, *, retry: Retry) -> set[bytes]:
    """Digests of the URIs whose row of the highest generation failed in a way to be retried.

    A video that is planned again and has no row yet is not among them.

    Raises:
        CommitError: a stored file is not what its name promises.
    """
    failed: set[bytes] = set()
    committed: dict[int, list[str]] = {}
    for stored in output.list("data/"):
        name = plans.parse_data_name(stored.key)
        if name:
            committed.setdefault(name[0], []).append(stored.key)
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        for number in plans.plan_numbers(output):
            plan = plans.read_plan(output, number)
            failed.difference_update(map(_digest, plan.videos[schema.VIDEO_URI].to_pylist()))
            for uris in pool.map(lambda name: _failed_uris(output, name, retry), committed.get(number, [])):
                failed.update(map(_digest, uris))
    return failed


def _failed_uris(output: Folder, name: str, retry: Retry) -> list[str]:
    statuses = _FAILED[retry]
    try:
        with output.open_input(name) as file:
            columns = pq.read_table(file, columns=[schema.VIDEO_URI, schema.STATUS]).to_pydict()
        return [
            uri
            for uri, status in zip(columns[schema.VIDEO_URI], columns[schema.STATUS], strict=True)
            if (status in statuses if statuses is not None else status not in HAS_FRAMES)
        ]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        msg = f"{output.child(name)} cannot be read: {' '.join(str(error).split())}. Run raypipe verify."
        raise CommitError(msg) from None
