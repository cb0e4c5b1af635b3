"""What a version of an index knows from watch events: counted successors, views, and a learned ranker."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from raypipe.errors import IndexVersionError
from raypipe.search.blend import Blend
from raypipe.search.filters import Eligible
from raypipe.search.query import Used
from raypipe.search.ranking import Nearest
from raypipe.search.successors import Successors
from raypipe.search.tower import Tower
from raypipe.search.vectors import Floats, Positions
from raypipe.search.versions import SUCCESSORS, TOWER, VIEWS
from raypipe.text import iso_seconds, one_line

_DAY_SECONDS = 86_400.0
_REBUILD = "Build the index again."


@dataclass(frozen=True)
class Watched:
    """What a version knows from watch events. Each part may be missing.

    Attributes:
        successors: What users watched after each video.
        views: How often each video was watched lately, ``[N]``.
        tower: The learned ranker.
        weight: The share of the successors in the scores of the ranker, from 0 to 1.
        ranker: The id of the ranker.
    """

    successors: Successors | None = None
    views: Floats | None = None
    tower: Tower | None = None
    weight: float = 1.0
    ranker: str | None = None
    newest_event: str | None = None  # that the ranker has learned from, ISO

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any], *, num_videos: int) -> Self:
        """Open the parts that a version has.

        Raises:
            IndexVersionError: a file is corrupt, or does not match the version.
        """
        names, about = manifest["files"], manifest.get("ranker") or {}
        successors = Successors.open(folder / SUCCESSORS) if SUCCESSORS in names else None
        tower = Tower.open(folder, manifest) if TOWER in names else None
        views = _open_views(folder / VIEWS) if VIEWS in names else None
        sizes = {len(part) for part in (successors, views) if part is not None}
        sizes |= set() if tower is None else {len(tower.vectors)}
        weight = about.get("weight", 1.0)
        if sizes - {num_videos} or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            msg = f"The files of {folder} do not match: {num_videos} videos, but a history of {sizes}; weight {weight}."
            raise IndexVersionError(msg, key=str(folder), value=sorted(sizes), remedy=_REBUILD)
        return cls(successors, views, tower, float(weight), about.get("id"), about.get("last_event_at"))

    @property
    def age_days(self) -> float | None:
        """Return how many days ago the newest event was that the ranker has learned from; None if that is unknown."""
        try:
            return None if self.newest_event is None else (time.time() - iso_seconds(self.newest_event)) / _DAY_SECONDS
        except (TypeError, ValueError):
            return None

    def blend(
        self,
        content: Nearest,
        history: Positions,
        embeddings: npt.NDArray[np.floating] | None,
        *,
        is_learned: bool,
        top_k: int,
        eligible: Eligible | None,
    ) -> Blend:
        """Return a source of candidates for a history, ``[H]`` positions and embeddings ``[M, D]`` that are newer."""
        tower = self.tower if is_learned and self.weight < 1 else None
        state = None if tower is None else tower.state(history, embeddings)
        return Blend(
            content,
            history=history,
            tower=tower,
            state=state,
            successors=self.successors,
            weight=self.weight,
            top_k=top_k,
            eligible=eligible,
        )

    @property
    def strategies(self) -> tuple[Used, ...]:
        """Return the ways in which videos can be scored, the best one last."""
        names: list[Used] = ["content"]
        if self.successors is not None:
            names.append("transitions")
        if self.tower is not None:
            names.append("ranker")
        return tuple(names)


def _open_views(path: Path) -> Floats:
    try:
        views: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        msg = f"Cannot read {path}: {one_line(error)}"
        raise IndexVersionError(msg, key=str(path), remedy=_REBUILD) from None
    return views
