"""Decide what is new, and store it as plans that any number of drivers agree on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa

from raypipe import schema
from raypipe.dataset import plan as plans
from raypipe.dataset.footer import read_parquet
from raypipe.dataset.gone import Unlisted, normalised_input
from raypipe.dataset.plan import Plan, Video, digest, gone_flags
from raypipe.errors import ConfigError
from raypipe.status import NOT_FAILED, TRANSIENT
from raypipe.storage import Folder
from raypipe.storage.tables import is_table

Retry = Literal["none", "transient", "all"]
Key = Literal["video_uri", "video_id"]
_READS_AT_ONCE = 16
_FAILED = {
    "none": frozenset[str](),
    "transient": frozenset(map(str, TRANSIENT)),
    "all": None,  # every status that is a failure
}


VideoT = TypeVar("VideoT", bound=Video)


@dataclass
class Planner:
    """What the stored plans hold, and the making of new ones.

    ``key`` tells one video from another. For each the last plan that holds it counts: an object that was replaced and
    then put back is new each time.
    """

    output: Folder
    settings: Mapping[str, Any]  # what makes the fingerprint
    input_uri: str = ""
    key: Key = "video_uri"
    known: dict[bytes, bytes] = field(default_factory=dict)  # a key -> its etag in the last plan that holds it: digests
    other_ids: dict[bytes, str] = field(default_factory=dict)  # digest of an id -> its URI, in plans of other inputs
    places: dict[bytes, bytes] = field(default_factory=dict)  # digest of an id -> of its URI, in plans of this manifest
    taken: set[bytes] = field(default_factory=set)  # digests of the keys that another driver planned meanwhile
    taken_ids: set[bytes] = field(default_factory=set)  # digests of their ids
    unlisted: Unlisted | None = None  # where it is wanted, which videos of this input a listing lacks
    next_number: int = 0

    def load(self) -> None:
        """Read every stored plan.

        Raises:
            FingerprintError: they were made with other settings.
            CommitError: a stored file is no plan.
        """
        for number in plans.plan_numbers(self.output):
            plan = plans.read_plan(self.output, number)
            keys = self._learn(plan)
            if self.unlisted is not None:
                self.unlisted.learn(plan, keys)

    def new_videos(self, found: Iterable[VideoT], *, retry: Retry = "none") -> Iterator[VideoT]:
        """Those of the videos found that are not planned as they are now, or whose row failed in a way to be retried.

        Raises:
            CommitError: a stored file is not what its name promises.
            ConfigError: a video has the id of another one, planned from another input.
        """
        again = failed_videos(self.output, retry=retry, key=self.key) if retry != "none" else set()
        seen: set[bytes] = set()
        for video in found:
            key = self._key(video)
            if self.unlisted is not None:
                self.unlisted.see(key)
            if key in seen or key in self.taken:
                continue
            if key in again or self._is_new(key, video):
                seen.add(key)
                self._check_id(video)
                if self.unlisted is not None:
                    self.unlisted.plans_anew(video)
                yield video
        if self.unlisted is not None:
            self.unlisted.end()

    def _key(self, video: Video) -> bytes:
        return digest(video.video_id if self.key == schema.VIDEO_ID else video.video_uri)

    def _is_new(self, key: bytes, video: Video) -> bool:
        planned = self.known.get(key)
        if planned is None or (planned == _GONE and not video.is_gone):
            return True
        if self.places and self.places.get(digest(video.video_id), key) != key:
            return True  # a manifest has given the id to another object since
        # One that is missing, and has no etag, keeps the row it has.
        return bool(video.etag) and planned != _version(video.etag, is_gone=video.is_gone)

    def _check_id(self, video: Video) -> None:
        """Within one input an id is one URI; of another input it may be another video, whose row it would supersede."""
        other = self.other_ids.get(digest(video.video_id), video.video_uri) if self.other_ids else video.video_uri
        if other != video.video_uri:
            msg = f"video_id {video.video_id!r} is {other!r} in {self.output} and would become {video.video_uri!r}."
            remedy = "Choose another output, or give a manifest with ids of its own."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=video.video_uri, expected=other, remedy=remedy)

    def store(self, videos: Iterable[VideoT], *, pack: Callable[[list[VideoT]], pa.Table]) -> list[int]:
        """Store plans for the videos; those that another driver plans meanwhile are left to it.

        ``pack`` makes the rows of a plan, its shards numbered from 0, of the videos of one.
        """
        stored: list[int] = []
        batch: list[VideoT] = []
        for video in videos:
            batch.append(video)
            if len(batch) == plans.MAX_PLAN_VIDEOS:
                stored += self._store_batch(batch, pack=pack)
                batch = []
        return stored + self._store_batch(batch, pack=pack)

    def _store_batch(self, batch: list[VideoT], *, pack: Callable[[list[VideoT]], pa.Table]) -> list[int]:
        mark = plans.fingerprint(self.settings)
        while batch := self._untaken(batch):
            plan = Plan(self.next_number, pack(batch), mark, self.settings, self.input_uri)
            if plans.put_plan(self.output, plan):
                self._learn(plan)
                return [plan.number]
            theirs = plans.read_plan(self.output, plan.number)
            self.taken.update(self._learn(theirs))
            self.taken_ids.update(map(digest, theirs.videos[schema.VIDEO_ID].to_pylist()))
        return []

    def _untaken(self, batch: list[VideoT]) -> list[VideoT]:
        """Leave out what another driver planned meanwhile; a video is not gone whose id has a new row."""
        if not self.taken:
            return batch
        return [
            video
            for video in batch
            if self._key(video) not in self.taken and not (video.is_gone and digest(video.video_id) in self.taken_ids)
        ]

    def _learn(self, plan: Plan) -> list[bytes]:
        """Take in a plan, and return the digests of its keys."""
        plans.check_fingerprint(plan, self.settings)
        keys, etags = (plan.videos[name].to_pylist() for name in (self.key, schema.ETAG))
        digests = [digest(key) for key in keys]
        flags = gone_flags(plan.videos)
        for key, etag, is_gone in zip(digests, etags, flags, strict=True):
            self.known[key] = _version(etag, is_gone=is_gone)
        if normalised_input(plan.input) != normalised_input(self.input_uri):
            ids, uris = (plan.videos[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
            for video_id, uri, is_gone in zip(ids, uris, flags, strict=True):
                self.other_ids[digest(video_id)] = uri
                if is_gone:
                    del self.other_ids[digest(video_id)]  # another video may have it
        elif self.key == schema.VIDEO_URI and is_table(plan.input):
            ids = map(digest, plan.videos[schema.VIDEO_ID].to_pylist())
            self.places.update(zip(ids, digests, strict=True))
        self.next_number = plan.number + 1
        return digests


def _version(etag: str, *, is_gone: bool) -> bytes:
    return digest(f"gone {etag}" if is_gone else etag)


_GONE = _version("", is_gone=True)


def failed_videos(output: Folder, *, retry: Retry, key: Key) -> set[bytes]:
    """Digests of the keys whose row of the highest generation failed in a way to be retried.

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
            failed.difference_update(map(digest, plan.videos[key].to_pylist()))
            for keys in pool.map(lambda name: _failed_keys(output, name, retry, key), committed.get(number, [])):
                failed.update(map(digest, keys))
    return failed


def _failed_keys(output: Folder, name: str, retry: Retry, key: Key) -> list[str]:
    statuses = _FAILED[retry]
    columns = read_parquet(output, name, columns=[key, schema.STATUS]).to_pydict()
    return [
        failed
        for failed, status in zip(columns[key], columns[schema.STATUS], strict=True)
        if (status in statuses if statuses is not None else status not in NOT_FAILED)
    ]
