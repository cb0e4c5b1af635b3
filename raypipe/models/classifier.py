"""The classifier of the frame embeddings of a video, as a ``transformers`` model: a linear probe, GPT-2, or both.

``VideoClassifier.from_pretrained(FOLDER)`` loads a model that ``raypipe train`` saved. Once this module is imported,
``AutoConfig`` and ``AutoModel`` load it too. Ray is not needed. All models here take frame embeddings ``[B, T, D]``
with an attention mask ``[B, T]`` that is 0 where a shorter video is padded at its end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from raypipe.models.frame_probe import NUM_STATISTICS, FrameProbe, ProbeFeatures
from raypipe.models.weights import prepare_torchvision

prepare_torchvision()  # transformers imports torchvision if it is installed

from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model, PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.utils.generic import ModelOutput  # noqa: E402

from raypipe.models.int8 import quantize  # noqa: E402
from raypipe.models.pruning import shape_heads  # noqa: E402

Frames = npt.NDArray[np.float16] | npt.NDArray[np.float32]  # [T, D]
Array = npt.NDArray[np.float32]
GPT2_READS = ("frames", "changes")
MAX_LEFT_OUT = 64  # times that GPT-2 runs to score the frames of a video


class VideoClassifierConfig(PreTrainedConfig):
    """The keys of ``config.json`` in addition to transformers' own keys.

    ``gpt2`` holds the sizes of the GPT-2 inside. Videos with more than ``max_frames`` frames are thinned evenly.
    ``embedding_fingerprint`` identifies the settings with which the embeddings were made. Embeddings that were made
    with other settings are not comparable. ``metrics`` holds the metrics of the epoch that the weights come from.

    The logits of a classifier are the sum of those of a linear probe on the frame statistics ``probe``, and of GPT-2.
    Models of older versions have no probe. GPT-2 reads ``frames`` or, next to a probe, their ``changes``. Probabilities
    are computed from the logits divided by ``temperature``. ``frame_scores_help`` says whether the scores of frames
    passed the deletion test; None if it was not run.

    ``raypipe compress`` sets ``gpt2_heads``, the number of heads of each block if some were removed, and ``int8`` if
    GPT-2 and the projection before it have int8 weights.
    """

    model_type: ClassVar[str] = "raypipe_video_classifier"
    sub_configs: ClassVar[dict[str, Any]] = {"gpt2": GPT2Config}

    embedding_dim: int = 512
    gpt2: Any = None
    max_frames: int = 256
    dropout: float | int = 0.1
    embedding_fingerprint: str | None = None
    metrics: Any = None
    probe: str | None = None
    has_gpt2: bool = True
    gpt2_reads: str = "frames"
    temperature: float | int = 1.0
    frame_scores_help: bool | None = None
    gpt2_heads: Any = None
    int8: bool = False

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - transformers' own signature
        """Convert ``gpt2`` to a ``GPT2Config`` without a vocabulary.

        Raises:
            ValueError: the GPT-2 has fewer than ``max_frames`` positions, or another value is not possible.
        """
        if self.gpt2_reads not in GPT2_READS:
            msg = f"gpt2_reads is {self.gpt2_reads!r}, not one of {', '.join(GPT2_READS)}."
            raise ValueError(msg)
        if self.probe not in NUM_STATISTICS and not (self.probe is None and self.has_gpt2):
            msg = f"There is no model with probe {self.probe!r} and has_gpt2 {self.has_gpt2}."
            raise ValueError(msg)
        if not 0 < float(self.temperature) < math.inf:
            msg = f"temperature is {self.temperature!r}, not a number above 0."
            raise ValueError(msg)
        given = self.gpt2.to_dict() if isinstance(self.gpt2, GPT2Config) else dict(self.gpt2 or {})
        no_vocabulary = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
        self.gpt2 = GPT2Config(**{"n_positions": self.max_frames, **given, **no_vocabulary})
        if self.gpt2.n_positions < self.max_frames:
            msg = f"max_frames {self.max_frames} is more than GPT-2's {self.gpt2.n_positions} positions."
            raise ValueError(msg)
        super().__post_init__(**kwargs)

    @property
    def multi_label(self) -> bool:
        """Return whether a video may have several labels."""
        return str(self.problem_type) == "multi_label_classification"

    @property
    def label_names(self) -> list[str]:
        """Return the label names, in the order of the logits."""
        names: Any = self.id2label
        return [names[number] for number in range(len(names))]


@dataclass
class VideoOutput(ModelOutput):
    """The output of a model.

    A classifier sets ``logits`` [B, C], and ``order_logits`` [B, C] to GPT-2's part of them. A masked-frame model sets
    ``frames`` [B, T, D] and ``losses`` [B].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    order_logits: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    frames: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """A classifier's predictions for V videos."""

    probabilities: Array  # [V, C]; with one label per video, each row adds up to 1
    frame_scores: list[Array] | None  # one array [T] per video
    order_scores: list[Array] | None  # one array [T] per video


