"""The loop of a ranker without Ray: it learns a planted order, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypipe.config import OptimizerConfig
from raypipe.evaluation.ranking_metrics import expected_ranks
from raypipe.jobs.train.batches import Collective
from raypipe.jobs.train.ranker import rank_scores
from raypipe.jobs.train.ranker.next_video_task import HistoriesWindow, NextVideoTask, Sampling, WatchedCatalogue
from raypipe.jobs.train.ranker.ranker_spec import build_ranker, id_positions
from raypipe.jobs.train.tasks import seed_step
from raypipe.models.next_video import NO_ID
from support.ranker_loops import NUM_VIDEOS, content_of, network_of, ranker_loop, walks
from support.train_loops import CPU, untimed

EVENTS = walks(90)
EVERY_STEP = 1e-12


def test_a_planted_order_is_learned(tmp_path: Path) -> None:
    events = walks(300)
    loop = ranker_loop(tmp_path, events, epochs=15, learning_rate=0.02)
    history = loop.run().history
    popular = np.argsort(-np.bincount(events.items, minlength=NUM_VIDEOS))[:10]
    by_popularity = np.isin(events.items[events.starts[1:] - 1], popular).mean()
    assert by_popularity < 0.35
    assert history[-1]["hr_at_10"] > 0.7
    assert history[-1]["ndcg_at_10"] > 0.5
    assert history[-1]["coverage_at_10"] == 1.0
    assert history[-1]["validation_loss"] is None


@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("cache_bytes", [10**6, 400], ids=["cached", "streamed"])
def test_a_resumed_training_has_the_same_weights_bit_for_bit(tmp_path: Path, loss: str, cache_bytes: int) -> None:
    options: dict[str, Any] = {
        "network": network_of(EVENTS, loss=loss),
        "cache_bytes": cache_bytes,
        "accumulate": 2,
        "batch_size": 8,
    }
    whole = ranker_loop(tmp_path / "whole", EVENTS, minutes=EVERY_STEP, **options)
    state = whole.run()
    assert state.ended == "finished"
    random = np.random.default_rng(0)
    for number in random.choice(state.step + 2, 4, replace=False).tolist():
        found = whole._checkpoints.read(number)
        assert found is not None
        torch.manual_seed(12345)  # the result must not depend on earlier random numbers
        again = ranker_loop(tmp_path / f"cut-{number}", EVENTS, minutes=1e9, **options)
        again.resume(found)
        ended = again.run()
        assert untimed(ended.history) == [pytest.approx(one, abs=1e-9) for one in untimed(state.history)]
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor), (number, name)


def test_the_schedule_is_the_same_where_a_training_stops_earlier(tmp_path: Path) -> None:
    rates = []
    for stop_epoch in (None, 2):
        loop = ranker_loop(tmp_path / str(stop_epoch), EVENTS, epochs=5, stop_epoch=stop_epoch)
        history = loop.run().history
        rates.append([epoch["learning_rate"] for epoch in history])
    assert len(rates[0]) == 5
    assert rates[1] == rates[0][:2]
    assert rates[0][-1] == pytest.approx(0.01 * 0.05, rel=0.5)  # not zero at the end


def task_of(*, loss: str = "softmax", num_negatives: int = 8, full_softmax_below: int = 0) -> NextVideoTask:
    sampling = Sampling(num_negatives, full_softmax_below, mean_targets=2.0)
    network = network_of(EVENTS, sampling=sampling, loss=loss, dropout=0.0, id_dropout=0.0)
    seen = np.arange(0, NUM_VIDEOS, 2)
    catalogue = WatchedCatalogue.of(content_of(), id_positions=np.array([5, 3]), seen=seen)
    return NextVideoTask(
        build_ranker(network, seed=0), OptimizerConfig(), catalogue=catalogue, sampling=sampling, device=CPU
    )


WINDOW = HistoriesWindow(index=[0, 1], histories=[np.array([4, 6, 5]), np.array([3, 5])])


def videos_of(batch: dict[str, Any], name: str) -> list[list[int]]:
    """Return positions instead of the numbers within a batch, by their content vectors."""
    content = [row.tolist() for row in content_of().astype(np.float32)]
    at = [content.index(row) for row in batch["content"].tolist()]
    mask = batch["mask"].tolist()
    return [
        [at[number] for number, real in zip(row, keep, strict=True) if real]
        for row, keep in zip(batch[name].tolist(), mask, strict=True)
    ]


def test_a_batch_has_each_next_video_as_its_target() -> None:
    task = task_of()
    batch = task.batch(WINDOW, np.array([0, 1]))
    assert videos_of(batch, "history") == [[4, 6], [3]]
    assert videos_of(batch, "targets") == [[6, 5], [5]]
    assert set(batch["ids"].tolist()) == {NO_ID, 1, 2}


def test_negatives_are_watched_videos_and_depend_on_the_seed_alone() -> None:
    task = task_of()
    drawn = []
    for seed in (1, 1, 2):
        seed_step(seed, 0)
        drawn.append(task._negatives((2, 2)).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 8
    assert all(video % 2 == 0 for video in drawn[0])
    assert task.batch(WINDOW, np.array([0]))["log_correction"] == pytest.approx(np.log(30 / 8))
    whole = task_of(full_softmax_below=31)
    assert whole._negatives((2, 2)).tolist() == list(range(0, NUM_VIDEOS, 2))
    assert whole.batch(WINDOW, np.array([0]))["log_correction"] == 0.0
    assert task_of(loss="bce")._negatives((2, 3)).shape == (2, 3)


def test_every_target_weighs_the_same() -> None:
    task = task_of(full_softmax_below=100)
    pairs = HistoriesWindow(index=[0, 1], histories=[np.array([4, 6]), np.array([3, 5])])
    with torch.no_grad():
        together = task.losses(task.model, task.batch(WINDOW, np.array([0, 1]))).tolist()
        alone = [task.losses(task.model, task.batch(WINDOW, np.array([at]))).item() for at in (0, 1)]
        of_one = [task.losses(task.model, task.batch(pairs, np.array([at]))).item() for at in (0, 1)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[1] == pytest.approx(of_one[1], abs=1e-5)
    assert together[0] > 1.5 * of_one[0]  # the first history has two targets


def test_the_most_watched_videos_have_an_id() -> None:
    watched = np.array([4, 0, 9, 5, 9])
    assert id_positions(watched, min_events=5, max_ids=10).tolist() == [2, 4, 3]
    assert id_positions(watched, min_events=1, max_ids=2).tolist() == [2, 4]
    assert id_positions(watched, min_events=10, max_ids=2).tolist() == []


def test_ranks_are_those_of_the_full_catalogue_without_the_history() -> None:
    random = np.random.default_rng(0)
    vectors = torch.from_numpy(random.integers(-1, 2, (40, 4)).astype(np.float32))  # small integers: many ties
    states = torch.from_numpy(random.integers(-1, 2, (25, 4)).astype(np.float32))
    known = [np.sort(random.choice(40, random.integers(1, 6), replace=False)) for _ in range(25)]
    targets = [int(random.choice(np.setdiff1d(np.arange(40), videos))) for videos in known]
    expected = []
    for state, videos, target in zip(states, known, targets, strict=True):
        excluded = np.isin(np.arange(40), videos)
        expected += expected_ranks((vectors @ state).numpy(), excluded, np.array([target])).tolist()
    for size in (1000, 7):  # one block, and several
        scores = rank_scores.RankScores(lambda videos: vectors[videos], num_videos=40)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rank_scores, "_VIDEOS", size)
            patch.setattr(rank_scores, "_USERS", size)
            scores.add(states, known, targets)
            ranks, listed = scores.rank()
            scores.add_up(Collective(device=CPU))
        assert ranks.tolist() == [rank if rank <= 10 else np.inf for rank in expected]
        assert len(set(expected)) > 10
        found = scores.metrics()
        hit = np.array(expected) <= 10
        assert found["hr_at_10"] == pytest.approx(hit.mean())
        assert found["ndcg_at_10"] == pytest.approx((1 / np.log2(1 + np.array(expected)))[hit].sum() / 25)
        assert found["coverage_at_10"] == len(listed) / 40


def test_a_worker_without_users_adds_nothing() -> None:
    scores = rank_scores.RankScores(lambda _: torch.zeros(0, 4), num_videos=5)
    scores.add_up(Collective(device=CPU))
    assert scores.metrics() == {"hr_at_10": 0.0, "ndcg_at_10": 0.0, "coverage_at_10": 0.0}
