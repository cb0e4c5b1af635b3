"""What the endpoints take, with the limits that OpenAPI states."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DEFAULT_TOP_K, MAX_TOP_K = 20, 200
MAX_ID = 4096  # characters, of a video or any other text
MAX_EXCLUDED = 10_000
MAX_EMBEDDINGS = 16
MAX_LISTED = 200
MAX_VIDEOS_IN_BATCH = 8
MAX_LABELS = 100
_HISTORY_CAP, _BATCH_CAP = 10_000, 1_000  # what a configuration may raise its own limits to
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


class Range(_Request):
    """Values between two bounds, of which one may be left out."""

    gt: Scalar | None = None
    gte: Scalar | None = None
    lt: Scalar | None = None
    lte: Scalar | None = None


class RecommendRequest(_Request):
    """What was watched, and which videos may be recommended; every option of the ranking is off unless it is given."""

    history: list[Text] = Field(
        default_factory=list, max_length=_HISTORY_CAP, description="Ids of watched videos, the newest last."
    )
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        default=None, max_length=_HISTORY_CAP, description="One for each of the history."
    )
    embeddings: list[Annotated[list[float], Field(min_length=1, max_length=_MAX_NUMBERS)]] | None = Field(
        default=None, max_length=MAX_EMBEDDINGS, description="Watched videos outside the catalogue, by /v1/embed."
    )
    filters: dict[Name, Scalar | Choices | Range] = Field(
        default_factory=dict,
        max_length=_MAX_FILTERS,
        description="By column: a value, a list of values, or bounds {gt, gte, lt, lte}.",
    )
    exclude: list[Text] = Field(default_factory=list, max_length=MAX_EXCLUDED, description="Ids never recommended.")
    exclude_history: bool = True
    top_k: TopK = DEFAULT_TOP_K
    diversity: Share = 0.0
    max_per_category: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    category_column: Name = "category"
    one_per_duplicate_group: bool = False
    freshness: Share = 0.0
    popularity: Share = 0.0


class RecommendBatch(_Request):
    """Several requests in one."""

    requests: list[RecommendRequest] = Field(min_length=1, max_length=_BATCH_CAP)


class SimilarBatch(_Request):
    """Several videos to find similar ones of."""

    video_ids: list[Text] = Field(min_length=1, max_length=_BATCH_CAP)
    top_k: TopK = DEFAULT_TOP_K


class VideoUri(_Request):
    """A video below one of the prefixes that the server allows."""

    uri: Text


class EmbedBatch(_Request):
    """Several videos to embed; ``top_k`` neighbours of each, none at 0."""

    uris: list[Text] = Field(min_length=1, max_length=MAX_VIDEOS_IN_BATCH)
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)


class ClassifyBatch(_Request):
    """Several videos to classify."""

    uris: list[Text] = Field(min_length=1, max_length=MAX_VIDEOS_IN_BATCH)
    top_k: int = Field(default=5, ge=1, le=MAX_LABELS)
