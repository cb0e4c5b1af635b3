"""Decide what is new, and store it as plans that any number of drivers agree on."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.parquet as pq

from raypipe import schema
from raypipe.embed import plan as plans
from raypipe.embed.plan import Plan, Video
from raypipe.status import HAS_FRAMES, TRANSIENT
from raypipe.storage import Folder

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
    """What the stored plans hold, and the making of new ones."""

    output: Folder
    settings: Mapping[str, Any]  # what makes the fingerprint
    known: set[bytes] = field(default_factory=set)  # digest of every planned (uri, etag)
    next_number: int = 0

    def load(self) -> None:
        """Read every stored plan.

        Raises:
            FingerprintError: they were made with other settings.
        """
        for number in plans.plan_numbers(self.output):
            self._learn(plans.read_plan(self.output, number))

    def new_videos(self, found: Iterable[Video], *, retry: Literal["none", "transient", "all"]) -> Iterator[Video]:
        """Those of the videos found that no plan holds, or whose last row failed in a way to be retried."""
        again = failed_videos(self.output, retry=retry) if retry != "none" else set()
        seen: set[bytes] = set()
        for video in found:
            digest = video.digest
            if digest not in seen and (digest not in self.known or digest in again):
                seen.add(digest)
                yield video

    def store(self, videos: Iterable[Video], *, input_uri: str, packing: Packing) -> list[int]:
        """Store plans for the videos; those that another driver plans meanwhile are left to it."""
        stored: list[int] = []
        batch: list[Video] = []
        for video in videos:
            batch.append(video)
            if len(batch) == plans.MAX_PLAN_VIDEOS:
                stored += self._store_batch(batch, input_uri=input_uri, packing=packing)
                batch = []
        return stored + self._store_batch(batch, input_uri=input_uri, packing=packing)

    def _store_batch(self, batch: list[Video], *, input_uri: str, packing: Packing) -> list[int]:
        mark = plans.fingerprint(self.settings)
        while batch:
            table = plans.pack(
                batch,
                max_videos=packing.max_videos,
                max_frames=packing.max_frames,
                frames_per_video=packing.frames_per_video,
                slots=packing.slots,
            )
            plan = Plan(self.next_number, table, mark, self.settings, input_uri)
            created = plans.put_plan(self.output, plan)
            taken = self._learn(plan if created else plans.read_plan(self.output, plan.number))
            if created:
                return [plan.number]
            batch = [video for video in batch if video.digest not in taken]
        return []

    def _learn(self, plan: Plan) -> set[bytes]:
        plans.check_fingerprint(plan, self.settings)
        uris, etags = (plan.videos[name].to_pylist() for name in (schema.VIDEO_URI, schema.ETAG))
        digests = {plans.pair_digest(uri, etag) for uri, etag in zip(uris, etags, strict=True)}
        self.known |= digests
        self.next_number = plan.number + 1
        return digests


def failed_videos(output: Folder, *, retry: Literal["none", "transient", "all"]) -> set[bytes]:
    """Digests of the (uri, etag) pairs whose row of the highest generation failed in a way to be retried.

    A video that is planned again and has no row yet is not among them.
    """
    statuses = _FAILED[retry]
    failed: set[bytes] = set()
    committed: dict[int, list[str]] = {}
    for stored in output.list("data/"):
        name = plans.parse_data_name(stored.key)
        if name:
            committed.setdefault(name[0], []).append(stored.key)
    for number in plans.plan_numbers(output):
        plan = plans.read_plan(output, number)
        for uri, etag in zip(*(plan.videos[name].to_pylist() for name in (schema.VIDEO_URI, schema.ETAG)), strict=True):
            failed.discard(plans.pair_digest(uri, etag))
        for name in committed.get(number, []):
            with output.open_input(name) as file:
                rows = pq.read_table(file, columns=[schema.VIDEO_URI, schema.ETAG, schema.STATUS])
            for row in rows.to_pylist():
                status = row[schema.STATUS]
                if status in statuses if statuses is not None else status not in HAS_FRAMES:
                    failed.add(plans.pair_digest(row[schema.VIDEO_URI], row[schema.ETAG]))
    return failed
