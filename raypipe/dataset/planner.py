"""Decide what to plan: new, changed and failed videos, and videos that a complete listing no longer contains."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.footer import read_parquet
from raypipe.dataset.plan import (
    MAX_PLAN_VIDEOS,
    Plan,
    PlannedVideo,
    StoredPlans,
    check_fingerprint,
    digest,
    fingerprint,
    gone_flags,
    parse_data_name,
)
from raypipe.errors import ConfigError
from raypipe.status import NOT_FAILED, TRANSIENT
from raypipe.storage import Folder
from raypipe.tables import is_table

Retry = Literal["none", "transient", "all"]
Key = Literal["video_uri", "video_id"]
_READS_AT_ONCE = 16
_FAILED = {
    "none": frozenset[str](),
    "transient": frozenset(map(str, TRANSIENT)),
    "all": None,  # every status that is a failure
}
VideoT = TypeVar("VideoT", bound=PlannedVideo)


def normalised_input(uri: str) -> str:
    """Return the canonical spelling of an input: no trailing slash, and an absolute path if it is local."""
    try:
        return Folder(uri).uri
    except ConfigError:  # a job without an input, or a storage that only an earlier version supported
        return uri


@dataclass(frozen=True, slots=True)
class GoneVideos:
    """The videos to mark as gone. Iterating reads the plans again, so that only digests are kept in memory."""

    plans: StoredPlans
    latest: dict[bytes, int]  # digest of a video_id -> the last plan that contains it
    num_planned: int  # videos of the input that were planned, and not gone, before the listing

    @property
    def num_videos(self) -> int:
        """Return the number of gone videos."""
        return len(self.latest)

    @property
    def fraction(self) -> float:
        """Return the fraction of the input's planned videos that are gone."""
        return self.num_videos / max(self.num_planned, self.num_videos, 1)

    def __iter__(self) -> Iterator[PlannedVideo]:
        for number in sorted(set(self.latest.values())):
            videos = self.plans.read(number).rows
            ids, uris = (videos[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
            for video_id, uri in zip(ids, uris, strict=True):
                if self.latest.get(digest(video_id)) == number:
                    yield PlannedVideo(video_id, uri, "", 0, is_gone=True)


class Unlisted:
    """The planned videos of an input that the listing of the input has not returned so far, as digests.

    Call ``learn`` for each plan, ``see`` for each listed video, ``plans_anew`` for each video that gets a new row,
    ``end`` after the last video, and then ``find``.
    """

    def __init__(self, plans: StoredPlans, input_uri: str) -> None:
        self._plans = plans
        self._input_uri = normalised_input(input_uri)
        self._numbers: list[int] = []
        self._uris: set[bytes] = set()
        self._new_ids: set[bytes] = set()
        self._num_planned = 0
        self._is_complete = False

    @property
    def num_planned(self) -> int:
        """Return how many videos of the input were planned, and not gone, before the listing."""
        return self._num_planned

    def learn(self, plan: Plan, uris: Sequence[bytes]) -> None:
        """Add the next plan; ``uris`` are the digests of the URIs of its rows."""
        self._numbers.append(plan.number)
        if normalised_input(plan.input) != self._input_uri:
            return
        for uri, is_gone in zip(uris, gone_flags(plan.rows), strict=True):
            if is_gone:
                self._uris.discard(uri)
            else:
                self._uris.add(uri)
        self._num_planned = len(self._uris)

    def see(self, uri: bytes) -> None:
        """Note that the listing contains the URI with this digest."""
        self._uris.discard(uri)

    def plans_anew(self, video: PlannedVideo) -> None:
        """Note that this video gets a new row. So its id is not gone, even if its previous URI is gone."""
        self._new_ids.add(digest(video.video_id))

    def end(self) -> None:
        """Note that the listing is complete."""
        self._is_complete = True

    def find(self, covers: Callable[[str], bool]) -> GoneVideos:
        """Return the videos that are gone. If the listing was not read to its end, there are no such videos.

        A video is gone if its last plan belongs to this input and the listing does not contain its URI. ``covers``
        returns whether the listing would contain a URI if the video existed.
        """
        latest: dict[bytes, int] = {}
        if self._uris and self._is_complete:
            for number in self._numbers:
                self._follow(self._plans.read(number), latest, covers)
        return GoneVideos(self._plans, latest, self._num_planned)

    def _follow(self, plan: Plan, latest: dict[bytes, int], covers: Callable[[str], bool]) -> None:
        is_same = normalised_input(plan.input) == self._input_uri
        ids, uris = (plan.rows[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
        for video_id, uri, is_gone in zip(ids, uris, gone_flags(plan.rows), strict=True):
            key = digest(video_id)
            latest.pop(key, None)  # this plan is later than the noted one
            is_left = is_same and not is_gone and digest(uri) in self._uris
            if is_left and key not in self._new_ids and covers(uri):
                latest[key] = plan.number


@dataclass
class Planner:
    """Reads the stored plans and stores new ones.

    ``key`` is the column that identifies a video. Only the last plan that contains a video counts. So if an object is
    replaced and later restored, it is planned both times.
    """

    plans: StoredPlans
    settings: Mapping[str, Any]  # the fingerprint is their digest
    input_uri: str = ""
    key: Key = "video_uri"
    known: dict[bytes, bytes] = field(default_factory=dict)  # digest of a key -> digest of its etag in the last plan
    other_ids: dict[bytes, str] = field(default_factory=dict)  # digest of an id -> URI, from plans of other inputs
    places: dict[bytes, bytes] = field(default_factory=dict)  # digests: id -> URI, from plans of this manifest
    taken: set[bytes] = field(default_factory=set)  # digests of keys that another driver planned during this run
    taken_ids: set[bytes] = field(default_factory=set)  # digests of ids that another driver planned during this run
    unlisted: Unlisted | None = None  # if given, it finds the videos of this input that a listing lacks
    next_number: int = 0

    def load(self) -> None:
        """Read every stored plan.

        Raises:
            FingerprintError: a plan was made with other settings.
            CommitError: a stored file is not a plan.
        """
        for number in self.plans.numbers():
            plan = self.plans.read(number)
            keys = self._learn(plan)
            if self.unlisted is not None:
                self.unlisted.learn(plan, keys)

    def new_videos(self, found: Iterable[VideoT], *, retry: Retry = "none") -> Iterator[VideoT]:
        """Yield the found videos that are new, that have changed, or whose failed row is to be retried.

        Raises:
            CommitError: the content of a stored file does not match its name.
            ConfigError: a video has the same id as a different video of another input.
        """
        again = failed_videos(self.plans, retry=retry, key=self.key) if retry != "none" else set()
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

    def _key(self, video: PlannedVideo) -> bytes:
        return digest(video.video_id if self.key == schema.VIDEO_ID else video.video_uri)

    def _is_new(self, key: bytes, video: PlannedVideo) -> bool:
        planned = self.known.get(key)
        if planned is None or (planned == _GONE and not video.is_gone):
            return True
        if self.places and self.places.get(digest(video.video_id), key) != key:
            return True  # the manifest has since given the id to another object
        # A missing video has no etag. It keeps its previous row.
        return bool(video.etag) and planned != _version(video.etag, is_gone=video.is_gone)

    def _check_id(self, video: PlannedVideo) -> None:
        """Raise ConfigError if a video of another input has the same id, because the new row would replace its row."""
        other = self.other_ids.get(digest(video.video_id), video.video_uri) if self.other_ids else video.video_uri
        if other != video.video_uri:
            msg = f"In {self.plans.output}, video_id {video.video_id!r} is {other!r}; here it is {video.video_uri!r}."
            remedy = "Choose another output, or use a manifest with other ids."
            raise ConfigError(msg, key=schema.VIDEO_ID, value=video.video_uri, expected=other, remedy=remedy)

    def store(self, videos: Iterable[VideoT], *, pack: Callable[[list[VideoT]], pa.Table]) -> list[int]:
        """Store plans for the videos, and return the numbers of these plans.

        Videos that another driver plans in the meantime are left out. ``pack`` converts the videos of one plan to the
        rows of the plan, with shards numbered from 0.
        """
        stored: list[int] = []
        batch: list[VideoT] = []
        for video in videos:
            batch.append(video)
            if len(batch) == MAX_PLAN_VIDEOS:
                stored += self._store_batch(batch, pack=pack)
                batch = []
        return stored + self._store_batch(batch, pack=pack)

    def _store_batch(self, batch: list[VideoT], *, pack: Callable[[list[VideoT]], pa.Table]) -> list[int]:
        mark = fingerprint(self.settings)
        while batch := self._untaken(batch):
            plan = Plan(self.next_number, pack(batch), mark, self.settings, self.input_uri)
            if self.plans.put(plan):
                self._learn(plan)
                return [plan.number]
            theirs = self.plans.read(plan.number)
            self.taken.update(self._learn(theirs))
            self.taken_ids.update(map(digest, theirs.rows[schema.VIDEO_ID].to_pylist()))
        return []

    def _untaken(self, batch: list[VideoT]) -> list[VideoT]:
        """Return the videos that no other driver has planned in the meantime.

        A video that has disappeared is also left out if another driver has planned a new row with the same id.
        """
        if not self.taken:
            return batch
        return [
            video
            for video in batch
            if self._key(video) not in self.taken and not (video.is_gone and digest(video.video_id) in self.taken_ids)
        ]

    def _learn(self, plan: Plan) -> list[bytes]:
        """Take in a plan, and return the digests of its keys."""
        check_fingerprint(plan, self.settings)
        keys, etags = (plan.rows[name].to_pylist() for name in (self.key, schema.ETAG))
        digests = [digest(key) for key in keys]
        flags = gone_flags(plan.rows)
        for key, etag, is_gone in zip(digests, etags, flags, strict=True):
            self.known[key] = _version(etag, is_gone=is_gone)
        if normalised_input(plan.input) != normalised_input(self.input_uri):
            ids, uris = (plan.rows[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
            for video_id, uri, is_gone in zip(ids, uris, flags, strict=True):
                self.other_ids[digest(video_id)] = uri
                if is_gone:
                    del self.other_ids[digest(video_id)]  # so another video may use this id
        elif self.key == schema.VIDEO_URI and is_table(plan.input):
            ids = map(digest, plan.rows[schema.VIDEO_ID].to_pylist())
            self.places.update(zip(ids, digests, strict=True))
        self.next_number = plan.number + 1
        return digests


def _version(etag: str, *, is_gone: bool) -> bytes:
    return digest(f"gone {etag}" if is_gone else etag)


_GONE = _version("", is_gone=True)


def failed_videos(plans: StoredPlans, *, retry: Retry, key: Key) -> set[bytes]:
    """Return the digests of the keys of videos whose latest row has a failed status that ``retry`` selects.

    A video that is planned again but has no row yet is not included.

    Raises:
        CommitError: the content of a stored file does not match its name.
    """
    failed: set[bytes] = set()
    committed: dict[int, list[str]] = {}
    output = plans.output
    for stored in output.list("data/"):
        name = parse_data_name(stored.key)
        if name:
            committed.setdefault(name[0], []).append(stored.key)
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        for number in plans.numbers():
            plan = plans.read(number)
            failed.difference_update(map(digest, plan.rows[key].to_pylist()))
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
