"""What a training leaves behind beside its checkpoints: its metrics for other tools, and the model."""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from tensorboardX import SummaryWriter

from raypipe.errors import CommitError
from raypipe.models.adapters import VideoModel, merge_lora
from raypipe.models.classifier_files import COMPLETE, CONFIG, MODEL_FOLDER, WEIGHTS, digests, read_model
from raypipe.storage import Folder

METRICS = "metrics.jsonl"
_TENSORBOARD = "tensorboard/events.out.tfevents.0.raypipe"
_AXES = {"epoch", "step"}
_TIMES = {"seconds", "samples_per_second"}


def put_metrics(output: Folder, history: Sequence[Mapping[str, Any]]) -> None:
    """Write every epoch so far to ``metrics.jsonl``, a line each, and for TensorBoard, in place of what was there."""
    lines = "".join(f"{json.dumps(dict(epoch), allow_nan=False)}\n" for epoch in history)
    output.put(METRICS, lines.encode())
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder, filename_suffix=".raypipe")
        for epoch in history:
            for name, value in epoch.items():
                if name not in _AXES and value is not None:
                    writer.add_scalar(name, value, epoch["epoch"])
        writer.close()
        output.put(_TENSORBOARD, next(Path(folder).iterdir()).read_bytes())


def put_model(output: Folder, model: VideoModel, *, metrics: Mapping[str, Any]) -> str:
    """Write the model as ``save_pretrained`` would, adapters merged into its weights, and give its folder's URI.

    Raises:
        CommitError: another model was put there meanwhile.
    """
    merged = copy.deepcopy(model).cpu().eval()
    merge_lora(merged)
    merged.config.architectures = [type(model).__name__]
    # Without how long it took: two drivers of one training put the same bytes.
    merged.config.metrics = {name: value for name, value in metrics.items() if name not in _TIMES}
    state = {name: tensor.contiguous() for name, tensor in merged.state_dict().items()}
    files = {
        CONFIG: cast("str", merged.config.to_json_string(use_diff=False)).encode(),
        WEIGHTS: safetensors.torch.save(state, metadata={"format": "pt"}),
    }
    folder = Folder(output.child(MODEL_FOLDER))
    for name, data in files.items():
        folder.put_new(name, data)
    folder.put_new(COMPLETE, digests(files))
    if read_model(folder).files != files:
        msg = f"{folder} holds another model."
        raise CommitError(msg, key=folder.uri, remedy="Choose another output.")
    return folder.uri
