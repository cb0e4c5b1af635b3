"""Find the planned videos that a complete listing of their input no longer contains."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raypipe import schema
from raypipe.dataset.plan import Plan, Video, digest, gone_flags, read_plan
from raypipe.errors import ConfigError
from raypipe.storage import Folder


def normalised_input(uri: str) -> str:
    """Return one spelling of an input for all of its spellings: no trailing slash, local paths absolute."""
    try:
        return Folder(uri).uri
    except ConfigError:  # a job without an input, or a storage that only an earlier version read
        return uri


@dataclass(frozen=True, slots=True)
class GoneVideos:
    """The videos to mark. Iterating reads the plans again, so that only digests are kept in memory."""

    output: Folder
    latest: dict[bytes, int]  # digest of a video_id -> the plan that holds it last
    num_planned: int  # videos of the input that are planned and not gone, before the listing

    @property
    def num_videos(self) -> int:
        """Return how many there are."""
        return len(self.latest)

    @property
    def fraction(self) -> float:
        """Return their share of the planned videos."""
        return self.num_videos / max(self.num_planned, self.num_videos, 1)

    def __iter__(self) -> Iterator[Video]:
        for number in sorted(set(self.latest.values())):
            videos = read_plan(self.output, number).videos
            ids, uris = (videos[name].to_pylist() for name in (schema.VIDEO_ID, schema.VIDEO_URI))
            for video_id, uri in zip(ids, uris, strict=True):
                if self.latest.get(digest(video_id)) == number:
                    yield Video(video_id, uri, "", 0, is_gone=True)


class Unlisted:
    """The planned videos of one input that its listing has not returned so far; only digests are in memory.

    Call ``learn`` for each plan, ``see`` for each listed video, ``plans_anew`` for each that gets a new row, ``end``
    after the last one, and then ``find``.
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
        """Return how many videos of the input are planned and not gone."""
        return self._num_planned

    def learn(self, plan: Plan, uris: Sequence[bytes]) -> None:
        """Add the next plan; ``uris`` are the digests of the URIs of its rows."""
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
        """Note that the listing contains this URI."""
        self._uris.discard(uri)

    def plans_anew(self, video: Video) -> None:
        """Note that this video gets a new row: its id is not gone, even if its previous URI is."""
        self._new_ids.add(digest(video.video_id))

    def end(self) -> None:
        """Note that the listing is complete."""
        self._is_complete = True

    def find(self, covers: Callable[[str], bool]) -> GoneVideos:
        """Return the videos that are gone; none unless the listing was read to its end.

        A video is gone if its last plan is of this input and the listing does not contain its URI. ``covers`` tells
        whether the listing would contain a URI if the video existed.
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
