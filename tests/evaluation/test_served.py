"""The served lists and their controls."""

import numpy as np
import pytest

from raypipe.config.recommend import RankingConfig
from raypipe.evaluation.rankers import Served, Shuffled, one_search_thread
from raypipe.search import ann as ann_module
from support.vectors import clustered, index_of


def test_exact_lists_are_those_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_module, "SCANNED", 0)  # search with faiss even for few videos
    index = index_of(clustered(2_000, dim=8, seed=3), {"popularity": [0] * 2_000}, kind="compact")
    index.ann.nprobe = 1
    vectors, ranking = index.vectors.astype(np.float32), RankingConfig(top_k=20, exclude_history=False)
    served, exact = Served(index, ranking), Served(index, ranking, exact=True)
    histories = [np.array([item]) for item in range(20)]
    for history in histories:
        cosines = vectors @ vectors[history[0]]
        np.testing.assert_allclose(cosines[exact.listed(history)], np.sort(cosines)[::-1][:20], atol=1e-5)
    with one_search_thread():
        assert any(served.listed(history) != exact.listed(history) for history in histories)
    row = served.scores(histories[:1])[0]
    assert np.argsort(-row, kind="stable")[:20].tolist() == served.listed(histories[0])
    assert np.isfinite(row).sum() == 20


class Recorder:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        self.seen += [history.tolist() for history in histories]
        return np.zeros((len(histories), 1), np.float32)


def test_shuffled_histories_have_the_same_videos_in_an_order_from_the_seed() -> None:
    histories = [np.arange(size) for size in (0, 1, 5, 9)]
    orders = []
    for seed in (1, 1, 2):
        recorder = Recorder()
        assert Shuffled(recorder, seed=seed).scores(histories).shape == (4, 1)
        assert [sorted(one) for one in recorder.seen] == [[*range(len(one))] for one in histories]
        orders.append(recorder.seen)
    assert orders[0] == orders[1] != orders[2]
