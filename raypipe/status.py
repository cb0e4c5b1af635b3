"""The outcome of one video or one user. Everything that is planned results in exactly one row with one status."""

from enum import StrEnum


class Status(StrEnum):
    """The outcome of one video."""

    OK = "ok"  # every chosen frame was decoded and is intact
    PARTIAL = "partial"  # fewer frames than requested, or some corrupt frames
    DECODE_ERROR = "decode_error"  # no decoder could read a frame
    NO_VIDEO_STREAM = "no_video_stream"  # the file has no video, or only a cover picture
    ENCRYPTED = "encrypted"  # the frames cannot be decoded without a key
    FORBIDDEN_FORMAT = "forbidden_format"  # the content is not a container that raypipe reads, such as a playlist
    TOO_LARGE = "too_large"  # bytes, pixels, duration or packets exceed a limit
    TIMEOUT = "timeout"  # decoding took longer than decode.timeout_seconds
    OUT_OF_MEMORY = "out_of_memory"  # decoding needed more than decode.memory_bytes
    CRASHED = "crashed"  # the decode child died, or its reply was invalid
    CHANGED = "changed"  # the object's etag differs from the planned etag
    MISSING = "missing"  # the object does not exist any more
    ACCESS_DENIED = "access_denied"  # reading the object is not allowed
    STORAGE_ERROR = "storage_error"  # reading the object still failed at the last retry
    GONE = "gone"  # a complete listing of the input no longer contains the video; nothing was read


class UserStatus(StrEnum):
    """How ``raypipe recommend`` answered one row of the history."""

    OK = "ok"  # with videos that follow from the history
    POPULAR = "popular"  # with popular videos, because the index has no video of the history
    ERROR = "error"  # the row cannot be read or answered


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
