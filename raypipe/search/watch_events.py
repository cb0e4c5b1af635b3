"""Watch events: which user watched which video of an index, in order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Events:
    """E watch events of U users, sorted by user; each user's events are sorted from the oldest to the newest.

    Attributes:
        items: The position of each watched video in the index, [E].
        starts: Where the events of each user start, [U + 1].
        times: The time of each event in seconds, [E]; None if the times are unknown.
        is_ordered: Whether the order of a user's events is the order of watching.
    """

    items: Ints
    starts: Ints
    times: Numbers | None = None
    is_ordered: bool = True

    @classmethod
    def of_histories(cls, histories: Sequence[Sequence[int]], *, is_ordered: bool = True) -> Self:
        """Return the events of one history per user; times are unknown."""
        items = np.array([item for history in histories for item in history], np.int64)
        return cls(items, np.cumsum([0, *map(len, histories)]), is_ordered=is_ordered)

    @classmethod
    def of_rows(cls, users: Ints, items: Ints, times: Numbers | None = None) -> tuple[Self, Ints, Ints]:
        """Return the events of one row per event, the row of each event, and the user of each group of events.

        Only the first event of a user with a video counts. Rows with the same time keep their order.
        """
        order = np.lexsort((np.arange(len(users)), users if times is None else times, users))
        keys = users[order] * (items.max(initial=0) + 1) + items[order]
        _, first = np.unique(keys, return_index=True)
        kept = order[np.sort(first)]
        ids, starts = np.unique(users[kept], return_index=True)
        events = cls(items[kept], np.append(starts, len(kept)), None if times is None else times[kept])
        return events, kept, ids

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_users(self) -> int:
        return len(self.starts) - 1

    @property
    def users(self) -> Ints:
        """Return the number of the user of each event, [E]."""
        return np.repeat(np.arange(self.num_users), np.diff(self.starts))

    def history(self, user: int) -> Ints:
        """Return the videos of a user, the newest last."""
        return self.items[self.starts[user] : self.starts[user + 1]]

    def where(self, is_kept: npt.NDArray[np.bool_]) -> "Events":
        """Return some of the events, of the same users."""
        counts = np.bincount(self.users[is_kept], minlength=self.num_users)
        times = None if self.times is None else self.times[is_kept]
        return Events(self.items[is_kept], np.append(0, np.cumsum(counts)), times, self.is_ordered)


def event_hashes(events: Events, user_ids: Sequence[str], video_ids: Sequence[str]) -> Hashes:
    """Return a hash of the user id and the video id of each event, sorted, [E].

    They tell later whether something was fitted on an event, without storing the ids.

    Args:
        events: The events.
        user_ids: The id of each user, [U].
        video_ids: The id of each video of the index, or of each video that occurs, by position.
    """
    items = {int(item): video_ids[item] for item in np.unique(events.items).tolist()}
    videos = np.zeros(max(items, default=-1) + 1, np.uint64)
    videos[list(items)] = hashed(list(items.values()))
    return combined_hashes(events, hashed(user_ids), videos)


def combined_hashes(events: Events, users: Hashes, videos: Hashes) -> Hashes:
    """Return what ``event_hashes`` returns, from the hash of each user, [U], and of each video by position."""
    return np.sort(_mixed(_mixed(users[events.users]) ^ videos[events.items]))


def hashed(ids: Sequence[str]) -> Hashes:
    """Return a hash of each id, which is the same in every process."""
    digests = b"".join(hashlib.blake2b(one.encode(errors="surrogatepass"), digest_size=8).digest() for one in ids)
    return np.frombuffer(digests, np.uint64)


def _mixed(numbers: Hashes) -> Hashes:
    """Spread the bits of each number over all its bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
