"""For each video, the videos that users also watched: counted from watch events, without learning.

Three ways of counting make the same kind of table: a sparse N x N matrix of which each row keeps the 100 largest
weights. ``transitions`` depend on the order of watching; ``item_knn`` and ``ease`` do not.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.errors import IndexVersionError
from raypipe.search.vectors import Floats, Positions
from raypipe.search.watch_events import Events, Ints, Numbers
from raypipe.text import one_line

CountKind = Literal["transitions", "item_knn", "ease"]
WINDOW, HISTORY_DECAY, NUM_SUCCESSORS = 5, 0.6, 100
_UNIT = 60  # a multiple of all distances: weights are counted in whole sixtieths, so that their sums are exact
EASE_MAX_ITEMS, EASE_REGULARIZATION = 20_000, 100.0
MIN_USERS = 5  # how many people must have watched a video after another one before their number is shown
_LAST_WATCHED = 50
_PAIRS_AT_ONCE = 4_000_000
_NEWEST = 500  # events of a user whose pairs are counted
_ABOUT = b"raypipe"
_COLUMNS = {"items": pa.int32(), "weights": pa.float32(), "users": pa.int32()}


@dataclass(frozen=True)
class Pairs:
    """Weighted pairs of videos (first, second), sorted by first, then by weight, largest first.

    Attributes:
        firsts, seconds: Positions of videos, [P].
        weights: The weight of each pair, [P].
        users: How many users are behind each pair, [P].
    """

    firsts: Ints
    seconds: Ints
    weights: Numbers
    users: Ints

    @classmethod
    def largest(cls, firsts: Ints, seconds: Ints, weights: Numbers, users: Ints) -> Self:
        """Keep the 100 pairs with the largest weights of each first video, without pairs of a video with itself."""
        order = np.lexsort((seconds, -weights, firsts))
        order = order[(firsts[order] != seconds[order]) & (weights[order] > 0)]
        sorted_firsts = firsts[order]
        rank = np.arange(len(order)) - np.searchsorted(sorted_firsts, sorted_firsts)
        kept = order[rank < NUM_SUCCESSORS]
        return cls(firsts[kept], seconds[kept], weights[kept], users[kept])


@dataclass(frozen=True, slots=True)
class TransitionCounts:
    """How often users watched a video soon after another one.

    Counts of parts of the users can be added. They are whole numbers, so that the order of adding does not matter.

    Attributes:
        num_items: The number of videos, N.
        keys: first * N + second of each pair of videos, ascending, [P].
        sixtieths: 60 times the weight of each pair, [P].
        users: How many users are behind each pair, [P].
    """

    num_items: int
    keys: Ints
    sixtieths: npt.NDArray[np.int32] | Ints
    users: npt.NDArray[np.int32] | Ints

    @classmethod
    def of(cls, events: Events, num_items: int) -> Self:
        """Count pairs within 5 events. A pair weighs 1 / distance."""
        users, found, lengths = events.users, [], []
        for distance in range(1, WINDOW + 1):
            is_pair = users[:-distance] == users[distance:]
            found.append(events.items[:-distance][is_pair] * num_items + events.items[distance:][is_pair])
            lengths.append(len(found[-1]))
        weights = np.repeat(np.array([_UNIT // distance for distance in range(1, WINDOW + 1)], np.int32), lengths)
        return cls._added(num_items, np.concatenate(found), weights, np.ones(len(weights), np.int32))

    @classmethod
    def sum(cls, parts: Sequence["TransitionCounts"]) -> Self:
        """Add the counts of parts of the users."""
        return cls._added(
            parts[0].num_items,
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.sixtieths for part in parts]),
            np.concatenate([part.users for part in parts]),
        )

    @classmethod
    def _added(cls, num_items: int, keys: Ints, *counts: npt.NDArray[np.int32] | Ints) -> Self:
        order = np.argsort(keys)
        keys = keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        sixtieths, users = (np.add.reduceat(count[order], starts, dtype=np.int64) for count in counts)
        return cls(num_items, keys[starts], sixtieths, users)

    def between(self, first: int, stop: int) -> "TransitionCounts":
        """Return the pairs whose first video is at a position from ``first`` to ``stop - 1``, in a compact form."""
        start, end = np.searchsorted(self.keys, (first * self.num_items, stop * self.num_items))
        counts = (count[start:end].astype(np.int32) for count in (self.sixtieths, self.users))
        return TransitionCounts(self.num_items, self.keys[start:end].copy(), *counts)

    def pairs(self) -> Pairs:
        """Return the pairs with their weights."""
        firsts, seconds = np.divmod(self.keys, self.num_items)
        return Pairs(firsts, seconds, self.sixtieths / _UNIT, self.users.astype(np.int64))

    def largest(self) -> Pairs:
        """Return the 100 pairs with the largest weights of each first video. Of equal weights, the first video wins."""
        found = self.pairs()
        return Pairs.largest(found.firsts, found.seconds, found.weights, found.users)


@dataclass(frozen=True)
class Successors:
    """The successors of N videos.

    Attributes:
        kind: How the weights were counted.
        starts: Where the successors of each video start, [N + 1].
        items: The positions of the successors, [P].
        weights: Their weights, [P].
        users: How many users watched the successor after the video (or at all, if order does not count), [P].
    """

    kind: CountKind
    starts: Ints
    items: npt.NDArray[np.int32]
    weights: Floats
    users: npt.NDArray[np.int32]

    @classmethod
    def of(cls, kind: CountKind, pairs: Pairs, *, num_items: int) -> Self:
        counts = np.bincount(pairs.firsts, minlength=num_items)
        return cls(
            kind,
            np.append(0, np.cumsum(counts)),
            pairs.seconds.astype(np.int32),
            pairs.weights.astype(np.float32),
            pairs.users.astype(np.int32),
        )

    @classmethod
    def joined(cls, parts: Sequence["Successors"]) -> Self:
        """Return one table of the tables of consecutive ranges of videos."""
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
        return cls(parts[0].kind, np.append(0, np.cumsum(counts)), *columns)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def score(self, history: Ints) -> tuple[Positions, Floats]:
        """Return the positions, ascending, and the scores of all successors of the videos of a history.

        The score is the sum of the weights over the newest 50 videos. With ``transitions``, each video counts 0.6 times
        as much as the next newer one.
        """
        rows, _, weights = self._of(history)
        positions, place = np.unique(self.items[rows], return_inverse=True)
        scores = np.bincount(place, weights, minlength=len(positions))
        return positions.astype(np.int64), scores.astype(np.float32)

    def _of(self, history: Ints) -> tuple[Ints, Ints, Numbers]:
        """Return the rows of all successors of a history, the watched video of each, and its weight in the score."""
        watched = history[-_LAST_WATCHED:]
        decay = HISTORY_DECAY if self.kind == "transitions" else 1.0
        factors = decay ** np.arange(len(watched) - 1, -1, -1)
        starts = self.starts[watched]
        lengths = self.starts[watched + 1] - starts
        rows = np.repeat(starts - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
        return rows, np.repeat(watched, lengths), self.weights[rows] * np.repeat(factors, lengths)

    def scores(self, histories: Sequence[Ints]) -> Floats:
        """Return the score of each of the N videos for each of B histories, [B, N]; 0 if it is no successor."""
        table = np.zeros((len(histories), len(self)), np.float32)
        for row, history in zip(table, histories, strict=True):
            positions, scores = self.score(history)
            row[positions] = scores
        return table

    def after(self, history: Ints, positions: Positions) -> dict[int, tuple[int, int]]:
        """Return for videos the watched video that adds most to their score, and how many users are behind that.

        A watched video counts only if at least 5 users watched the pair. A video without one is left out.
        """
        rows, watched, weights = self._of(history)
        kept = np.flatnonzero((self.users[rows] >= MIN_USERS) & np.isin(self.items[rows], positions))
        kept = kept[np.argsort(weights[kept], kind="stable")]  # the largest last, which replaces the others
        found = zip(
            self.items[rows[kept]].tolist(), watched[kept].tolist(), self.users[rows[kept]].tolist(), strict=True
        )
        return {position: (one, num_users) for position, one, num_users in found}

    def save(self, path: Path) -> None:
        """Write the table as an Arrow file with one row per video, which ``open`` maps into memory."""
        columns = {
            name: pa.LargeListArray.from_arrays(pa.array(self.starts, pa.int64()), pa.array(getattr(self, name), kind))
            for name, kind in _COLUMNS.items()
        }
        about = {"kind": self.kind, "num_pairs": len(self.items)}
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, len(self)))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file that ``save`` wrote into memory.

        Raises:
            IndexVersionError: the file is corrupt.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            about = json.loads(table.schema.metadata[_ABOUT])
            kind: CountKind = about["kind"]
            lists = {name: table[name].combine_chunks() for name in _COLUMNS}
            starts = lists["items"].offsets.to_numpy()
            values = {name: column.values.to_numpy() for name, column in lists.items()}
            lengths = {len(column) for column in values.values()}
            if lengths != {about["num_pairs"]} or kind not in {"transitions", "item_knn", "ease"}:
                msg = "its columns do not match"
                raise ValueError(msg)  # noqa: TRY301 - one message for all errors
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            msg = f"{path} is corrupt: {one_line(error)}"
            raise IndexVersionError(msg, key=str(path), remedy="Build the index again.") from None
        return cls(kind, starts, values["items"], values["weights"], values["users"])


def count_successors(kind: CountKind, events: Events, *, num_items: int) -> Successors:
    """Count the successors of N videos in this process. The events and all pairs must fit into memory."""
    counting = {"transitions": _transitions, "item_knn": _item_knn, "ease": _ease}
    return Successors.of(kind, counting[kind](events, num_items), num_items=num_items)


def transitions(events: Events, num_items: int) -> Pairs:
    """Return how often the second video was watched within 5 events after the first, without a limit per video.

    A pair weighs 1 / distance. The result has each pair once.
    """
    return TransitionCounts.of(events, num_items).pairs()


def _transitions(events: Events, num_items: int) -> Pairs:
    return TransitionCounts.of(events, num_items).largest()


def _item_knn(events: Events, num_items: int) -> Pairs:
    """Return the cosines between the viewers of two videos (Sarwar et al., 2001)."""
    counts = np.maximum(np.bincount(events.items, minlength=num_items), 1)
    keys, together = _counted(firsts * num_items + seconds for firsts, seconds in _co_watched(events))
    firsts, seconds = np.divmod(keys, num_items)
    return Pairs.largest(firsts, seconds, together / np.sqrt(counts[firsts] * counts[seconds]), together)


def _ease(events: Events, num_items: int) -> Pairs:
    """Return the largest weights of a linear model with a closed form (Steck, 2019)."""
    weights, together = ease_weights(events, num_items), np.zeros((num_items, num_items), np.int32)
    for firsts, seconds in _co_watched(events):
        np.add.at(together, (firsts, seconds), 1)
    most = min(NUM_SUCCESSORS, num_items)
    seconds = np.argpartition(-weights, most - 1, axis=1)[:, :most]
    firsts = np.repeat(np.arange(num_items), most)
    chosen = seconds.ravel()
    return Pairs.largest(
        firsts, chosen, weights[firsts, chosen].astype(np.float64), together[firsts, chosen].astype(np.int64)
    )


def ease_weights(events: Events, num_items: int) -> Floats:
    """Return the weights of EASE, [N, N]: a linear model with a closed form (Steck, 2019)."""
    import torch  # noqa: PLC0415 - inverts a positive matrix in a third of the time of numpy, but takes seconds to load

    gram = np.zeros((num_items, num_items), np.float32)
    for firsts, seconds in _co_watched(events):
        np.add.at(gram, (firsts, seconds), 1)
    gram[np.diag_indices(num_items)] = np.bincount(events.items, minlength=num_items) + EASE_REGULARIZATION
    factor = torch.linalg.cholesky(torch.from_numpy(gram))
    inverse: Floats = torch.cholesky_inverse(factor).numpy()
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def _co_watched(events: Events) -> Iterator[tuple[Ints, Ints]]:
    """Yield all ordered pairs of two different events of one user, as items, a part at a time.

    Of a long history, only the newest events count, so that one user cannot fill the memory.
    """
    lengths = np.minimum(np.diff(events.starts), _NEWEST)
    for length in np.unique(lengths[lengths > 1]).tolist():
        first, second = np.nonzero(~np.eye(length, dtype=np.bool_))
        stops = events.starts[1:][lengths == length]
        users_at_once = max(1, _PAIRS_AT_ONCE // len(first))
        for start in range(0, len(stops), users_at_once):
            newest = stops[start : start + users_at_once, None] - np.arange(length, 0, -1)
            histories = events.items[newest]
            yield histories[:, first].ravel(), histories[:, second].ravel()


def _counted(parts: Iterable[Ints]) -> tuple[Ints, Ints]:
    """Return the distinct numbers of all parts, ascending, and how often each occurs."""
    found: list[tuple[Ints, Ints]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for part in parts:
        found.append(np.unique(part, return_counts=True))
        if sum(len(keys) for keys, _ in found[1:]) > max(_PAIRS_AT_ONCE, len(found[0][0])):
            found = [_totals(found)]
    return _totals(found)


def _totals(counted: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    keys, at = np.unique(np.concatenate([keys for keys, _ in counted]), return_inverse=True)
    counts = np.concatenate([counts for _, counts in counted])
    totals: Any = np.bincount(at, counts, minlength=len(keys))
    return keys, totals.astype(np.int64)
