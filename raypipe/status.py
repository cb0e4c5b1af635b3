"""How one video, or one user, ended. Everything that is planned ends as exactly one row with one of these."""

from enum import StrEnum


class Status(StrEnum):
    """The outcome of one video."""

    OK = "ok"
    PARTIAL = "partial"  # fewer frames than asked for, or some of them corrupt
    DECODE_ERROR = "decode_error"
    NO_VIDEO_STREAM = "no_video_stream"
    ENCRYPTED = "encrypted"  # its pictures cannot be decoded without a key
    FORBIDDEN_FORMAT = "forbidden_format"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    CHANGED = "changed"  # the object's etag is not the planned one
    MISSING = "missing"
    ACCESS_DENIED = "access_denied"
    STORAGE_ERROR = "storage_error"  # the storage kept failing on this object after every retry
    GONE = "gone"  # no longer in its input, by a complete listing; nothing was read


class UserStatus(StrEnum):
    """How ``raypipe recommend`` answered one row of the history."""

    OK = "ok"
    POPULAR = "popular"  # by what is popular: the index holds no video of the history
    ERROR = "error"  # the row cannot be read, or not be answered


HAS_FRAMES = frozenset({Status.OK, Status.PARTIAL})
NOT_FAILED = HAS_FRAMES | {Status.GONE}  # every other status of a video is a failure
NOT_FAILED_IN_ANY_JOB: frozenset[str] = NOT_FAILED | {UserStatus.POPULAR}
TRANSIENT = frozenset(
    {
        Status.TIMEOUT,
        Status.OUT_OF_MEMORY,
        Status.CRASHED,
        Status.CHANGED,
        Status.MISSING,
        Status.ACCESS_DENIED,
        Status.STORAGE_ERROR,
    }
)
