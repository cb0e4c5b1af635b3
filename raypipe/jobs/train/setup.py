"""What is settled before a training starts, and held against what its output was started with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raypipe.config import TrainConfig
from raypipe.errors import CommitError, ConfigError, FingerprintError, ObjectError
from raypipe.jobs.train.network import Start, classifier_config
from raypipe.jobs.train.optim import learning_rate
from raypipe.jobs.train.samples import Samples, class_counts, facts
from raypipe.models.classifier_files import check_embeddings, read_config, read_model
from raypipe.models.gpt2 import Gpt2, resolve_gpt2
from raypipe.storage import Folder

RUN = "run.json"
_FREE = {"output", "checkpoint", "resources"}  # keys that may change from one command to the next
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Setup:
    """A training whose every input is at hand."""

    config: TrainConfig
    output: Folder
    samples: Samples
    start: Start
    learning_rate: float

    @property
    def class_weights(self) -> list[float] | None:
        """Weights of the labels' losses, their mean over the training videos 1; of several labels each, of the ones."""
        if self.config.optimizer.class_weights == "none" or not self.samples.label_names:
            return None
        counts = class_counts(self.samples.train, len(self.samples.label_names)).clip(min=1)
        num_videos = self.samples.train.num_rows
        if self.samples.multi_label:
            return [float(weight) for weight in ((num_videos - counts) / counts).clip(0.1, 100)]
        return [float(weight) for weight in num_videos / (len(counts) * counts)]


def prepare(config: TrainConfig, samples: Samples) -> Setup:
    """Find the GPT-2 or the model that the training starts from.

    Raises:
        ConfigError: settings that do not fit together.
        FingerprintError: ``init_from`` learned from embeddings of other settings.
        WeightsError: weights that cannot be found or read.
    """
    init_from = None if config.init_from is None else read_model(Folder(config.init_from))
    if init_from is None:
        gpt2 = resolve_gpt2(config.model.gpt2)
        max_frames = min(config.model.max_frames, gpt2.max_frames or config.model.max_frames)
    else:
        learned = read_config(init_from)
        check_embeddings(
            init_from, samples.fingerprint, samples.embedding_dim, comparable=samples.comparable_fingerprints
        )
        gpt2, max_frames = Gpt2(learned.gpt2.to_dict()), learned.max_frames
    _check_freeze(config, gpt2)
    lora = config.model.lora.rank > 0
    if lora and config.model.freeze != "none":
        msg = f"model.freeze={config.model.freeze!r} with model.lora: adapters freeze GPT-2 themselves."
        remedy = "Set either model.freeze or model.lora.rank."
        raise ConfigError(msg, key="model.freeze", value=config.model.freeze, remedy=remedy)
    start = Start(
        config=classifier_config(
            gpt2.config,
            model=config.model,
            max_frames=max_frames,
            embedding_dim=samples.embedding_dim,
            fingerprint=samples.fingerprint,
            label_names=samples.label_names,
            multi_label=samples.multi_label,
        ),
        model=config.model,
        classifies=config.objective == "classify",
        gpt2=gpt2,
        init_from=init_from,
    )
    given = config.optimizer.learning_rate
    pretrained = bool(gpt2.weights)
    rate = learning_rate(n_embd=gpt2.config["n_embd"], pretrained=pretrained, lora=lora) if given == "auto" else given
    return Setup(config, Folder(config.output), samples, start, rate)


def _check_freeze(config: TrainConfig, gpt2: Gpt2) -> None:
    blocks = config.model.freeze.removeprefix("all_but_last_")
    if blocks.isdigit() and int(blocks) > gpt2.config["n_layer"]:
        most = f"all_but_last_{gpt2.config['n_layer']}"
        msg = f"model.freeze={config.model.freeze!r}: this GPT-2 has {gpt2.config['n_layer']} blocks."
        raise ConfigError(msg, key="model.freeze", value=config.model.freeze, remedy=f"Choose {most} or less.")


def run_facts(setup: Setup) -> dict[str, Any]:
    """What a run is: every setting that changes its outcome, and what it learns from."""
    settings = {key: value for key, value in setup.config.model_dump(mode="json").items() if key not in _FREE}
    del settings["data"]["cache_bytes"]
    start = hashlib.sha256()
    for name, tensor in sorted(setup.start.gpt2.weights.items()):
        start.update(name.encode() + tensor.numpy().tobytes())
    init_from = setup.start.init_from
    weights = init_from.digest if init_from else start.hexdigest() if setup.start.gpt2.weights else "random"
    return {"settings": settings, "data": dict(facts(setup.samples)), "weights": weights}


def check_same_run(output: Folder, facts_now: Mapping[str, Any]) -> None:
    """Store what this run is; where the output holds a run already, see that it is the same.

    Raises:
        FingerprintError: it is another; the message names the settings.
        CommitError: what is stored is no run.
    """
    data = json.dumps(facts_now, indent=1, sort_keys=True).encode()
    if output.put_new(RUN, data):
        return
    try:
        then = json.loads(output.read(RUN))
        before, now = _leaves(then), _leaves(json.loads(data))
    except (ObjectError, AttributeError, TypeError, ValueError) as error:
        msg = f"{output.child(RUN)} is not that of a training: {' '.join(str(error).split())}."
        raise CommitError(msg, key=output.child(RUN), remedy="Choose another output.") from None
    differ = [
        (key.partition(".")[2] or key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differ:
        told = "; ".join(f"{key} was {was!r} and is now {is_now!r}" for key, was, is_now in differ[:_NAMED])
        more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        msg = f"{output} holds another training: {told}{more}."
        key, was, is_now = differ[0]
        remedy = "Choose another output, or those settings."
        raise FingerprintError(msg, key=key, value=is_now, expected=was, remedy=remedy)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
