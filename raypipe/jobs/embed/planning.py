"""Decide what to plan from a listing: the videos that are new, and those that are gone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from raypipe.config.embed import Gone
from raypipe.dataset.gone import GoneVideos, Unlisted, normalised_input
from raypipe.dataset.plan import MAX_PLAN_VIDEOS, Video, plan_table, planned_videos
from raypipe.dataset.planner import Planner, Retry
from raypipe.errors import ConfigError
from raypipe.jobs.embed.inputs import find_videos
from raypipe.storage import Folder, Listed
from raypipe.storage.tables import is_table

MAX_UNGUARDED = 100  # videos that are marked whatever their share is


@dataclass
class Planning:
    """One listing of an input, compared with what is planned. Read ``new_videos`` to its end, then call ``gone``."""

    planner: Planner
    input_uri: str
    retry: Retry
    policy: Gone
    num_found: int = 0
    listed: Listed = field(default_factory=Listed)

    @classmethod
    def load(
        cls, output: Folder, settings: Mapping[str, Any], input_uri: str, *, retry: Retry = "none", gone: Gone = "auto"
    ) -> "Planning":
        """Read every stored plan; raises like ``Planner.load``."""
        planner = Planner(output, settings, normalised_input(input_uri))
        if gone == "mark" or (gone == "auto" and not is_table(input_uri)):
            planner.unlisted = Unlisted(output, input_uri)
        planner.load()
        return cls(planner, input_uri, retry, gone)

    @property
    def may_mark(self) -> bool:
        """Return whether the listing can mark any video as gone."""
        return self.planner.unlisted is not None and self.planner.unlisted.num_planned > 0

    def new_videos(self) -> Iterator[Video]:
        """List the input, and yield the videos to embed; raises like ``find_videos`` and ``Planner.new_videos``."""
        found = find_videos(self.input_uri, output_uri=self.planner.output.uri, listed=self.listed)
        return self.planner.new_videos(self._counted(found), retry=self.retry)

    def _counted(self, videos: Iterable[Video]) -> Iterator[Video]:
        for video in videos:
            self.num_found += 1
            yield video

    def gone(self) -> GoneVideos:
        """Return the videos that the complete listing lacks; for manifests and globs only if the policy is ``mark``."""
        unlisted = self.planner.unlisted
        is_place = self.listed.kind not in {"glob", "manifest"}
        if unlisted is None or not (is_place or self.policy == "mark"):
            return GoneVideos(self.planner.output, {}, 0)
        return unlisted.find(self.listed.covers)


def plan_listing(planning: Planning, *, max_gone_fraction: float, pack: Callable[[list[Video]], pa.Table]) -> list[int]:
    """Plan what is new and what is gone, and return the numbers of the plans.

    If any video can be gone, the listing is read to its end before anything is planned.

    Raises:
        ConfigError: more videos are gone than ``max_gone_fraction`` allows, or an id is taken; nothing is planned.
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
    """Tell whether so many videos are gone that it is probably a mistake."""
    return gone.num_videos > MAX_UNGUARDED and gone.fraction > max_gone_fraction


def _held(videos: Iterable[Video]) -> Iterator[Video]:
    """Read all videos now, and yield them later; until then they are columns, which take a fifth of the memory."""
    coming = iter(videos)
    batches = iter(lambda: list(islice(coming, MAX_PLAN_VIDEOS)), [])
    tables = [plan_table(batch, [0] * len(batch)) for batch in batches]
    return chain.from_iterable(map(planned_videos, tables))