class VideoEncoder(nn.Module):
    """Encodes frames ``[B, T, D]`` as GPT-2 states ``[B, T, n_embd]``.

    Embeddings are standardised, projected to GPT-2's width, and passed through GPT-2 without its vocabulary. ``mean``
    and ``std`` ``[D]`` are computed from the frames of the training videos, and are saved with the weights.

    If ``gpt2_reads`` is ``changes``, the differences to the video's mean frame and to the previous frame are projected
    instead, and normalised. What stays the same in a video, such as its background, is then left to the probe, and
    GPT-2 learns what happens from far fewer videos.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: VideoClassifierConfig) -> None:
        super().__init__()
        width = config.gpt2.n_embd
        self.register_buffer("mean", torch.zeros(config.embedding_dim))
        self.register_buffer("std", torch.ones(config.embedding_dim))
        self.reads_changes = config.gpt2_reads == "changes"
        self.projection = nn.Linear(config.embedding_dim * (2 if self.reads_changes else 1), width)
        if self.reads_changes:
            self.norm = nn.LayerNorm(width)
        self.hidden_frame = nn.Parameter(torch.zeros(width))  # replaces each frame that a masked-frame model hides
        self.gpt2 = GPT2Model(config.gpt2)
        # The inputs are inputs_embeds, so the token embeddings would never be read.
        self.gpt2.wte = nn.Identity()  # type: ignore[assignment]
        if config.gpt2_heads is not None:
            shape_heads(self.gpt2, config.gpt2_heads)
        if config.int8:
            quantize(self)

    def standardise(self, frame_embeddings: torch.Tensor) -> torch.Tensor:
        """Centre and scale each embedding dimension by the mean and std of the training videos."""
        return (frame_embeddings.float() - self.mean) / self.std

    def forward(
        self,
        standardised: torch.Tensor,
        attention_mask: torch.Tensor,
        hidden: torch.Tensor | None = None,
        *,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode standardised embeddings.

        Frames where ``hidden`` ``[B, T]`` is true are hidden from the model. Where ``dropped`` is true, GPT-2 has no
        token for the frame, but changes are still differences to it.
        """
        read = frame_changes(standardised, attention_mask) if self.reads_changes else standardised
        inputs = self.projection(read.to(self.hidden_frame.dtype))
        if self.reads_changes:
            inputs = self.norm(inputs)
        if dropped is not None:
            attention_mask = attention_mask * ~dropped
        if hidden is not None:
            inputs = torch.where(hidden[..., None], self.hidden_frame.to(inputs.dtype), inputs)
        states = self.gpt2(inputs_embeds=inputs, attention_mask=attention_mask).last_hidden_state
        return cast("torch.Tensor", states)


class VideoPreTrainedModel(PreTrainedModel):
    """The base class of models that read frames. It defines their configuration and how weights are initialised."""

    config_class = VideoClassifierConfig
    base_model_prefix = "encoder"
    main_input_name = "frame_embeddings"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["GPT2Block"]  # noqa: RUF012 - transformers' own way

    encoder: VideoEncoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoEncoder):
            nn.init.normal_(module.hidden_frame, std=0.02)
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.std)


