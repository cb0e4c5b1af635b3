"""The ranker: GPT-2 over the videos that a user has watched, which predicts the next one.

``NextVideoModel.from_pretrained(FOLDER)`` loads a model that ``raypipe train`` saved. Ray is not needed.
"""

from typing import Any, ClassVar, cast

import torch
from torch import nn

from raypipe.models.ranker_files import MODEL_TYPE
from raypipe.models.weights import prepare_torchvision

prepare_torchvision()  # transformers imports torchvision if it is installed

from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model, PreTrainedConfig, PreTrainedModel  # noqa: E402

from raypipe.models.classifier import VideoOutput  # noqa: E402
from raypipe.models.int8 import quantize  # noqa: E402
from raypipe.models.pruning import shape_heads  # noqa: E402

FIRST_SCALE = 1 / 0.07  # of cosines, before training (as in CLIP, Radford et al. 2021)
NO_ID = 0  # the row of the ID embedding that stays zero: of videos without an ID embedding, and of padding


class NextVideoConfig(PreTrainedConfig):
    """The keys of ``config.json`` in addition to transformers' own keys.

    Attributes:
        num_ids: How many videos have an ID embedding.
        content_dim: D, the length of the content vectors; 0 if the model does not read them.
        n_embd: The width of the model, and the length of the vectors that it compares.
        max_events: How many events of a history the model reads, the newest ones.
        loss: ``softmax`` compares directions by cosine. ``bce`` (SASRec, Kang and McAuley 2018) compares dot products.
        metrics: The metrics of the epoch that the weights come from.
        gpt2_heads: The number of heads of each block, if ``raypipe compress`` has removed some.
        int8: Whether all matrices but the positions are int8.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    num_ids: int = 0
    content_dim: int = 0
    n_embd: int = 64
    n_layer: int = 1
    n_head: int = 2
    dropout: float | int = 0.3
    id_dropout: float | int = 0.15
    max_events: int = 50
    loss: str = "softmax"
    embedding_fingerprint: str | None = None
    metrics: Any = None
    gpt2_heads: Any = None
    int8: bool = False

    @property
    def gpt2(self) -> GPT2Config:
        """Return the configuration of the GPT-2 inside, which has no vocabulary."""
        options: dict[str, Any] = {
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_positions": self.max_events,
            **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), self.dropout),
        }
        return GPT2Config(**options, vocab_size=1, bos_token_id=None, eos_token_id=None, use_cache=False)


class NextVideoModel(PreTrainedModel):
    """Predicts the video that a user watches next from the videos that the user has watched.

    A video's vector is a linear map of its content vector, plus its ID embedding if it has one. The map starts at zero.
    During training, whole ID embeddings are dropped at random, so that content alone is trained too.
    """

    config_class = NextVideoConfig
    main_input_name = "history"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: NextVideoConfig) -> None:
        super().__init__(config)
        self.ids = nn.Embedding(config.num_ids + 1, config.n_embd, padding_idx=NO_ID)
        self.content = nn.Linear(config.content_dim, config.n_embd, bias=False) if config.content_dim else None
        self.gpt2 = GPT2Model(config.gpt2)
        self.gpt2.wte = nn.Identity()  # type: ignore[assignment]  # the inputs are inputs_embeds
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
        self.post_init()
        if config.gpt2_heads is not None:
            shape_heads(self.gpt2, config.gpt2_heads)
        if config.int8:
            quantize(self)
        elif self.content is not None:
            nn.init.zeros_(self.content.weight)  # content at full strength from the start costs half of the NDCG

    @property
    def scale(self) -> torch.Tensor:
        """Return the factor of the cosines in the logits; 1 for dot products."""
        return self.log_scale.exp() if self.config.loss == "softmax" else self.log_scale.new_ones(())

    def vectors(self, ids: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """Return the vectors ``[V, n_embd]`` of V videos.

        Args:
            ids: The row of each video in the ID embedding, or ``NO_ID``, ``[V]``.
            content: The content vector of each video, ``[V, D]``.
        """
        if self.training and self.config.id_dropout and self.content is not None:
            kept = torch.rand(ids.shape, device=ids.device) >= self.config.id_dropout
            ids = torch.where(kept, ids, NO_ID)
        found: torch.Tensor = self.ids(ids)
        return found if self.content is None else found + self.content(content)

    def compared(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors ``[..., n_embd]`` as they are compared with each other: with length 1 for ``softmax``."""
        return nn.functional.normalize(vectors, dim=-1) if self.config.loss == "softmax" else vectors

    def states(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the state ``[B, T, n_embd]`` after each of T videos of B histories, ready to be compared.

        Histories are padded at their ends, where ``mask`` ``[B, T]`` is 0.
        """
        inputs = vectors * self.config.n_embd**0.5  # as in the Transformer, so that the video outweighs its position
        states = self.gpt2(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        return self.compared(cast("torch.Tensor", states))

    def forward(
        self,
        ids: torch.Tensor,
        content: torch.Tensor,
        *,
        history: torch.Tensor,
        mask: torch.Tensor,
        targets: torch.Tensor,
        negatives: torch.Tensor,
        log_correction: float = 0.0,
        **_: Any,  # noqa: ANN401 - what transformers' callers add
    ) -> VideoOutput:
        """Return the loss of each history, summed over its targets, ``[B]``.

        The batch has V distinct videos. ``history``, ``targets`` and ``negatives`` hold numbers from 0 to V - 1.

        Args:
            ids: The rows of the videos in the ID embedding, ``[V]``.
            content: The content vectors of the videos, ``[V, D]``.
            history: The watched videos, padded at their ends, ``[B, T]``.
            mask: 1 where there is a video and a target, ``[B, T]``.
            targets: The video that was watched after each one, ``[B, T]``.
            negatives: Videos that are compared with every target, ``[K]``; for ``bce``, ``[B, T]``.
            log_correction: What is added to the logits of the negatives: log(N / K) if K of N videos were drawn.
        """
        vectors = self.vectors(ids, content)
        is_target = mask.bool()
        states = self.states(vectors[history], mask)[is_target]
        compared = self.compared(vectors)
        wanted = targets[is_target]
        positive = (states * compared[wanted]).sum(dim=-1).float() * self.scale
        if self.config.loss == "bce":
            negative = (states * compared[negatives[is_target]]).sum(dim=-1).float()
            losses = nn.functional.softplus(-positive) + nn.functional.softplus(negative)
        else:
            others = (states @ compared[negatives].T).float() * self.scale + log_correction
            others = others.masked_fill(negatives == wanted[:, None], -torch.inf)
            losses = torch.cat([positive[:, None], others], dim=1).logsumexp(dim=1) - positive
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[is_target]
        summed = losses.new_zeros(len(mask)).index_add(0, rows, losses)
        return VideoOutput(loss=losses.mean(), losses=summed)


AutoConfig.register(NextVideoConfig.model_type, NextVideoConfig)
AutoModel.register(NextVideoConfig, NextVideoModel)
