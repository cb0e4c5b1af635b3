"""Find the planned videos that a complete listing of their input no longer holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raypipe import schema
from raypipe.errors import ConfigError
from raypipe.sealed.plan import Plan, Video, digest, gone_flags, read_plan
from raypipe.storage import Folder


def normalised_input(uri: str) -> str:
    """Return one spelling for all spellings of an input: without a last slash, a local path absolute."""
    try:
        return Folder(uri).uri
    except ConfigError:  # of a job that gives none, or of a version that read other storages
        return uri


@dataclass(frozen=True, slots=True)
class GoneVideos:
    """The videos to mark; iterating reads the plans again, so that their names are never in memory together."""

    output: Folder
    latest: dict[bytes, int]  # digest of a video_id -> the plan that holds it last
    num_planned: int  # videos of the input that are planned and not gone, before the listing

    @property
    def num_videos(self) -> int:
        """How many there are."""
        return len(self.latest)

    @property
    def fraction(self) -> float:
        """Their share of what is planned."""
        return self.num_videos / max(self.num_planned, self.num_videos, 1)

    def __iter__(self) -> Iterator[Video]:
        for number in sorted(set(self.latest.values())):
            videos = read_plan(self.output, number).videos
            ids, uris = (videos[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
            for video_id, uri in zip(ids, uris, strict=True):
                if self.latest.get(digest(video_id)) == number:
                    yield Video(video_id, uri, "", 0, is_gone=True)


class Unlisted:
    """The planned videos of one input that its listing has not given so far; digests alone are in memory.

    ``learn`` every plan, ``see`` every video of the listing and which of them are planned anew, ``end`` it where
    nothing is left of it, and then ``find``.
    """

    def __init__(self, output: Folder, input_uri: str) -> None:
        self._output = output
        self._input_uri = normalised_input(input_uri)
        self._plans: list[int] = []
        self._uris: set[bytes] = set()
        self._new_ids: set[bytes] = set()
        self._num_planned = 0
        self._is_complete = False

    @property
    def num_planned(self) -> int:
        """Videos of the input that are planned and not gone."""
        return self._num_planned

    def learn(self, plan: Plan, uris: Sequence[bytes]) -> None:
        """Take in a plan; ``uris`` are the digests of its rows. Plans come in their order."""
        self._plans.append(plan.number)
        if normalised_input(plan.input) != self._input_uri:
            return
        for uri, is_gone in zip(uris, gone_flags(plan.videos), strict=True):
            if is_gone:
                self._uris.discard(uri)
            else:
                self._uris.add(uri)
        self._num_planned = len(self._uris)

    def see(self, uri: bytes) -> None:
        """Take in a video of the listing."""
        self._uris.discard(uri)

    def plans_anew(self, video: Video) -> None:
        """Take in that this video gets a new row: its id is not gone, wherever it was before."""
        self._new_ids.add(digest(video.video_id))

    def end(self) -> None:
        """Say that the listing gave everything that it has."""
        self._is_complete = True

    def find(self, covers: Callable[[str], bool]) -> GoneVideos:
        """Return the videos that are gone: none unless the listing was read to its end.

        A video is gone whose last plan is of this input, and whose URI the listing would have given, which ``covers``
        tells, but did not.
        """
        latest: dict[bytes, int] = {}
        if self._uris and self._is_complete:
            for number in self._plans:
                self._follow(read_plan(self._output, number), latest, covers)
        return GoneVideos(self._output, latest, self._num_planned)

    def _follow(self, plan: Plan, latest: dict[bytes, int], covers: Callable[[str], bool]) -> None:
        is_same = normalised_input(plan.input) == self._input_uri
        ids, uris = (plan.videos[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
        for video_id, uri, is_gone in zip(ids, uris, gone_flags(plan.videos), strict=True):
            key = digest(video_id)
            latest.pop(key, None)  # an earlier plan is not the last one
            is_left = is_same and not is_gone and digest(uri) in self._uris
            if is_left and key not in self._new_ids and covers(uri):
                latest[key] = plan.number
