"""Read the files of a model from a local or S3 folder, and verify them. torch is not needed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from raypipe.errors import ObjectError, ObjectMissingError, WeightsError
from raypipe.storage import Folder

CONFIG, WEIGHTS, COMPLETE = "config.json", "model.safetensors", "complete.json"
MODEL_FOLDER = "model"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The content of a model's files, the SHA-256 that identifies the model, and the URI of its folder."""

    files: Mapping[str, bytes]
    digest: str
    source: str


def read_model(folder: Folder) -> ModelFiles:
    """Read the model in an output of ``raypipe train``, or in a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: there is no model, or its files differ from the files that were saved.
        StorageError: the storage denies access or cannot be reached.
    """
    inner = Folder(folder.child(MODEL_FOLDER))
    source = inner if inner.exists(CONFIG) else folder
    try:
        files = {name: source.read(name) for name in (CONFIG, WEIGHTS)}
    except ObjectMissingError:
        msg = f"{folder} holds no model: no {CONFIG} and {WEIGHTS} in it or in {MODEL_FOLDER}/."
        remedy = "Give the finished --output of raypipe train, or a folder of save_pretrained."
        raise WeightsError(msg, key=folder.uri, remedy=remedy) from None
    except ObjectError as error:
        msg = f"Cannot read the model in {source}: {error}"
        raise WeightsError(msg) from None
    _check_complete(source, files)
    digest = hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files)))
    return ModelFiles(files, digest.hexdigest(), source.uri)


def _check_complete(source: Folder, files: Mapping[str, bytes]) -> None:
    """Check that files that raypipe saved still have the digests in ``complete.json``.

    Folders of other tools have no such file and are not checked.
    """
    try:
        said = json.loads(source.read(COMPLETE))["sha256"]
    except ObjectMissingError:
        return  # a folder of another tool: safetensors itself detects a truncated file
    except (ObjectError, KeyError, TypeError, ValueError):
        said = {}
    for name, data in files.items():
        check_digest(source, name, data, expected=said.get(name))


def check_digest(source: Folder, name: str, data: bytes, *, expected: object) -> None:
    """Raise WeightsError unless the content of a file has the digest that ``complete.json`` says."""
    if hashlib.sha256(data).hexdigest() != expected:
        msg = f"{source.child(name)} does not have the digest in {COMPLETE}."
        raise WeightsError(msg, key=source.child(name), remedy="Train again, or restore it.")


def digests(files: Mapping[str, bytes], *, others: Mapping[str, str] | None = None) -> bytes:
    """Return the content of ``complete.json``: the digest of each file. It is written after all other files.

    ``others`` are the digests of more files.
    """
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} | dict(others or {})
    return json.dumps({"sha256": sha256}, indent=1).encode()
