"""Make the candidates of a ranker: pruned, and with int8 numbers. They are not trained further. Ray is not used here.

A ranker is measured in torch, and timed in numpy, as the endpoint runs it.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.torch
import torch
from safetensors import SafetensorError

from raypipe.config import CompressConfig, OptimizerConfig
from raypipe.errors import WeightsError
from raypipe.jobs.compress.candidates import ORIGINAL, Candidate
from raypipe.jobs.compress.shrinking import block_levels, prune_blocks, prune_heads
from raypipe.jobs.train.checkpoints import saved_files
from raypipe.jobs.train.inputs import Ints, even_stride
from raypipe.jobs.train.ranker.histories import HISTORY, HistorySamples
from raypipe.jobs.train.ranker.next_video_task import HistoriesWindow, NextVideoTask, Sampling, WatchedCatalogue
from raypipe.jobs.train.ranker.rank_scores import TOP, RankScores
from raypipe.models.int8 import num_weights, quantize
from raypipe.models.next_video import NO_ID, NextVideoConfig, NextVideoModel
from raypipe.models.pruning import num_heads
from raypipe.models.ranker_files import RankerFiles
from raypipe.search.tower import TowerWeights
from raypipe.search.vectors import open_vectors, widen
from raypipe.search.versions import VECTORS
from raypipe.text import one_line, plural

_MAX_COST_USERS, _MAX_TIMED = 2_000, 200
_AT_ONCE = 128


def ranker_candidates(files: RankerFiles, samples: HistorySamples, config: CompressConfig) -> list[Candidate]:
    """Return the candidates, the original ranker first.

    Raises:
        WeightsError: the weights do not fit the configuration.
    """
    model = build_ranker_model(files)
    made = _RankerStudents(files, samples)
    candidates = [made.candidate(ORIGINAL, model, weights=files.files)]
    if model.config.int8:
        return candidates
    levels, student = block_levels(config.blocks, num_blocks=len(model.gpt2.h)), model
    for num_blocks in [len(model.gpt2.h), *levels]:
        student = copy.deepcopy(student)
        cost = made.cost_of(student)
        prune_blocks(student.gpt2, num_blocks, cost)
        prune_heads(student.gpt2, cost, tolerance=0.0)  # nothing repairs a ranker afterwards
        student.config.n_layer, student.config.gpt2_heads = num_blocks, num_heads(student.gpt2)
        name = f"{plural(num_blocks, 'block')}, {plural(sum(student.config.gpt2_heads), 'head')}"
        candidates.append(made.candidate(name, student))
        if config.int8:
            small = copy.deepcopy(student)
            quantize(small)
            small.config.int8 = True
            candidates.append(made.candidate(f"{name}, int8", small))
    return candidates


def build_ranker_model(files: RankerFiles) -> NextVideoModel:
    """Return the ranker as a torch model in evaluation mode.

    Raises:
        WeightsError: the weights do not fit the configuration.
    """
    try:
        model = NextVideoModel(NextVideoConfig.from_dict(files.config))
        model.load_state_dict(safetensors.torch.load(files.weights))
    except (SafetensorError, RuntimeError, ValueError) as error:
        msg = f"The ranker {files.source} does not fit its configuration: {one_line(error)[:300]}"
        raise WeightsError(msg, key="model", value=files.source) from None
    model.train(mode=False)
    return model


class _RankerStudents:
    def __init__(self, files: RankerFiles, samples: HistorySamples) -> None:
        self._files = files
        vectors = open_vectors(samples.index.folder / VECTORS)
        rows = np.full(len(vectors), NO_ID, np.int32)
        for number, video_id in enumerate(files.video_ids, start=1):
            if (position := samples.items.position(video_id)) is not None:
                rows[position] = number
        self._catalogue = WatchedCatalogue(vectors, rows, np.unique(samples.events.items))
        self._ids = pa.array([samples.items.video_id(position) for position in range(len(vectors))], pa.string())
        histories = [np.array(history, np.int64) for history in samples.validation[HISTORY].to_pylist()]
        self._window = HistoriesWindow(list(range(len(histories))), histories)

    def task(self, model: NextVideoModel) -> NextVideoTask:
        sampling = Sampling(num_negatives=1, full_softmax_below=1, mean_targets=1.0)  # of losses, which are not needed
        device = torch.device("cpu")
        return NextVideoTask(model, OptimizerConfig(), catalogue=self._catalogue, sampling=sampling, device=device)

    def cost_of(self, model: NextVideoModel) -> Callable[[], float]:
        """Return a function that measures the model as it is then: the negative NDCG of some users."""
        task, count = self.task(model), len(self._window.histories)
        some = np.arange(0, count, even_stride(count, _MAX_COST_USERS))
        return lambda: -float(gains(self._ranked(task, some).rank()[0]).mean())

    @torch.no_grad()
    def _ranked(self, task: NextVideoTask, users: Ints) -> RankScores:
        task.model.train(mode=False)
        scores = task.scores()
        for start in range(0, len(users), _AT_ONCE):
            task.score(self._window, users[start : start + _AT_ONCE], scores)
        return scores

    def candidate(self, name: str, model: NextVideoModel, *, weights: object = None) -> Candidate:
        task = self.task(model)
        ranks = self._ranked(task, np.arange(len(self._window.histories))).rank()[0]
        files = dict(self._files.files)
        if weights is None:
            files |= saved_files(model, metrics={})
        tower, inputs = self._timed(files)

        def work() -> int:
            for history in inputs:
                tower.state(history)
            return len(inputs)

        return Candidate(
            name=name,
            heads=num_heads(model.gpt2),
            int8=model.config.int8,
            num_parameters=num_weights(model),
            files=files,
            answers=ranks,
            scores=gains(ranks),
            work=work,
            others={"HR@10": float((ranks <= TOP).mean())},
        )

    def _timed(self, files: Mapping[str, bytes]) -> tuple[TowerWeights, list[npt.NDArray[np.float32]]]:
        """Return the network in numpy, and what it reads of some histories."""
        given = RankerFiles(files, self._files.digest, self._files.source).tower(self._ids)
        histories = self._window.histories[:: even_stride(len(self._window.histories), _MAX_TIMED)]
        read = [history[:-1][-given.weights.max_events :] for history in histories]
        content = [widen(self._catalogue.vectors[positions]) @ given.weights.content for positions in read]
        return given.weights, [each + given.id_vectors[given.rows[at]] for each, at in zip(content, read, strict=True)]


def gains(ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the NDCG@10 of each user, given the rank of the video to predict."""
    return np.where(ranks <= TOP, 1 / np.log2(1 + np.minimum(ranks, TOP)), 0.0)
