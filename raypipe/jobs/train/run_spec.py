"""The definition of a training: its network, its initial weights, and the facts that must stay the same on resume."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raypipe.config import ClassifierConfig, OptimizerConfig, TrainConfig
from raypipe.config.train import Objective
from raypipe.errors import CommitError, ConfigError, FingerprintError, ObjectError, WeightsError
from raypipe.jobs.train.classifier.probing import LabelSpace, TrainedProbe
from raypipe.jobs.train.inputs import TARGETS, TrainingSamples
from raypipe.jobs.train.ranker.histories import HistorySamples
from raypipe.jobs.train.ranker.ranker_spec import LEARNING_RATE, RankerNetwork, ranker_network
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig
from raypipe.models.classifier_files import build_model, check_embeddings, read_config
from raypipe.models.gpt2 import Gpt2, VideoModel, add_lora, freeze, resolve_gpt2
from raypipe.models.model_files import ModelFiles, read_model
from raypipe.models.pretraining import FrameOrderModel, MaskedFrameModel
from raypipe.storage import Folder
from raypipe.text import one_line

RUN, SELECTION = "run.json", "selection"
_FREE = {"output", "checkpoint", "resources", "cache"}  # keys that may change when a training is resumed
_NAMED = 3
_MAX_COMPARED_VIDEOS = 2_000  # of a training whose model is compared with GPT-2 alone
_MIN_COMPARED = 2  # a standard error needs this many videos
_PRETRAINED: Mapping[str, type[VideoModel]] = {"masked_frame": MaskedFrameModel, "frame_order": FrameOrderModel}
_BEFORE: Mapping[str, Any] = {  # what older versions did, which stored no such keys
    "settings.model.head": "gpt2",
}


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The architecture and the initial weights of a network.

    The weights come from ``gpt2`` or, if ``init_from`` is set, from the encoder of an earlier training's model.
    ``probe`` is set once it is fitted, if the network has one.
    """

    config: VideoClassifierConfig
    model: ClassifierConfig
    objective: Objective
    gpt2: Gpt2
    init_from: ModelFiles | None = None
    probe: TrainedProbe | None = None

    @property
    def n_embd(self) -> int:
        return int(self.config.gpt2.n_embd)


