"""The definition of a training: its network, its initial weights, and the facts that must stay the same on resume."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raypipe.config import ClassifierConfig, OptimizerConfig, TrainConfig
from raypipe.errors import CommitError, ConfigError, FingerprintError, ObjectError, WeightsError
from raypipe.jobs.train.batches import Batch
from raypipe.jobs.train.inputs import TARGETS, TrainingSamples
from raypipe.models.classifier import MaskedFrameModel, VideoClassifier, VideoClassifierConfig, classification_loss
from raypipe.models.classifier_files import ModelFiles, build_model, check_embeddings, read_config, read_model
from raypipe.models.gpt2 import Gpt2, VideoModel, add_lora, freeze, resolve_gpt2
from raypipe.storage import Folder
from raypipe.text import one_line

RUN = "run.json"
_FREE = {"output", "checkpoint", "resources"}  # keys that may change when a training is resumed
_NAMED = 3


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The architecture and the initial weights of a network.

    The weights come from ``gpt2`` or, if ``init_from`` is set, from the encoder of an earlier training's model.
    """

    config: VideoClassifierConfig
    model: ClassifierConfig
    classifies: bool
    gpt2: Gpt2
    init_from: ModelFiles | None = None


def build(spec: NetworkSpec, *, seed: int) -> VideoModel:
    """Build the model. The same seed always gives the same model. Frozen parameters do not require gradients.

    Raises:
        WeightsError: the initial weights do not fit the network.
    """
    torch.manual_seed(seed)
    model: VideoModel = VideoClassifier(spec.config) if spec.classifies else MaskedFrameModel(spec.config)
    try:
        if spec.init_from is not None:
            model.encoder.load_state_dict(build_model(spec.init_from).encoder.state_dict())
        elif spec.gpt2.weights:
            model.encoder.gpt2.load_state_dict(dict(spec.gpt2.weights))
    except RuntimeError as error:
        key, source = ("init_from", spec.init_from.source) if spec.init_from else ("model.gpt2", spec.model.gpt2)
        msg = f"{key}={str(source)!r} does not fit: {one_line(error)[:300]}"
        raise WeightsError(msg, key=key, value=source) from None
    if spec.model.lora.rank:
        add_lora(model, **spec.model.lora.model_dump())
    freeze(model, spec.model.freeze)
    if spec.classifies:
        model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - only masked-frame training hides frames
    return model


def seed_step(*numbers: int) -> None:
    """Seed torch's random generators, on the CPU and the GPU, with a hash of these numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which asks every backend: 0.1 ms per step
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class Objective:
    """The training objective. Calling it returns the loss of each video ``[B]`` and the logits ``[B, C]``.

    The logits are None if the network does not classify.
    """

    def __init__(self, config: OptimizerConfig, *, class_weights: torch.Tensor | None) -> None:
        self._config = config
        self._class_weights = class_weights

    def __call__(self, network: nn.Module, batch: Batch, *, learning: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the network on a batch and return the losses and the logits.

        ``network`` may be wrapped in ``DistributedDataParallel``. If ``learning`` is True, frames are dropped, labels
        are smoothed and classes are weighted, as configured.
        """
        if batch.labels is None:
            hidden = hide_frames(batch.mask, self._config.masked_fraction)
            return network(batch.frames, batch.mask, hidden).losses, None
        mask = batch.mask
        if learning and self._config.frame_dropout:
            mask = drop_frames(mask, self._config.frame_dropout)
        logits = network(batch.frames, mask).logits
        weights = self._class_weights if learning else None
        smoothing = self._config.label_smoothing if learning else 0.0
        losses = classification_loss(logits, batch.labels, class_weights=weights, label_smoothing=smoothing)
        return losses, logits.detach().float()


