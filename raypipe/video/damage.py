"""Which pictures of a video are corrupt, from what its decoder says. Runs in the child process only.

A corrupt frame is copied into those that refer to it, about which the decoder says nothing: in decoding order, all
that follow it up to the next key frame.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from raypipe.video.ffmpeg_log import Line
from raypipe.video.index import VideoIndex
from raypipe.video.sampling import Indices, Seconds

# A decoder that flags corrupt frames, those that refer to one included. It also logs errors of frames that are fine,
# such as the first ones after a seek: only both together mean that a frame's own data is corrupt.
_FLAGS_ALL = "h264"


class Damage(IntEnum):
    """How bad a picture is, the best first."""

    NONE = 0
    REFERRED = 1  # it may refer to a corrupt picture
    CORRUPT = 2  # its own data is
    MISSING = 3  # the decoder gives no picture


Levels = npt.NDArray[np.int8]


@dataclass
class DamageReport:
    """What decoding some packets of a video has told: positions are those of packets in decoding order."""

    corrupt: set[int] = field(default_factory=set)
    referring: set[int] = field(default_factory=set)
    problem: str = ""  # the first error, in FFmpeg's words
    is_noisy: bool = False  # the decoder logged something, whatever it means
    _logged: dict[int, str] = field(default_factory=dict)

    def note_packet(self, position: int, *, log: list[Line], decoder: str) -> None:
        """Note what the decoder logged about a packet."""
        self.is_noisy |= bool(log)
        if own := [line.message for line in log if line.source == decoder]:
            if decoder == _FLAGS_ALL:
                self._logged[position] = own[0]
            else:
                self.note(position, own[0])

    def note_frame(self, position: int, *, decoder: str) -> None:
        """Note that the decoder flags the picture of a packet as corrupt."""
        if decoder == _FLAGS_ALL and position not in self._logged:
            self.referring.add(position)
            self.problem = self.problem or "a frame refers to one that is corrupt"
        else:
            self.note(position, self._logged.get(position, "the decoder conceals errors"))

    def note(self, position: int, problem: str) -> None:
        """Note that the picture of a packet is corrupt."""
        self.corrupt.add(position)
        self.problem = self.problem or problem

    def merge(self, other: "DamageReport") -> None:
        """Add what another report notes."""
        self.corrupt |= other.corrupt
        self.referring |= other.referring
        self.is_noisy |= other.is_noisy
        self.problem = self.problem or other.problem

    def levels(self, index: VideoIndex) -> Levels:
        """Return how bad the picture of each packet is [P], as far as its packets were decoded."""
        levels = np.zeros(len(index.pts), dtype=np.int8)
        corrupt = self.corrupt | set(index.corrupt)
        # A parser ends a frame when it sees the next one: the container's flag may be meant for that.
        late = {position + 1 for position in index.corrupt if position + 1 < len(levels)}
        found = corrupt | self.referring | late
        if not found and not index.losses:
            return levels
        keys = np.flatnonzero(index.is_keyframe)
        ends = np.append(keys, len(levels))
        for position in sorted(found | set(index.losses)):
            group = int(np.searchsorted(keys, position, side="right"))  # the group ends at ends[group]
            end = int(ends[group])
            if position not in found and index.is_keyframe[position]:  # it does not refer to what is lost before it
                group, end = group - 1, position
            elif levels[position] < Damage.REFERRED or index.is_keyframe[position]:
                levels[position:end] = Damage.REFERRED
            else:
                continue
            if end < len(levels):
                following = slice(end + 1, int(ends[group + 1]))
                levels[following][index.pts[following] < index.pts[end]] = Damage.REFERRED
        levels[sorted(corrupt)] = Damage.CORRUPT
        return levels


def choose_replacements(
    times: Seconds, levels: Levels, asked: dict[int, float], *, used: set[int], half_seconds: float
) -> dict[int, int]:
    """Choose for each slot the nearest picture of the least damage within ``half_seconds`` of the time asked for.

    ``times`` and ``levels`` [P] are of packets; ``asked`` maps a slot to its time. Pictures ``used`` by other slots
    are left to them. Returns slot -> position; slots with no candidate are left out.
    """
    order = np.argsort(times, kind="stable")
    ascending = times[order]
    chosen: dict[int, int] = {}
    taken = set(used)
    for slot, seconds in asked.items():
        start, stop = np.searchsorted(ascending, (seconds - half_seconds, seconds + half_seconds))
        near = [at for at in order[start:stop].tolist() if levels[at] < Damage.MISSING and at not in taken]
        if near:
            chosen[slot] = min(near, key=lambda at: (levels[at], abs(times[at] - seconds)))
            taken.add(chosen[slot])
    return chosen


def candidates(times: Seconds, asked: Seconds, *, half_seconds: float) -> Indices:
    """Return the positions of the packets whose time is within ``half_seconds`` of any of ``asked``."""
    edges = np.sort(asked)
    after = np.clip(np.searchsorted(edges, times), 0, len(edges) - 1)
    before = np.maximum(after - 1, 0)
    distance = np.minimum(np.abs(edges[after] - times), np.abs(edges[before] - times))
    return np.flatnonzero(distance <= half_seconds).astype(np.int64)