class VideoClassifier(VideoPreTrainedModel):
    """A video classifier. Its logits are those of a linear probe, of GPT-2, or the sum of both.

    The probe is a linear model on statistics of the frames over time. GPT-2's logits are a linear function of the mean
    of its states over all unpadded frames. Next to a probe, it adds what the order of the frames tells.
    """

    def __init__(self, config: VideoClassifierConfig) -> None:
        super().__init__(config)
        num_labels = len(config.label_names)
        if config.probe is not None:
            features = cast("ProbeFeatures", config.probe)
            self.probe = FrameProbe(features, embedding_dim=config.embedding_dim, num_labels=num_labels)
        if config.has_gpt2:
            self.encoder = VideoEncoder(config)
            self.dropout = nn.Dropout(config.dropout)
            self.head = nn.Linear(config.gpt2.n_embd, num_labels)
        self.post_init()

    def forward(
        self,
        frame_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        probe_logits: torch.Tensor | None = None,
        dropped: torch.Tensor | None = None,
        **_: Any,  # noqa: ANN401 - what transformers' callers add
    ) -> VideoOutput:
        """Classify videos, and compute the loss if ``labels`` is given.

        ``labels`` holds class numbers ``[B]``. For a multi-label classifier, it holds 0 or 1 for each label:
        ``[B, num_labels]``. ``probe_logits`` ``[B, num_labels]`` replace the logits of the probe. GPT-2 gets no token
        for frames where ``dropped`` ``[B, T]`` is true.
        """
        if attention_mask is None:
            attention_mask = frame_embeddings.new_ones(frame_embeddings.shape[:2], dtype=torch.long)
        parts, of_order = [], None
        if self.config.probe is not None:
            parts.append(self.probe(frame_embeddings, attention_mask) if probe_logits is None else probe_logits)
        if self.config.has_gpt2:
            of_order = self.order_logits(frame_embeddings, attention_mask, dropped=dropped)
            parts.append(of_order)
        logits = sum(parts[1:], parts[0])
        loss = None if labels is None else classification_loss(logits, labels).mean()
        return VideoOutput(loss=loss, logits=logits, order_logits=of_order)

    def order_logits(
        self, frame_embeddings: torch.Tensor, attention_mask: torch.Tensor, *, dropped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits ``[B, C]`` of GPT-2 alone."""
        states = self.encoder(self.encoder.standardise(frame_embeddings), attention_mask, dropped=dropped)
        kept = attention_mask if dropped is None else attention_mask * ~dropped
        logits: torch.Tensor = self.head(self.dropout(masked_mean(states, kept)))
        return logits

    def drop_gpt2(self) -> None:
        """Remove GPT-2, so that the probe alone is left."""
        self.config.has_gpt2 = False
        del self.encoder, self.dropout, self.head

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``[B, C]``. With one label per video, each row adds up to 1."""
        scaled: torch.Tensor = logits.float() / self.config.temperature
        return scaled.sigmoid() if self.config.multi_label else scaled.softmax(dim=1)

    def classify(self, videos: Sequence[Frames], *, frame_scores: bool = False, batch_size: int = 64) -> Predictions:
        """Classify videos by their frame embeddings, each ``[T, D]`` with its own T ≥ 1.

        This puts the model into evaluation mode. If ``frame_scores`` is true, also return what each frame adds to the
        logit of the most likely label: ``frame_scores`` for the probe, which add up to the probe's logit, and
        ``order_scores`` for GPT-2, which are the differences that leaving out the frame makes. A frame that was left
        out because of ``max_frames`` has scores of 0, and so have the frames of a model without that part. In a video
        with more than ``MAX_LEFT_OUT`` frames, neighboring frames are left out together and share the difference.
        """
        self.eval()
        probabilities = torch.empty((len(videos), len(self.config.label_names)))
        no_scores = [np.zeros(0, dtype=np.float32)] * len(videos)
        scores, order_scores = no_scores.copy(), no_scores.copy()
        for batch in by_length([len(video) for video in videos], batch_size=batch_size):
            padded = pad_frames([videos[at] for at in batch], max_frames=self.config.max_frames).to(self.device)
            with torch.inference_mode():
                logits = cast("torch.Tensor", self(padded.frames, padded.mask).logits).float()
                probabilities[batch] = self.probabilities(logits).cpu()
                if frame_scores:
                    found = self._frame_scores(padded, logits.argmax(dim=1))
                    for at, of_probe, of_order in zip(batch, *(padded.spread(part) for part in found), strict=True):
                        scores[at], order_scores[at] = of_probe, of_order
        if not frame_scores:
            return Predictions(probabilities.numpy(), None, None)
        return Predictions(probabilities.numpy(), scores, order_scores)

    def _frame_scores(self, padded: "PaddedFrames", labels: torch.Tensor) -> tuple[Array, Array]:
        """Return the scores of the probe and of GPT-2 for one label per video, ``[B, T]`` each."""
        frames, mask = padded.frames, padded.mask
        of_probe = of_order = torch.zeros(mask.shape)
        if self.config.probe is not None:
            of_probe = self.probe.contributions(frames, mask, labels)
        if self.config.has_gpt2:
            of_order = self._order_scores(frames, mask, labels)
        return of_probe.float().cpu().numpy(), of_order.float().cpu().numpy()

    def _order_scores(self, frames: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return by how much the logit of one label per video falls without each frame, ``[B, T]``."""
        every, scores = torch.arange(len(mask), device=mask.device), torch.zeros(mask.shape, device=mask.device)
        whole = self.order_logits(frames, mask)[every, labels]
        block_size = (mask.sum(dim=1, keepdim=True) / MAX_LEFT_OUT).ceil().clamp(min=1)
        blocks = torch.arange(mask.shape[1], device=mask.device) // block_size
        for block in range(min(MAX_LEFT_OUT, mask.shape[1])):
            left_out = mask * (blocks == block)
            differences = whole - self.order_logits(frames, mask - left_out)[every, labels]
            scores += left_out * (differences / left_out.sum(dim=1).clamp(min=1))[:, None]
        return scores


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean ``[B, N]`` of ``states`` ``[B, T, N]`` over the frames where ``mask`` ``[B, T]`` is not 0.

    The mean is 0 for a video whose mask is 0 everywhere.
    """
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def frame_changes(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the difference of each frame to the mean frame and to the previous unmasked frame, ``[B, T, 2 D]``.

    The first unmasked frame has no previous one: that difference is 0.
    """
    numbers = torch.arange(frames.shape[1], device=frames.device).expand(mask.shape)
    latest = torch.where(mask > 0, numbers, -1).cummax(dim=1).values
    previous = nn.functional.pad(latest[:, :-1], (1, 0), value=-1)
    before = frames.gather(1, previous.clamp(min=0)[..., None].expand_as(frames))
    steps = (frames - before) * (previous >= 0)[..., None]
    return torch.cat([frames - masked_mean(frames, mask)[:, None], steps], dim=2)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the loss of each video ``[B]``.

    This is the cross-entropy if ``labels`` holds class numbers ``[B]``. It is the mean binary cross-entropy if
    ``labels`` holds 0 or 1 for each label, ``[B, C]``.
    """
    logits = logits.float()
    if labels.ndim == 1:
        return nn.functional.cross_entropy(
            logits, labels, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
        )
    targets = labels.float() * (1 - label_smoothing) + label_smoothing / 2
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights, reduction="none")
    return losses.mean(dim=1)


@dataclass(frozen=True, slots=True)
class PaddedFrames:
    """A batch of B videos. Each video is padded at its end to the same number of frames."""

    frames: torch.Tensor  # [B, T, D], in the videos' dtype
    mask: torch.Tensor  # [B, T] int64: 1 where there is a frame
    kept: list[npt.NDArray[np.int64]]  # for each video, the numbers of the frames that are in the batch
    num_frames: list[int]  # of each video, including frames that were left out

    def to(self, device: torch.device) -> "PaddedFrames":
        frames, mask = self.frames.to(device, non_blocking=True), self.mask.to(device, non_blocking=True)
        return PaddedFrames(frames, mask, self.kept, self.num_frames)

    def spread(self, rows: npt.NDArray[Any]) -> list[Array]:
        """Split per-frame values ``[B, T]`` of the batch into one array per video.

        Frames that were left out of the batch get 0.
        """
        spread = []
        for row, kept, num_frames in zip(rows, self.kept, self.num_frames, strict=True):
            whole = np.zeros(num_frames, dtype=np.float32)
            whole[kept] = row[: len(kept)]
            spread.append(whole)
        return spread


def thin(num_frames: int, *, max_frames: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the frames of a video to use.

    These are all frames, or ``max_frames`` evenly spread frames that include the first and the last.
    """
    if num_frames <= max_frames:
        return np.arange(num_frames)
    return np.linspace(0, num_frames - 1, max_frames).round().astype(np.int64)


def pad_frames(videos: Sequence[Frames], *, max_frames: int) -> PaddedFrames:
    """Stack one or more videos ``[T, D]`` into a padded batch. Videos with too many frames are thinned evenly."""
    kept = [thin(len(video), max_frames=max_frames) for video in videos]
    longest = max(1, *(len(rows) for rows in kept))
    padded = np.zeros((len(videos), longest, videos[0].shape[1]), dtype=np.result_type(*videos))
    mask = np.zeros((len(videos), longest), dtype=np.int64)
    for at, (video, rows) in enumerate(zip(videos, kept, strict=True)):
        padded[at, : len(rows)] = video if len(rows) == len(video) else video[rows]
        mask[at, : len(rows)] = 1
    return PaddedFrames(torch.from_numpy(padded), torch.from_numpy(mask), kept, [len(video) for video in videos])


def by_length(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Group videos of similar length into batches to reduce padding.

    Return the positions of the videos in each batch.
    """
    order = np.argsort(np.asarray(lengths), kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


AutoConfig.register(VideoClassifierConfig.model_type, VideoClassifierConfig)
AutoModel.register(VideoClassifierConfig, VideoClassifier)
