"""One version of an index as it is served: its videos and recommendations as JSON, each video written once."""

import json
import time
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

from raypipe import schema
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query, Recommendation, Recommendations

_VIDEOS_KEPT = 65_536  # some 30 MB of text
_LISTED_VALUES = 1_000
_CATEGORY = "category"
_OWN = (
    schema.VIDEO_ID,
    schema.VIDEO_URI,
    schema.DURATION_SECONDS,
    schema.LABEL,
    schema.SCORE,
    "duplicate_group",
)
_HIDDEN = (*_OWN, schema.ETAG, schema.GENERATION)
_DIGITS = 6


class Live:
    """A loaded version. Any thread may ask; nothing in it changes."""

    def __init__(self, index: VideoIndex) -> None:
        self.index = index
        self.version = str(index.version)
        self.loaded_at = time.time()
        # A video's JSON takes longer to write than its neighbours to find: it is written once, while it is asked for.
        self.video = lru_cache(maxsize=_VIDEOS_KEPT)(self._video)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What /v1/index says of it."""
        manifest = self.index.manifest
        names = ("num_videos", "dim", "kind", "created_at", "recall_at_10", "columns")
        return {
            "version": self.version,
            **{name: manifest.get(name) for name in names},
            "categories": self.index.items.values(_CATEGORY, limit=_LISTED_VALUES),
            "labels": self.index.items.values(schema.LABEL, limit=_LISTED_VALUES),
        }

    @property
    def num_videos(self) -> int:
        """How many videos it holds."""
        return int(self.index.manifest["num_videos"])

    @property
    def fingerprint(self) -> str:
        """What names the settings of its embeddings."""
        return str((self.index.manifest.get("embeddings") or {}).get("fingerprint", ""))

    def warm(self) -> None:
        """Answer once, so that no request waits for what is made at first use."""
        history = (self.index.items.row(0)[schema.VIDEO_ID],) if self.num_videos else ()
        self.index.find("a", {}, offset=0, limit=1)
        self.recommended(self.index.recommend(Query(history=history, top_k=10)))
        self.recommended(self.index.recommend(Query(top_k=10)))
        _ = self.facts

    def _video(self, position: int) -> bytes:
        row = self.index.items.row(position)
        video = {name: row.get(name) for name in _OWN}
        video["has_thumbnail"] = self.index.items.thumbnail(position) is not None
        video["fields"] = {name: value for name, value in row.items() if name not in _HIDDEN}
        return as_json(video)

    def videos(self, positions: Iterable[int], total: int) -> bytes:
        """A page of the catalogue."""
        return b'{"videos":[%b],"total":%d}' % (b",".join(map(self.video, positions)), total)

    def recommended(self, found: Recommendations) -> bytes:
        """Recommendations with their videos."""
        return b'{"results":[%b],"unknown":%b,"fallback":%b,"version":%b}' % (
            b",".join(map(self._result, found.results)),
            as_json(found.unknown),
            as_json(found.fallback),
            as_json(self.version),
        )

    def _result(self, found: Recommendation) -> bytes:
        why = {
            "closest": found.closest,
            "similarity": None if found.similarity is None else round(float(found.similarity), _DIGITS),
            "boosts": {name: round(float(boost), _DIGITS) for name, boost in found.boosts.items()},
        }
        return b'{"video":%b,"score":%.6f,"why":%b}' % (self.video(found.position), found.score, as_json(why))


def as_json(value: object) -> bytes:
    """Compact JSON, in which every number is one: an index gives null for what is not."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
