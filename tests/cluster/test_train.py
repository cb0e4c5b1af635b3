"""A node dies during a training: the training continues elsewhere, from its last checkpoint."""

from pathlib import Path

import pytest

from raypipe.storage import Folder
from support.cluster.jobs import submit
from support.cluster.nodes import RayCluster
from support.folders import keys
from support.processes import wait_until
from support.train_runs import embed_all, history, train_config, video_ids

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

_WORKER = "ray::RayTrainWorker"
_NUM_TRAIN = 72


def test_a_training_continues_from_its_last_checkpoint(cluster: RayCluster, place: Folder, tmp_path: Path) -> None:
    embeddings, output = embed_all(Folder(place.child("embeddings")), video_ids()), Folder(place.child("model"))
    config = train_config(embeddings, output, checkpoint={"minutes": 1e-6})
    job = submit(cluster, config, tmp_path, job="train")
    wait_until(lambda: len(keys(output, "checkpoints/")) > 8 or job.process.poll() is not None, what="checkpoints")
    assert job.process.poll() is None, job.printed
    (trains,) = [worker for worker in cluster.workers if worker.runs(_WORKER)]
    cluster.lose(trains)
    assert job.wait() == 0, job.printed
    assert "workers were restarted from checkpoint " in job.printed
    epochs = history(output)
    assert len(epochs) == config.optimizer.epochs
    assert [round(epoch["samples_per_second"] * epoch["seconds"]) for epoch in epochs] == [_NUM_TRAIN] * len(epochs)