def drop_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the mask ``[B, T]`` without about ``fraction`` of its frames, chosen at random.

    Every video keeps at least one frame.
    """
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    kept = chance >= fraction
    kept[torch.arange(len(mask)), chance.argmax(dim=1)] = True
    return mask * kept


def hide_frames(mask: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask ``[B, T]`` of the frames to hide: a random choice of about ``fraction`` of the frames in ``mask``.

    At least one frame of every video is hidden.
    """
    chance = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, 2.0)
    hidden = chance < fraction
    hidden[torch.arange(len(mask)), chance.argmin(dim=1)] = True
    return hidden


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A training with everything that it starts from."""

    config: TrainConfig
    output: Folder
    samples: TrainingSamples
    network: NetworkSpec
    learning_rate: float

    @property
    def class_weights(self) -> list[float] | None:
        """The loss weight of each label, or None if labels are not weighted. Rare labels weigh more.

        For single-label training, the weights average to 1 over the videos. For multi-label training, they are the
        weights of positive labels, relative to a weight of 1 for negative labels.
        """
        if self.config.optimizer.class_weights == "none" or not self.samples.label_names:
            return None
        labels = self.samples.train[TARGETS].combine_chunks().flatten()
        counts = np.bincount(labels, minlength=len(self.samples.label_names)).clip(min=1)
        num_videos = self.samples.train.num_rows
        several = self.samples.multi_label
        weights = ((num_videos - counts) / counts).clip(0.1, 100) if several else num_videos / (len(counts) * counts)
        return [float(weight) for weight in weights]


def prepare(config: TrainConfig, samples: TrainingSamples) -> RunSpec:
    """Find the weights that the training starts from, and return the complete definition of the training run.

    The weights are those of a pretrained GPT-2, or of an earlier model (``init_from``).

    Raises:
        ConfigError: settings contradict each other.
        FingerprintError: ``init_from`` was trained on embeddings with other settings.
        WeightsError: the weights cannot be found or read.
    """
    init_from = None if config.init_from is None else read_model(Folder(config.init_from))
    if init_from is None:
        gpt2 = resolve_gpt2(config.model.gpt2)
        max_frames = min(config.model.max_frames, gpt2.max_frames or config.model.max_frames)
    else:
        comparable = samples.comparable_fingerprints
        check_embeddings(init_from, samples.fingerprint, samples.embedding_dim, comparable=comparable)
        learned = read_config(init_from)
        gpt2, max_frames = Gpt2(learned.gpt2.to_dict()), learned.max_frames
    _check_freeze(config, gpt2)
    network = NetworkSpec(
        config=classifier_config(config, samples, gpt2, max_frames=max_frames),
        model=config.model,
        classifies=config.objective == "classify",
        gpt2=gpt2,
        init_from=init_from,
    )
    rate = config.optimizer.learning_rate
    if rate == "auto":
        lora = config.model.lora.rank > 0
        rate = auto_learning_rate(n_embd=gpt2.config["n_embd"], pretrained=bool(gpt2.weights), lora=lora)
    return RunSpec(config, Folder(config.output), samples, network, rate)


def _check_freeze(config: TrainConfig, gpt2: Gpt2) -> None:
    freeze, num_blocks = config.model.freeze, gpt2.config["n_layer"]
    blocks = freeze.removeprefix("all_but_last_")
    if blocks.isdigit() and int(blocks) > num_blocks:
        msg = f"model.freeze={freeze!r}: this GPT-2 has {num_blocks} blocks."
        remedy = f"Choose all_but_last_{num_blocks} or less."
    elif config.model.lora.rank and freeze != "none":
        msg = f"model.freeze={freeze!r} with model.lora: adapters freeze GPT-2 themselves."
        remedy = "Set either model.freeze or model.lora.rank."
    else:
        return
    raise ConfigError(msg, key="model.freeze", value=freeze, remedy=remedy)


def classifier_config(
    config: TrainConfig, samples: TrainingSamples, gpt2: Gpt2, *, max_frames: int
) -> VideoClassifierConfig:
    """Return the configuration that the model's ``config.json`` will hold.

    The dropout rates inside GPT-2 are set to ``model.dropout``.
    """
    dropout = config.model.dropout
    sizes = {**gpt2.config, **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), dropout)}
    if (width := sizes["n_embd"]) % sizes["n_head"]:
        msg = f"model.gpt2: n_embd {width} is not a multiple of n_head {sizes['n_head']}."
        raise ConfigError(msg, key="model.gpt2.n_embd", value=width)
    return VideoClassifierConfig(
        embedding_dim=samples.embedding_dim,
        gpt2=sizes,
        max_frames=max_frames,
        dropout=dropout,
        embedding_fingerprint=samples.fingerprint,
        problem_type="multi_label_classification" if samples.multi_label else "single_label_classification",
        id2label=dict(enumerate(samples.label_names)),
        label2id={label: number for number, label in enumerate(samples.label_names)},
    )


def auto_learning_rate(*, n_embd: int, pretrained: bool, lora: bool) -> float:
    """Return the learning rate for ``auto``.

    For random weights, the rate was measured at a width of 128 and is inversely proportional to the width, as Yang et
    al. (2022, arXiv:2203.03466) recommend for AdamW. The rates for LoRA and for pretrained weights are common for
    fine-tuning GPT-2 (Hu et al. 2021, arXiv:2106.09685).
    """
    if lora:
        return 1e-3
    return 1e-4 if pretrained else 3e-3 * 128 / n_embd


def run_facts(spec: RunSpec) -> dict[str, Any]:
    """Return the facts that identify a run: the settings that affect its result, its samples, its initial weights."""
    samples, gpt2, init_from = spec.samples, spec.network.gpt2, spec.network.init_from
    settings = {key: value for key, value in spec.config.model_dump(mode="json").items() if key not in _FREE}
    del settings["data"]["cache_bytes"]
    weights = init_from.digest if init_from else "random"
    if gpt2.weights:
        sha256 = hashlib.sha256()
        for name, tensor in sorted(gpt2.weights.items()):
            sha256.update(name.encode() + tensor.numpy().tobytes())
        weights = sha256.hexdigest()
    data = {
        "embeddings": samples.fingerprint,
        "samples": samples.digest,
        "num_train": samples.train.num_rows,
        "num_validation": samples.validation.num_rows,
    }
    return {"settings": settings, "data": data, "weights": weights}


def check_same_run(output: Folder, facts_now: Mapping[str, Any]) -> None:
    """Store the facts that identify this run. If the output already holds a run, check that its facts are the same.

    Raises:
        FingerprintError: the output holds another run. The message names the settings that differ.
        CommitError: the stored ``run.json`` cannot be read.
    """
    data = json.dumps(facts_now, indent=1, sort_keys=True).encode()
    if output.put_new(RUN, data):
        return
    try:
        before, now = _leaves(json.loads(output.read(RUN))), _leaves(json.loads(data))
    except (ObjectError, AttributeError, TypeError, ValueError) as error:
        msg = f"{output.child(RUN)} is not the run.json of a training: {one_line(error)}."
        raise CommitError(msg, key=output.child(RUN), remedy="Choose another output.") from None
    differ = [
        (key.partition(".")[2] or key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differ:
        listed = "; ".join(f"{key} was {was!r} and is now {is_now!r}" for key, was, is_now in differ[:_NAMED])
        more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        msg = f"{output} holds another training: {listed}{more}."
        key, was, is_now = differ[0]
        remedy = "Choose another output, or restore these settings."
        raise FingerprintError(msg, key=key, value=is_now, expected=was, remedy=remedy)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
