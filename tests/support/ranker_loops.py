"""A training loop of a ranker alone, without Ray: users who walk through the videos in a planted order."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypipe.jobs.train.batches import Collective, WorkerSamples
from raypipe.jobs.train.checkpoints import Checkpoints
from raypipe.jobs.train.loop import Loop, LoopSettings, Notify
from raypipe.jobs.train.ranker.histories import last_events, training_table, validation_table
from raypipe.jobs.train.ranker.next_video_task import HistoriesWindow, NextVideoTask, Sampling, WatchedCatalogue
from raypipe.jobs.train.ranker.ranker_spec import BETAS, FINAL_RATE, RankerNetwork, build_ranker
from raypipe.models.next_video import NextVideoConfig
from raypipe.search.vectors import Vectors
from raypipe.search.watch_events import Events
from raypipe.storage import Folder
from support.train_loops import CPU, settings_of

NUM_VIDEOS, CONTENT_DIM = 60, 8


def walks(num_users: int, *, seed: int = 0, num_videos: int = NUM_VIDEOS, surprise: float = 0.2) -> Events:
    """Return histories in which a video is usually followed by its successor in a planted cycle."""
    random = np.random.default_rng(seed)
    successor = np.roll(np.random.default_rng(7).permutation(num_videos), 1)
    histories = []
    for _ in range(num_users):
        history = [int(random.integers(num_videos))]
        for _ in range(int(random.integers(2, 9))):
            jump = random.random() < surprise
            history.append(int(random.integers(num_videos)) if jump else int(successor[history[-1]]))
        histories.append(list(dict.fromkeys(history)))
    return Events.of_histories(histories)


def content_of(num_videos: int = NUM_VIDEOS) -> Vectors:
    """Return random content vectors of length 1."""
    vectors = np.random.default_rng(3).standard_normal((num_videos, CONTENT_DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def read_of(table: pa.Table, share: Sequence[int] | None = None) -> Callable[[], Iterable[pa.Table]]:
    """Return a reader of the rows with these numbers, in blocks of 16."""
    chosen = table if share is None else table.take(list(share))
    return lambda: (chosen.slice(at, 16) for at in range(0, chosen.num_rows, 16))


def network_of(events: Events, *, sampling: Sampling | None = None, **config: Any) -> RankerNetwork:  # noqa: ANN401 - passed on
    """Return the network of a tiny ranker that has an ID embedding for every video."""
    sizes = {"n_embd": 16, "n_head": 2, "dropout": 0.1, "id_dropout": 0.1, "max_events": 6, **config}
    return RankerNetwork(
        config=NextVideoConfig(num_ids=NUM_VIDEOS, content_dim=CONTENT_DIM, **sizes),
        index_uri="",
        version="",
        cache=None,
        id_positions=np.arange(NUM_VIDEOS),
        seen=np.unique(events.items),
        sampling=sampling or Sampling(num_negatives=16, full_softmax_below=0, mean_targets=4.0),
    )


def ranker_settings(num_train: int, num_validation: int, **keys: Any) -> LoopSettings:  # noqa: ANN401 - passed on
    """Return the settings of a short training; more are keys of ``settings_of``."""
    chosen = {"batch_size": 32, "select_by": "ndcg", "warmup_fraction": 0.01, **keys}
    extra = {name: chosen.pop(name) for name in ("stop_epoch",) if name in chosen}
    settings = settings_of(num_train, num_validation, **chosen)
    fields = {name: getattr(settings, name) for name in LoopSettings.__dataclass_fields__}
    return LoopSettings(**{**fields, "betas": BETAS, "final_rate": FINAL_RATE, **extra})


def ranker_loop(
    folder: str | Path,
    events: Events,
    *,
    network: RankerNetwork | None = None,
    shares: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    notify: Notify = lambda _kind, _about: None,
    cache_bytes: int = 10**6,
    **settings: Any,  # noqa: ANN401 - passed on
) -> Loop:
    """Return the loop of one worker that has a share of the samples, or all. Each user's last event is held out."""
    network = network_of(events) if network is None else network
    held_out = last_events(events)
    fitted = events.where(~held_out)
    train = training_table(fitted, max_events=network.config.max_events)
    validation = validation_table(fitted, events, held_out, max_users=1000, seed=0)
    chosen = ranker_settings(train.num_rows, validation.num_rows, **settings)
    catalogue = WatchedCatalogue.of(content_of(), id_positions=network.id_positions, seen=network.seen)
    model = build_ranker(network, seed=0)
    return Loop(
        NextVideoTask(model, chosen.optimizer, catalogue=catalogue, sampling=network.sampling, device=CPU),
        chosen,
        train=WorkerSamples(read_of(train, shares[0]), empty=HistoriesWindow, cache_bytes=cache_bytes),
        validation=WorkerSamples(read_of(validation, shares[1]), empty=HistoriesWindow, cache_bytes=cache_bytes),
        workers=Collective(device=torch.device("cpu")),
        checkpoints=Checkpoints(Folder(str(folder))),
        notify=notify,
    )
