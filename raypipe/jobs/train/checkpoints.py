"""The files that workers store: checkpoints to resume from, metrics for other tools, and the final model."""

import copy
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from tensorboardX import SummaryWriter
from torch import nn
from torch.optim import Optimizer

from raypipe.errors import CommitError, ObjectError, StorageError
from raypipe.models.gpt2 import VideoModel, merge_lora
from raypipe.models.model_files import COMPLETE, CONFIG, MODEL_FOLDER, WEIGHTS, digests
from raypipe.models.next_video import NextVideoModel
from raypipe.storage import Folder

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard/events.out.tfevents.0.raypipe"
_AXES = {"epoch", "step"}
_TIMES = {"seconds", "samples_per_second"}
_MODEL, _OPTIMIZER, _SEEN, _STATE = "model.safetensors", "optimizer.safetensors", "seen.bin", "state.json"
_FILES = (_MODEL, _OPTIMIZER, _SEEN, _STATE)
Bools = npt.NDArray[np.bool_]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The stored state of a training.

    ``model`` and ``optimizer`` hold tensors by name, ``seen`` is a mask of the samples seen in the current epoch, and
    ``state`` holds the fields of ``TrainingState``.
    """

    number: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    seen: Bools
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training, in ``OUTPUT/checkpoints/<number>/``. A resume uses the latest complete one.

    Each file is written only once. ``complete.json`` is written last and holds the SHA-256 of each file. So a
    checkpoint whose upload was interrupted, or that two drivers wrote to, is never used.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output

    def put(
        self, model: nn.Module, optimizer: Optimizer, seen: Bools, state: Mapping[str, Any], *, is_best: bool
    ) -> int | None:
        """Store a checkpoint, and return the number of the best checkpoint so far: this one if ``is_best``.

        Raises:
            StorageError: the storage rejects a write or cannot be reached.
        """
        number = max(self._numbers(), default=-1) + 1
        best = number if is_best else state["best_checkpoint"]
        files = {
            _MODEL: safetensors.torch.save(_on_cpu(model.state_dict())),
            _OPTIMIZER: safetensors.torch.save(_on_cpu(_optimizer_tensors(model, optimizer))),
            _SEEN: np.packbits(seen).tobytes(),
            _STATE: json.dumps({**state, "best_checkpoint": best, "num_samples": len(seen)}).encode(),
        }
        for name, data in files.items():
            self._output.put_new(f"{_folder(number)}/{name}", data)
        self._output.put_new(f"{_folder(number)}/{COMPLETE}", digests(files))
        return best

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None if there is no complete one."""
        for number in sorted(self._numbers(), reverse=True):
            if found := self.read(number):
                return found
            _logger.warning("Checkpoint %d of %s is incomplete and is skipped.", number, self._output)
        return None

    def read(self, number: int) -> Checkpoint | None:
        """Return the checkpoint with this number, or None if it is incomplete or corrupt."""
        try:
            sha256 = json.loads(self._output.read(f"{_folder(number)}/{COMPLETE}"))["sha256"]
            files = {name: self._output.read(f"{_folder(number)}/{name}") for name in _FILES}
        except (ObjectError, KeyError, TypeError, ValueError):
            return None
        if {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} != sha256:
            return None
        state = json.loads(files[_STATE])
        seen = np.unpackbits(np.frombuffer(files[_SEEN], np.uint8), count=state["num_samples"]).astype(bool)
        model, optimizer = (safetensors.torch.load(files[name]) for name in (_MODEL, _OPTIMIZER))
        return Checkpoint(number, model, optimizer, seen, state)

    def prune(self, *, keep: int, also: int | None) -> None:
        """Delete all checkpoints except the newest ``keep`` ones and the one with the number ``also``.

        If the storage forbids deletion, log a warning and keep the rest.
        """
        numbers = sorted(self._numbers(), reverse=True)
        try:
            for number in numbers[keep:]:
                if number != also:
                    self._output.delete(f"{_folder(number)}/{COMPLETE}")  # first, so that the rest looks incomplete
                    for stored in list(self._output.list(f"{_folder(number)}/")):
                        self._output.delete(stored.key)
        except StorageError as error:
            _logger.warning("Old checkpoints are kept: %s", error)

    def _numbers(self) -> set[int]:
        keys = (stored.key for stored in self._output.list("checkpoints/"))
        return {int(match[1]) for key in keys if (match := re.match(r"checkpoints/([0-9]{6,18})/", key))}


def _folder(number: int) -> str:
    return f"checkpoints/{number:06d}"


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Return AdamW's state (moments and step counts), with keys of the form ``parameter/moment``."""
    states = ((name, optimizer.state.get(parameter, {})) for name, parameter in model.named_parameters())
    return {f"{name}/{key}": value for name, moments in states for key, value in moments.items()}


def load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load AdamW's state from a checkpoint into the optimizer. The keys of ``tensors`` are ``parameter/moment``."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU, even for parameters on a GPU.
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)


def put_metrics(output: Folder, history: Sequence[Mapping[str, Any]]) -> None:
    """Write ``metrics.jsonl``, with one line per epoch so far, and TensorBoard's event file. Replace earlier ones."""
    lines = "".join(f"{json.dumps(dict(epoch), allow_nan=False)}\n" for epoch in history)
    output.put(METRICS, lines.encode())
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder, filename_suffix=".raypipe")
        for epoch in history:
            for name, value in epoch.items():
                if name not in _AXES and value is not None:
                    writer.add_scalar(name, value, epoch["epoch"])
        writer.close()
        output.put(TENSORBOARD, next(Path(folder).iterdir()).read_bytes())


def put_model(
    output: Folder,
    model: VideoModel | NextVideoModel,
    *,
    metrics: Mapping[str, Any],
    others: Mapping[str, str] | None = None,
) -> str:
    """Write the model in the format of ``save_pretrained``, and return the URI of its folder.

    LoRA adapters are merged into the weights. ``others`` are the digests of files that are already there.

    Raises:
        CommitError: another model was written to the same folder in the meantime.
    """
    return put_files(output, saved_files(model, metrics=metrics), others=others)


def saved_files(model: VideoModel | NextVideoModel, *, metrics: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the content of the files of ``save_pretrained`` by name. LoRA adapters are merged into the weights."""
    merged = copy.deepcopy(model).cpu().eval()
    merge_lora(merged)
    merged.config.architectures = [type(model).__name__]
    # Leave out the durations, so that two drivers of the same training write the same bytes.
    merged.config.metrics = {name: value for name, value in metrics.items() if name not in _TIMES}
    state = {name: tensor.contiguous() for name, tensor in merged.state_dict().items()}
    return {
        CONFIG: cast("str", merged.config.to_json_string(use_diff=False)).encode(),
        WEIGHTS: safetensors.torch.save(state, metadata={"format": "pt"}),
    }


def put_files(output: Folder, files: Mapping[str, bytes], *, others: Mapping[str, str] | None = None) -> str:
    """Write the files of a model, and the file with their digests last. Return the URI of the model's folder.

    Raises:
        CommitError: another model was written to the same folder in the meantime.
    """
    folder = Folder(output.child(MODEL_FOLDER))
    for name, data in files.items():
        folder.put_new(name, data)
    complete = digests(files, others=others)
    folder.put_new(COMPLETE, complete)
    if any(folder.read(name) != data for name, data in {**files, COMPLETE: complete}.items()):
        msg = f"{folder} holds another model."
        raise CommitError(msg, key=folder.uri, remedy="Choose another output.")
    return folder.uri
