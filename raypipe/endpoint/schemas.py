"""The requests and responses of the endpoints.

Requests are pydantic models with limits. Responses are typed dictionaries: mypy checks them, OpenAPI describes them,
and orjson serializes them.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic supports the one in typing from Python 3.12 on

DEFAULT_TOP_K, MAX_TOP_K = 20, 200
MAX_ID = 4096  # characters of an id or any other text
MAX_EXCLUDED = 10_000
MAX_EMBEDDINGS = 16
MAX_LISTED = 200
MAX_VIDEOS_IN_BATCH = 8
MAX_LABELS = 100
_HISTORY_CAP, _BATCH_CAP = 10_000, 1_000  # upper bounds for the configurable limits
_MAX_FILTERS, _MAX_CHOICES, _MAX_NUMBERS = 32, 1_000, 65_536
_INT64 = {"ge": -(2**63), "le": 2**63 - 1}


def _is_unicode(text: str) -> str:
    if not text.isascii() and text != text.encode(errors="replace").decode():
        msg = "should be Unicode text without lone surrogates"
        raise ValueError(msg)
    return text


Text = Annotated[str, Field(max_length=MAX_ID), AfterValidator(_is_unicode)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_is_unicode)]
Whole = Annotated[int, Field(strict=True, **_INT64)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Scalar = bool | Whole | Number | Text
Choices = Annotated[list[Scalar], Field(max_length=_MAX_CHOICES)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Strategy = Literal["ranker", "transitions", "content"]


class Range(_Request):
    """A range of values. Either bound may be left out."""

    gt: Scalar | None = None
    gte: Scalar | None = None
    lt: Scalar | None = None
    lte: Scalar | None = None


class RecommendRequest(_Request):
    """Watched videos, filters and ranking options. Every ranking option is off by default."""

    history: list[Text] = Field(
        default_factory=list, max_length=_HISTORY_CAP, description="Ids of watched videos, the newest last."
    )
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        default=None, max_length=_HISTORY_CAP, description="One weight per video in the history."
    )
    embeddings: list[Annotated[list[float], Field(min_length=1, max_length=_MAX_NUMBERS)]] | None = Field(
        default=None, max_length=MAX_EMBEDDINGS, description="Watched videos outside the catalogue, from /v1/embed."
    )
    filters: dict[Name, Scalar | Choices | Range] = Field(
        default_factory=dict,
        max_length=_MAX_FILTERS,
        description="For each column: a value, a list of values, or bounds {gt, gte, lt, lte}.",
    )
    exclude: list[Text] = Field(default_factory=list, max_length=MAX_EXCLUDED, description="Ids not to recommend.")
    dislikes: list[Text] = Field(
        default_factory=list, max_length=MAX_EXCLUDED, description="Ids of videos that the user does not want."
    )
    exclude_history: bool = True
    strategy: Literal["auto"] | Strategy = Field(
        default="auto", description="How to rank: auto, or one of the strategies that /v1/index lists."
    )
    top_k: TopK = DEFAULT_TOP_K
    diversity: Share = 0.0
    max_per_category: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    category_column: Name = "category"
    one_per_duplicate_group: bool = False
    freshness: Share = 0.0
    popularity: Share = 0.0


class RecommendBatch(_Request):
    """Several requests for recommendations."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=_BATCH_CAP)


class SimilarBatch(_Request):
    """The ids of several videos. Similar videos are found for each of them."""

    video_ids: list[Text] = Field(min_length=1, max_length=_BATCH_CAP)
    top_k: TopK = DEFAULT_TOP_K


class VideoUri(_Request):
    """The URI of a video below one of the prefixes that the server allows."""

    uri: Text


class EmbedBatch(_Request):
    """Several videos to embed. ``top_k`` is the number of neighbors to find for each video, 0 by default."""

    uris: list[Text] = Field(min_length=1, max_length=MAX_VIDEOS_IN_BATCH)
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)


class ClassifyBatch(_Request):
    """Several videos to classify."""

    uris: list[Text] = Field(min_length=1, max_length=MAX_VIDEOS_IN_BATCH)
    top_k: int = Field(default=5, ge=1, le=MAX_LABELS)


class Error(TypedDict):
    """An error: a code for programs, and a one-line message for people."""

    code: str
    message: str


class ErrorAnswer(TypedDict):
    """The body of every error response."""

    error: Error
    request_id: str


class FailedAnswer(TypedDict):
    """The error for one item of a batch."""

    error: Error


class Video(TypedDict):
    """A video of the catalogue. ``fields`` contains the catalogue's own columns, such as title and category."""

    video_id: str
    video_uri: str | None
    has_thumbnail: bool
    duration_seconds: float | None
    label: str | None
    score: float | None
    duplicate_group: int | None
    fields: dict[str, Any]


