"""Read, decode and embed videos that callers upload or name by URI, and open videos to play. Plain Python, without Ray.

A URI is only read if it is below a prefix that the configuration allows. A video is embedded exactly as
``raypipe embed`` embedded the videos of the index.
"""

import io
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NewType, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from raypipe.config.embed import DecodeConfig
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.stored_videos import BucketVideo, LocalVideo, StoredVideo
from raypipe.errors import (
    ConfigError,
    FingerprintError,
    IndexVersionError,
    ObjectDeniedError,
    ObjectMissingError,
    ObjectTooLargeError,
)
from raypipe.models.backbones import Vectors, clip_to_float16, mean_embedding, resolve_engine
from raypipe.models.engines import FrameEmbedder, load_embedder
from raypipe.models.int8_files import Int8Network, open_int8_file, read_int8_file
from raypipe.search.versions import Versions
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder, StoredObject, read_object
from raypipe.storage.folder import anonymous_file, read_uri
from raypipe.video.decode_request import DecodeRequest, Pixels, request_of_settings
from raypipe.video.sandbox.parent import DecodedVideo, DecodeSandbox

if TYPE_CHECKING:
    from raypipe.models.weights import Weights

AllowedUri = NewType("AllowedUri", str)  # only Prefixes creates one
Upload: TypeAlias = bytes | AllowedUri
Half: TypeAlias = npt.NDArray[np.float16]
MAX_PICTURES, _PICTURE_SIZE = 32, 96
_CHUNK_BYTES = 1_048_576
_IN_MEMORY_BYTES = 1024**3
OWN_VECTORS = "The index was built from vectors that raypipe did not make, so videos cannot be embedded like them."
_NEEDED = ("backbone", "weights", "sampling", "resize_size", "crop_size", "dtype")


