"""Checkpoints: folders of plain files that are used only when every one of them is whole."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from raypipe.errors import ObjectError, StorageError
from raypipe.models.classifier_files import COMPLETE, digests
from raypipe.storage import Folder

_MODEL, _OPTIMIZER, _SEEN, _STATE = "model.safetensors", "optimizer.safetensors", "seen.bin", "state.json"
_FILES = (_MODEL, _OPTIMIZER, _SEEN, _STATE)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training, as read back: tensors by name, which samples this epoch saw, and everything else."""

    number: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    seen: np.ndarray[Any, np.dtype[np.bool_]]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training, in ``OUTPUT/checkpoints/<number>/``; the highest whole one counts.

    A file is put only once, and ``complete.json``, put last, holds the SHA-256 of each: an upload that was cut short,
    or that two drivers wrote into, is never taken.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output

    def put(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        seen: np.ndarray[Any, np.dtype[np.bool_]],
        state: Mapping[str, Any],
        *,
        is_best: bool,
    ) -> int | None:
        """Store the state of a training and give the number of the best checkpoint, which this one may be.

        Raises:
            StorageError: the storage refuses or cannot be reached.
        """
        number = max(self._numbers(), default=-1) + 1
        best = number if is_best else state["best_checkpoint"]
        files = {
            _MODEL: safetensors.torch.save(_contiguous(model.state_dict())),
            _OPTIMIZER: safetensors.torch.save(_optimizer_tensors(model, optimizer)),
            _SEEN: np.packbits(seen).tobytes(),
            _STATE: json.dumps({**state, "best_checkpoint": best, "num_samples": len(seen)}).encode(),
        }
        for name, data in files.items():
            self._output.put_new(f"{_folder(number)}/{name}", data)
        self._output.put_new(f"{_folder(number)}/{COMPLETE}", digests(files))
        return best

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none."""
        for number in sorted(self._numbers(), reverse=True):
            if found := self.read(number):
                return found
            _logger.warning("Checkpoint %d of %s is not whole: it is passed over.", number, self._output)
        return None

    def read(self, number: int) -> Checkpoint | None:
        """One checkpoint, None where it is not whole."""
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
        """Delete all but the newest ``keep`` and the one kept ``also``; a storage that forbids it is left as it is."""
        numbers = sorted(self._numbers(), reverse=True)
        try:
            for number in numbers[keep:]:
                if number != also:
                    self._output.delete(f"{_folder(number)}/{COMPLETE}")  # first, so that no half of one looks whole
                    for stored in list(self._output.list(f"{_folder(number)}/")):
                        self._output.delete(stored.key)
        except StorageError as error:
            _logger.warning("Old checkpoints stay: %s", error)

    def _numbers(self) -> set[int]:
        return {number for stored in self._output.list("checkpoints/") for number in _parse(stored.key)}


def _folder(number: int) -> str:
    return f"checkpoints/{number:06d}"


def _parse(key: str) -> Iterator[int]:
    if match := re.match(r"checkpoints/([0-9]{6,18})/", key):
        yield int(match[1])


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments under the names of the parameters that they belong to."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value.detach().cpu().contiguous()
        for parameter, moments in optimizer.state.items()
        for key, value in moments.items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the optimizer the moments that a checkpoint holds."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW counts its steps on the processor, whatever the device of the parameter.
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)
