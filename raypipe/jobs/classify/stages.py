"""The steps of classify as an actor takes a shard through them; what is costly is made once."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import ray

from raypipe.dataset.sink import describe_shard, put_shard
from raypipe.jobs.classify import shard as work
from raypipe.records import ShardSummary
from raypipe.runs.stages import identity
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.models.classifier_files import ModelFiles


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Where the vectors lie, and how many numbers each has."""

    embeddings_uri: str
    embedding_dim: int


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the step with the model needs; ``files`` is a reference to them in the object store."""

    files: "ray.ObjectRef[ModelFiles]"
    question: work.Question
    device: str


@dataclass(frozen=True, slots=True)
class PutSettings:
    """What the step that commits needs."""

    output_uri: str
    fingerprint: str
    embedding_dim: int


class ReadEmbeddings:
    """Plan rows to rows with vectors."""

    def __init__(self, settings: ReadSettings) -> None:
        self._embeddings = Folder(settings.embeddings_uri)
        self._embedding_dim = settings.embedding_dim

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One shard."""
        return work.read_shard(rows, self._embeddings, embedding_dim=self._embedding_dim)


class ClassifyVideos:
    """Rows with vectors to rows with labels."""

    def __init__(self, settings: ModelSettings) -> None:
        import torch  # noqa: PLC0415  # seconds that the driver's --help does without
        from torch import nn  # noqa: PLC0415

        from raypipe.models.classifier_files import build_classifier  # noqa: PLC0415

        if settings.device == "cpu":
            torch.set_num_threads(1)  # there is one such actor a processor
        self._model = build_classifier(ray.get(settings.files))
        nn.Module.to(self._model, settings.device)
        self._question = settings.question

    def __call__(self, read: pa.Table) -> pa.Table:
        """One shard."""
        return work.classify_shard(read, self._model, self._question)


class PutPredictions:
    """Rows with labels to the committed file, and the summary of it."""

    def __init__(self, settings: PutSettings) -> None:
        self._settings = settings
        self._output = Folder(settings.output_uri)

    def __call__(self, classified: pa.Table) -> ShardSummary:
        """One shard."""
        plan, shard = identity(classified)
        start = time.perf_counter()
        rows = work.output_rows(classified)
        about = describe_shard(rows, plan=plan, shard=shard, fingerprint=self._settings.fingerprint)
        created = put_shard(self._output, rows, about)
        return work.summarise(
            classified,
            plan=plan,
            shard=shard,
            embedding_dim=self._settings.embedding_dim,
            put_seconds=time.perf_counter() - start,
            already_committed=not created,
        )
