"""Choose how a ranker and counted successors are combined, after its training."""

import json

import numpy as np
import pyarrow as pa

from raypipe.evaluation.blend_choice import BlendChoice, ItemVectors, choose_blend
from raypipe.jobs.train.ranker.histories import HISTORY, HistorySamples
from raypipe.models.model_files import MODEL_FOLDER
from raypipe.models.ranker_files import BLEND, read_ranker
from raypipe.search.vectors import open_vectors
from raypipe.search.versions import VECTORS
from raypipe.storage import Folder


def put_blend(output: Folder, trained: Folder, samples: HistorySamples, *, seed: int) -> BlendChoice:
    """Choose the blend on the validation events of a training, and write it next to the model in ``output``.

    Args:
        output: The output of the final training.
        trained: The output of the training that has not seen the validation events; often the same.
        samples: Its samples.
        seed: Of the users that are drawn.
    """
    place = Folder(output.child(MODEL_FOLDER))
    files = read_ranker(trained)
    ids = pa.array([samples.items.video_id(position) for position in range(len(samples.items))], pa.string())
    tower = files.tower(ids)
    vectors = ItemVectors.of(tower, open_vectors(samples.index.folder / VECTORS))
    histories = [np.array(history, np.int64) for history in samples.validation[HISTORY].to_pylist()]
    choice = choose_blend(
        tower.weights,
        vectors,
        train=samples.events,
        histories=[history[:-1] for history in histories],
        targets=np.array([history[-1] for history in histories], np.int64),
        seed=seed,
    )
    place.put(BLEND, json.dumps(choice.as_json(), indent=1).encode())
    return choice
