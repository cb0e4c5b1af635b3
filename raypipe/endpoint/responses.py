"""What the endpoints give, as OpenAPI describes it; the answers themselves are written as JSON at once."""

from typing import Any, Literal

from pydantic import BaseModel


class Error(BaseModel):
    """What went wrong: a code for programs, one line for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: Error
    request_id: str


class Video(BaseModel):
    """A video of the catalogue; ``fields`` are the catalogue's own columns, title and category among them."""

    video_id: str
    video_uri: str | None
    has_thumbnail: bool
    duration_seconds: float | None
    label: str | None
    score: float | None
    duplicate_group: int | None
    fields: dict[str, Any]


class Why(BaseModel):
    """The watched video that a result is closest to, their cosine, and the boosts it got."""

    closest: str | None
    similarity: float | None
    boosts: dict[str, float]


class Result(BaseModel):
    """One video, the better the higher its score."""

    video: Video
    score: float
    why: Why


class Recommended(BaseModel):
    """The best first; ``unknown`` are ids of the history that the index does not hold."""

    results: list[Result]
    unknown: list[str]
    fallback: Literal["popular"] | None
    version: str


class FailedAnswer(BaseModel):
    """One of a batch that has no answer."""

    error: Error


class RecommendedBatch(BaseModel):
    """An answer for each of a batch, in its order."""

    answers: list[Recommended | FailedAnswer]


class IndexAnswer(BaseModel):
    """What is served."""

    version: str
    num_videos: int
    dim: int
    kind: str
    created_at: str
    recall_at_10: float | None
    columns: dict[str, str]
    categories: list[str]
    labels: list[str]
    can_embed: bool
    can_classify: bool


class VideoList(BaseModel):
    """Some of the catalogue, and how many there are."""

    videos: list[Video]
    total: int


class EmbedAnswer(BaseModel):
    """A video's embedding; ``status`` is partial if it has fewer frames than asked for, or corrupt ones."""

    embedding: list[float]
    num_frames: int
    status: Literal["ok", "partial"]
    duration_seconds: float | None
    neighbors: Recommended | None


class EmbedBatchAnswer(BaseModel):
    """An answer for each of a batch, in its order."""

    answers: list[EmbedAnswer | FailedAnswer]


class LabelScore(BaseModel):
    """A label, and how probable it is."""

    label: str
    score: float


class ClassifyAnswer(BaseModel):
    """The best label of a video, and the next ones."""

    label: str
    score: float
    top: list[LabelScore]
    num_frames: int
    neighbors: Recommended | None


class ClassifyBatchAnswer(BaseModel):
    """An answer for each of a batch, in its order."""

    answers: list[ClassifyAnswer | FailedAnswer]


class ReloadAnswer(BaseModel):
    """The version that is served now."""

    version: str
    changed: bool


class RollbackAnswer(BaseModel):
    """The version that is served now."""

    version: str


class Broken(BaseModel):
    """A version that CURRENT names and that cannot be served."""

    version: str
    error: str


class ReadyAnswer(BaseModel):
    """Whether requests can be answered."""

    ready: bool
    version: str | None
    broken: Broken | None


class HealthAnswer(BaseModel):
    """The replica lives."""

    ok: bool