class Prefixes:
    """The folders from which callers may name videos: ``s3://bucket/prefix`` or a local folder.

    Raises:
        ConfigError: a prefix is something else.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._folders = tuple(Folder(prefix).uri.rstrip("/") + "/" for prefix in prefixes)

    def __bool__(self) -> bool:
        return bool(self._folders)

    def allow(self, uri: str) -> AllowedUri:
        """Return the normalised URI. Raise HttpError 403 if it is not below a prefix. The storage is not contacted."""
        try:
            normal = Folder(uri).uri
        except ConfigError:
            normal = ""
        parts = normal.removeprefix("s3://").strip("/").split("/")
        is_plain = "\0" not in normal and not {"", ".", ".."} & set(parts) and not uri.endswith("/")
        if is_plain and any(normal.startswith(folder) for folder in self._folders):
            return AllowedUri(normal)
        message = f"{_shown(uri)} is not below a prefix from which this server may read videos."
        raise HttpError(403, message, "forbidden_uri")

    def decode(self, upload: Upload, sandbox: DecodeSandbox, *, max_size_bytes: int) -> DecodedVideo:
        """Read a video and decode it in the sandbox.

        Raises the same errors as ``open``, and HttpError 422 if no frame can be decoded.
        """
        with self.open(upload, max_size_bytes=max_size_bytes) as file:
            video = sandbox.decode(file)
        if video.status not in HAS_FRAMES:
            raise HttpError(422, f"The video cannot be decoded ({video.status}): {video.error}", "undecodable")
        return video

    def open(self, upload: Upload, *, max_size_bytes: int) -> BinaryIO:
        """Copy the video into an anonymous file, and return the file. The caller must close it.

        Raises:
            HttpError: the URI is not below a prefix (403).
            ObjectError: the video is missing, too large or unreadable, or its path contains a symbolic link.
            StorageError: the storage denies access or cannot be reached.
        """
        max_bytes = len(upload) if isinstance(upload, bytes) else max_size_bytes
        buffer = anonymous_file(max_bytes, in_memory_bytes=_IN_MEMORY_BYTES)
        try:
            if isinstance(upload, bytes):
                buffer.write(upload)
            else:
                self._copy(self.allow(upload), buffer, max_size_bytes)
        except BaseException:
            buffer.close()
            raise
        buffer.seek(0)
        return buffer

    def open_stored(self, uri: str) -> StoredVideo:
        """Open a video to read parts of it. The caller must close it.

        Raises:
            HttpError: the URI is not below a prefix (403).
            ObjectError: the video is missing or unreadable, or its path contains a symbolic link.
            StorageError: the storage denies access or cannot be reached.
        """
        allowed = self.allow(uri)
        if allowed.startswith("s3://"):
            return BucketVideo(_stat(allowed))
        return LocalVideo(_open_beneath(*self._split(allowed)), allowed)

    def _split(self, uri: AllowedUri) -> tuple[str, str]:
        folder = next(folder for folder in self._folders if uri.startswith(folder))
        return folder, uri[len(folder) :]

    def _copy(self, uri: AllowedUri, into: BinaryIO, max_size_bytes: int) -> None:
        if uri.startswith("s3://"):
            read_object(uri, etag=_stat(uri).etag, max_size_bytes=max_size_bytes, into=into)
        else:
            _copy_beneath(*self._split(uri), into, max_size_bytes)


def _stat(uri: AllowedUri) -> StoredObject:
    parent, _, name = uri.rpartition("/")
    found = Folder(parent).stat(name)
    if found is None:
        raise _missing(uri)
    return found


def _open_beneath(folder: str, name: str) -> BinaryIO:
    """Open a regular file below ``folder`` without following symbolic links.

    Each component of the path is opened relative to the previous one.
    """
    uri = folder + name
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            at = _step(at, part, flags | os.O_DIRECTORY)
        descriptor = _step(at, last, flags | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(uri) from None
    except OSError as error:  # a link (ELOOP), or no permission
        msg = f"{_shown(uri)} may not be read: {error.strerror}."
        raise ObjectDeniedError(msg, key=uri) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _missing(uri)
    return os.fdopen(descriptor, "rb")


def _copy_beneath(folder: str, name: str, into: BinaryIO, max_size_bytes: int) -> None:
    uri = folder + name
    with _open_beneath(folder, name) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        copied = 0
        while chunk := file.read(_CHUNK_BYTES):
            copied += len(chunk)
            if copied > max_size_bytes:
                msg = f"{_shown(uri)} has {size_bytes} bytes; the limit is {max_size_bytes}."
                raise ObjectTooLargeError(msg, key=uri, value=size_bytes, expected=max_size_bytes)
            into.write(chunk)


def _step(at: int, part: str, flags: int) -> int:
    try:
        return os.open(part, flags, dir_fd=at)
    finally:
        os.close(at)


def _missing(uri: str) -> ObjectMissingError:
    return ObjectMissingError(f"{_shown(uri)} does not exist.", key=uri)


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= 200 else f"{uri[:200]}…")  # noqa: PLR2004 - a line's worth


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """The settings with which the videos of an index were embedded, from the manifest of a version of the index."""

    fingerprint: str
    settings: Mapping[str, Any]
    version: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "EmbeddingSettings":
        """Read the settings from a manifest. Raise IndexVersionError if the manifest lacks one of them."""
        embeddings = manifest.get("embeddings") or {}
        settings = embeddings.get("settings") or {}
        if embeddings.get("own_vectors"):
            raise IndexVersionError(OWN_VECTORS, key="embeddings.own_vectors", value=True)
        if missing := [name for name in _NEEDED if name not in settings]:
            msg = f"The index does not record how its videos were embedded: it lacks {', '.join(missing)}."
            key = f"embeddings.settings.{missing[0]}"
            raise IndexVersionError(msg, key=key, remedy="Build it again with raypipe index.")
        return cls(str(embeddings.get("fingerprint", "")), settings, str(manifest["id"]))

    @property
    def backbone(self) -> str:
        return str(self.settings["backbone"])

    def decode_request(self, decode: DecodeConfig) -> DecodeRequest:
        return request_of_settings(self.settings, decode)

    def sandbox(self, decode: DecodeConfig) -> DecodeSandbox:
        """Start a sandbox that decodes videos, one at a time, with the settings of the index."""
        return DecodeSandbox.start(self.decode_request(decode), decode)

    def resolve_weights(self, weights: str) -> "Weights":
        """Find the weights, and check that the index was embedded with them.

        Raises:
            WeightsError: the weights cannot be found or read, or do not fit the backbone.
            FingerprintError: the index was embedded with other weights.
        """
        from raypipe.models.weights import resolve_weights  # noqa: PLC0415 - imports torch, which takes seconds

        found = resolve_weights(self.backbone, weights, read_bytes=read_uri)
        if found.digest != self.settings["weights"]:
            made = str(self.settings["weights"])
            digests = f"their digest is {found.digest[:16]}…, but the index was embedded with {made[:16]}…."
            msg = f"The weights {weights!r} are not the weights of the index: {digests}"
            remedy = "Set embedder.weights to the weights of the index, or embedder.enabled to false."
            raise FingerprintError(msg, key="embedder.weights", value=found.digest, expected=made, remedy=remedy)
        return found

    def check_backbone(self, versions: Versions, weights: str) -> None:
        """Check that the backbone can be loaded. Raises the same errors as ``load_embedder``."""
        if self.settings["dtype"] == "int8":
            resolve_engine("auto", "cpu", "int8")
            self._int8_network(versions)
        else:
            self.resolve_weights(weights)

    def load_embedder(
        self, versions: Versions, weights: str, *, device: str = "cpu", num_threads: int | None = None
    ) -> FrameEmbedder:
        """Load the backbone with which the videos of the index were embedded. int8 networks are part of the index.

        Raises:
            ConfigError: the backbone is in int8, and OpenVINO is not installed.
            WeightsError, FingerprintError: as in ``resolve_weights``.
        """
        dtype = self.settings["dtype"]
        load = partial(
            load_embedder,
            self.backbone,
            engine=resolve_engine("auto", device, dtype),
            device=device,
            dtype=dtype,
            num_threads=num_threads,
        )
        if dtype == "int8":
            int8 = self._int8_network(versions)
            return load(dict, lambda: int8.network)
        state_dict = self.resolve_weights(weights).state_dict
        return load(lambda: state_dict)

    def _int8_network(self, versions: Versions) -> Int8Network:
        folder = versions.folder_of(self.version)
        return open_int8_file(read_int8_file(folder, self.settings), uri=folder.uri)


@dataclass(frozen=True, slots=True)
class EmbeddedUpload:
    """A video embedded like the videos of the index: its embedding [D], and the embeddings [T, D] of its T frames.

    ``pts_seconds`` [T] is the time of each frame since the first one. ``pictures`` are the frames as small JPEGs. They
    are empty if they were not requested or if there are too many.
    """

    status: Literal["ok", "partial"]
    duration_seconds: float | None
    embedding: Vectors
    frame_embeddings: Half
    pts_seconds: npt.NDArray[np.float64]
    pictures: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class ClassifiedUpload:
    """The best labels of a video with their probabilities, best first.

    ``scored_frames`` holds what each of the T frames adds to the logit of the best label: [T] for the probe, and [T]
    for GPT-2. It is None if the scores were not requested, or if the scores of this model do not help.
    """

    labels: Sequence[tuple[str, float]]
    scored_frames: tuple[Vectors, Vectors] | None = None


def frame_pictures(frames: Pixels) -> list[bytes]:
    """Return frames [T, height, width, 3] as small JPEGs of 2 to 3 kB. Many frames give no pictures."""
    if len(frames) > MAX_PICTURES:
        return []
    pictures = []
    for frame in frames:
        jpeg = io.BytesIO()
        small = Image.fromarray(frame).resize((_PICTURE_SIZE, _PICTURE_SIZE), Image.Resampling.BILINEAR, reducing_gap=2)
        small.save(jpeg, "JPEG", quality=70)
        pictures.append(jpeg.getvalue())
    return pictures


def embed_videos(videos: Sequence[Pixels], embedder: FrameEmbedder) -> list[tuple[Vectors, Half] | HttpError]:
    """Embed the frames of several videos in one batch. Return the embedding [D] and frame embeddings [T, D] of each.

    If the vectors of a video contain NaN, its entry is an HttpError. The other videos are not affected.
    """
    vectors = clip_to_float16(embedder.embed(np.concatenate(videos)))
    parts = np.split(vectors, np.cumsum([len(frames) for frames in videos])[:-1])
    return [
        HttpError(500, "The backbone returned vectors that contain NaN.")
        if np.isnan(part).any()
        else (mean_embedding(part), part.astype(np.float16))
        for part in parts
    ]