class Why(TypedDict):
    """The reasons for a recommendation.

    ``reason`` is the main one: ``num_users`` people watched this video after the watched video ``after``, the video is
    similar to what was watched, or it is popular. ``num_users`` is null if the number is small. ``closest`` is the id
    of the most similar watched video, and ``similarity`` is the cosine between the two videos. ``boosts`` maps the name
    of each boost to its share of the score.
    """

    reason: Literal["watched_after", "similar", "popular"]
    after: str | None
    num_users: int | None
    closest: str | None
    similarity: float | None
    boosts: dict[str, float]


class Result(TypedDict):
    """A recommended video. A higher score is better."""

    video: Video
    score: float
    why: Why


class Recommended(TypedDict):
    """Recommended videos, best first. ``unknown`` contains the ids of the history that are not in the index.

    ``strategy`` is the strategy that ranked them, and ``ranker`` is the id of the learned ranker, if it was used.
    """

    results: list[Result]
    unknown: list[str]
    fallback: Literal["popular"] | None
    strategy: Strategy | Literal["popular"]
    ranker: str | None
    version: str


class RecommendedBatch(TypedDict):
    """A response for each item of the batch, in the same order."""

    answers: list[Recommended | FailedAnswer]


class IndexAnswer(TypedDict):
    """The index being served, and what this server can do.

    ``strategies`` are the values of ``strategy`` in requests, in addition to auto. ``ranker`` is the id of the learned
    ranker. ``can_play`` is false if the server may not read any videos.
    """

    version: str
    num_videos: int
    dim: int
    kind: str
    created_at: str
    recall_at_10: float | None
    columns: dict[str, str]
    categories: list[str]
    labels: list[str]
    strategies: list[Strategy]
    ranker: str | None
    can_embed: bool
    can_classify: bool
    can_play: bool


class PlayAnswer(TypedDict):
    """A link to the bytes of one video. It needs no token, and is valid until ``expires_at``, in seconds since 1970.

    If ``playable`` is false, browsers do not play videos of this format, and ``reason`` says why.
    """

    url: str
    expires_at: int
    media_type: str
    playable: bool
    reason: str | None


class VideoList(TypedDict):
    """One page of the matching videos of the catalogue, and the total number of matches."""

    videos: list[Video]
    total: int


class Anomaly(TypedDict):
    """How unlike the catalogue a video is.

    ``p_value`` is the fraction of the catalogue that is at least as strange: it was estimated from ``num_compared``
    videos, so it is at least 1 / (``num_compared`` + 1). ``neighbor_distance`` is one minus the cosine to the nearest
    video, and ``mahalanobis_length`` is the distance to the mean of the catalogue in units of its spread.
    """

    p_value: float
    neighbor_distance: float
    mahalanobis_length: float
    closest: str
    num_compared: int


class EmbedAnswer(TypedDict):
    """A video's embedding. ``status`` is partial if the video has fewer frames than requested, or corrupt frames.

    ``anomaly`` is null if the catalogue has too few videos to say what is unlike them.
    """

    embedding: list[float]
    num_frames: int
    status: Literal["ok", "partial"]
    duration_seconds: float | None
    neighbors: Recommended | None
    anomaly: Anomaly | None


class EmbedBatchAnswer(TypedDict):
    """A response for each item of the batch, in the same order."""

    answers: list[EmbedAnswer | FailedAnswer]


class LabelScore(TypedDict):
    """A label and its probability."""

    label: str
    score: float


class FrameScore(TypedDict):
    """What one frame adds to the logit of the best label. A negative number counts against the label.

    The numbers ``probe`` of all frames add up to the logit of the linear probe. ``order`` is by how much the logit of
    GPT-2 falls without the frame. Either is 0 if the model lacks that part. ``pts_seconds`` is the time since the first
    frame. ``picture`` is the frame as a small JPEG in base64; it is null if the video has more than 32 frames.
    """

    pts_seconds: float
    probe: float
    order: float
    picture: str | None


class FrameScores(TypedDict):
    """The scores of a video's frames, in their order. If there are none, ``reason`` says why."""

    frames: list[FrameScore]
    reason: str | None


class ClassifyAnswer(TypedDict):
    """The best label of a video, and the top labels. ``frame_scores`` is null unless requested."""

    label: str
    score: float
    top: list[LabelScore]
    num_frames: int
    frame_scores: FrameScores | None
    neighbors: Recommended | None


class ClassifyBatchAnswer(TypedDict):
    """A response for each item of the batch, in the same order."""

    answers: list[ClassifyAnswer | FailedAnswer]


class ReloadAnswer(TypedDict):
    """The version that is served now, and whether it has changed."""

    version: str
    changed: bool


class RollbackAnswer(TypedDict):
    """The version that is served now."""

    version: str


class Broken(TypedDict):
    """A version that CURRENT names but that cannot be served."""

    version: str
    error: str


class ReadyAnswer(TypedDict):
    """Whether the replica can answer requests."""

    ready: bool
    version: str | None
    broken: Broken | None


class HealthAnswer(TypedDict):
    """The replica is alive."""

    ok: bool