def build(spec: NetworkSpec, *, seed: int) -> VideoModel:
    """Build the model. The same seed always gives the same model. Frozen parameters do not require gradients.

    Raises:
        WeightsError: the initial weights do not fit the network.
    """
    torch.manual_seed(seed)
    reads: dict[str, object] = {}
    if spec.probe is not None:
        reads = {"probe": spec.probe.features, "gpt2_reads": "changes"}
    if spec.objective == "frame_order":
        reads["gpt2_reads"] = "changes"
    if spec.init_from is not None:
        reads["gpt2_reads"] = read_config(spec.init_from).gpt2_reads
    config = VideoClassifierConfig.from_dict(spec.config.to_dict() | reads)
    model: VideoModel = _PRETRAINED.get(spec.objective, VideoClassifier)(config)
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
    if spec.probe is not None and isinstance(model, VideoClassifier):
        model.probe.load_state_dict(dict(spec.probe.weights))
        torch.nn.init.zeros_(model.head.weight)  # so that the model starts as the probe
        torch.nn.init.zeros_(model.head.bias)
    if not isinstance(model, MaskedFrameModel):
        model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - only masked-frame training hides frames
    return model


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A training with everything that it starts from.

    ``selection`` is a training that comes first: it chooses the epoch after which this one stops.
    """

    config: TrainConfig
    output: Folder
    samples: TrainingSamples | HistorySamples
    network: NetworkSpec | RankerNetwork
    learning_rate: float
    selection: "RunSpec | None" = None

    @property
    def has_probe(self) -> bool:
        """Whether GPT-2 is added to a probe, or left out."""
        return _has_probe(self.config)

    @property
    def is_compared(self) -> bool:
        """Whether the model is compared with simpler ones on the validation videos."""
        is_measured = self.config.classifies and self.samples.validation.num_rows >= _MIN_COMPARED
        return is_measured and self.config.model.compare != "none"

    @property
    def peer(self) -> tuple[NetworkSpec, float] | None:
        """GPT-2 without a probe and its learning rate, if it is trained as well to compare with."""
        network, wanted = self.network, self.config.model.compare
        if wanted == "auto":
            is_small = self.config.model.head == "auto" and self.samples.train.num_rows <= _MAX_COMPARED_VIDEOS
            wanted = "all" if is_small else "simple"
        if wanted != "all" or not self.is_compared or not self.has_probe or not isinstance(network, NetworkSpec):
            return None
        alone = replace(network, probe=None)
        return alone, _learning_rate(alone, self.config.optimizer, reads_changes=False)

    @property
    def stop_epoch(self) -> int | None:
        """Return 0 if only the probe is wanted, or if too few validation videos could show that GPT-2 helps."""
        without_gpt2 = self.config.model.head == "probe" or self.samples.validation.num_rows < _MIN_COMPARED
        return 0 if self.has_probe and without_gpt2 else None

    @property
    def label_space(self) -> LabelSpace:
        """The labels of a training that classifies, and how much each counts."""
        weights = self.class_weights
        several = isinstance(self.samples, TrainingSamples) and self.samples.multi_label
        return LabelSpace(len(self.samples.label_names), several, None if weights is None else tuple(weights))

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


def _has_probe(config: TrainConfig) -> bool:
    return config.classifies and config.model.head != "gpt2"


def prepare(config: TrainConfig, samples: TrainingSamples | HistorySamples) -> RunSpec:
    """Return the complete definition of a training run.

    Raises:
        ConfigError: settings contradict each other.
        FingerprintError: ``init_from`` was trained on embeddings with other settings.
        WeightsError: the weights cannot be found or read.
    """
    if isinstance(samples, HistorySamples):
        return _prepare_ranker(config, samples)
    return _prepare_video_model(config, samples)


def _prepare_ranker(config: TrainConfig, samples: HistorySamples) -> RunSpec:
    output, rate = Folder(config.output), config.optimizer.learning_rate
    found = LEARNING_RATE if rate == "auto" else rate
    selection = None
    if samples.selection is not None:
        network = ranker_network(config, samples.selection, whole=samples)
        selection = RunSpec(config, Folder(output.child(SELECTION)), samples.selection, network, found)
    return RunSpec(config, output, samples, ranker_network(config, samples, whole=samples), found, selection)


def _prepare_video_model(config: TrainConfig, samples: TrainingSamples) -> RunSpec:
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
        _check_has_gpt2(init_from, learned)
        gpt2, max_frames = Gpt2(learned.gpt2.to_dict()), learned.max_frames
    _check_freeze(config, gpt2)
    network = NetworkSpec(
        config=classifier_config(config, samples, gpt2, max_frames=max_frames),
        model=config.model,
        objective=config.objective,
        gpt2=gpt2,
        init_from=init_from,
    )
    rate = _learning_rate(network, config.optimizer, reads_changes=_has_probe(config) and init_from is None)
    return RunSpec(config, Folder(config.output), samples, network, rate)


def _learning_rate(network: NetworkSpec, config: OptimizerConfig, *, reads_changes: bool) -> float:
    if config.learning_rate != "auto":
        return config.learning_rate
    return auto_learning_rate(
        n_embd=network.n_embd,
        pretrained=bool(network.gpt2.weights),
        lora=network.model.lora.rank > 0,
        reads_changes=reads_changes,
    )


def _check_has_gpt2(init_from: ModelFiles, learned: VideoClassifierConfig) -> None:
    if not learned.has_gpt2:
        msg = f"{init_from.source} has no GPT-2: only a linear probe was kept."
        remedy = "Choose a training with objective masked_frame or frame_order, or with model.head=gpt2."
        raise WeightsError(msg, key="init_from", value=init_from.source, remedy=remedy)
    if learned.int8 or learned.gpt2_heads is not None:
        msg = f"{init_from.source} is a compressed model, which cannot be trained further."
        remedy = "Choose the model that it was made of."
        raise WeightsError(msg, key="init_from", value=init_from.source, remedy=remedy)


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


def auto_learning_rate(*, n_embd: int, pretrained: bool, lora: bool, reads_changes: bool = False) -> float:
    """Return the learning rate for ``auto``.

    For random weights, the rate was measured at a width of 128 and is inversely proportional to the width, as Yang et
    al. (2022, arXiv:2203.03466) recommend for AdamW. It is higher for changes, which are normalised. The rates for LoRA
    and for pretrained weights are common for fine-tuning GPT-2 (Hu et al. 2021, arXiv:2106.09685).
    """
    if lora:
        return 1e-3
    if pretrained:
        return 1e-4
    return (6e-3 if reads_changes else 3e-3) * 128 / n_embd


def run_facts(spec: RunSpec) -> dict[str, Any]:
    """Return the facts that identify a run: the settings that affect its result, its samples, its initial weights."""
    samples, network = spec.samples, spec.network
    settings = {key: value for key, value in spec.config.model_dump(mode="json").items() if key not in _FREE}
    del settings["data"]["cache_bytes"]
    data = {
        "embeddings": samples.fingerprint,
        "samples": samples.digest,
        "num_train": samples.train.num_rows,
        "num_validation": samples.validation.num_rows,
    }
    if isinstance(samples, HistorySamples):
        del settings["model"], settings["self_train"], settings["ranker"]["index_version"]
        data["index_version"] = samples.index.version
    else:
        del settings["ranker"], settings["model"]["compare"]
        if spec.config.objective != "self_train":
            del settings["self_train"]
        if not spec.has_probe:
            del settings["model"]["head"]
    weights = _initial_weights(network) if isinstance(network, NetworkSpec) else "random"
    return {"settings": settings, "data": data, "weights": weights}


def _initial_weights(network: NetworkSpec) -> str:
    """Return a hash of the weights that the training starts from."""
    if network.gpt2.weights:
        sha256 = hashlib.sha256()
        for name, tensor in sorted(network.gpt2.weights.items()):
            sha256.update(name.encode() + tensor.numpy().tobytes())
        return sha256.hexdigest()
    return network.init_from.digest if network.init_from else "random"


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
    before, now = {**_BEFORE, **before}, {**_BEFORE, **now}
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
