"""The samples of a ranker: no held-out event is ever in a training sample, whatever the history."""

import csv
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import TrainConfig
from raypipe.config.train import RankerConfig
from raypipe.errors import ConfigError, IndexVersionError
from raypipe.jobs.train.ranker.histories import (
    HISTORY,
    HistorySamples,
    allowed_events,
    find_histories,
    last_events,
    training_table,
    validation_table,
    validation_targets,
)
from raypipe.jobs.train.run_spec import RunSpec, prepare, run_facts
from raypipe.search.watch_events import Events, event_hashes
from raypipe.storage import Folder
from raypipe.tables.event_table import WatchEvents
from support.properties import examples
from support.served_index import make_items, put_index, put_version

HISTORIES = st.lists(st.lists(st.integers(0, 30), max_size=12, unique=True), min_size=1, max_size=12)


def pairs_of(events: Events) -> set[tuple[int, int]]:
    return set(zip(events.users.tolist(), events.items.tolist(), strict=True))


@settings(max_examples=examples(150))
@given(histories=HISTORIES, max_events=st.integers(1, 5), max_users=st.integers(1, 4))
def test_leave_one_out_trains_on_no_held_out_event(histories: list[list[int]], max_events: int, max_users: int) -> None:
    found = WatchEvents(Events.of_histories(histories), [str(user) for user in range(len(histories))], {})
    allowed, _ = allowed_events(found, RankerConfig())
    targets = validation_targets(found, allowed, "leave_one_out")
    expected = [history[:-2] if len(history) >= 3 else history for history in histories]
    assert [allowed.history(user).tolist() for user in range(len(histories))] == expected
    train = training_table(allowed, max_events=max_events)[HISTORY].to_pylist()
    assert train == [history[-max_events - 1 :] for history in expected if len(history) > 1]
    validation = validation_table(allowed, found.events, targets, max_users=max_users, seed=0)[HISTORY].to_pylist()
    whole = [history[:-1] for history in histories if len(history) >= 3]
    assert len(validation) == min(max_users, len(whole))
    rest = iter(whole)
    assert all(any(history == one for one in rest) for history in validation)  # in the same order


@settings(max_examples=examples(150))
@given(histories=HISTORIES, data=st.data())
def test_marked_and_late_events_are_not_trained_on(histories: list[list[int]], data: st.DataObject) -> None:
    events = Events.of_histories(histories)
    numbers = st.lists(st.integers(0, 2), min_size=len(events), max_size=len(events))
    parts = np.array(data.draw(numbers), np.int64)
    times = np.concatenate([np.zeros(0), *(np.sort(parts[s:e]) for s, e in zip(events.starts, events.starts[1:]))])  # noqa: B905
    found = WatchEvents(Events(events.items, events.starts, times), [str(user) for user in histories], {}, parts)
    allowed, _ = allowed_events(found, RankerConfig(holdout="given"))
    assert pairs_of(allowed) == pairs_of(events.where(parts == 0))
    targets = validation_targets(found, allowed, "given")
    assert (parts[targets] == 1).all()
    chosen = events.users[targets].tolist()
    assert len(chosen) == len(set(chosen))
    table = validation_table(allowed, events, targets, max_users=100, seed=0)
    for user, history in zip(chosen, table[HISTORY].to_pylist(), strict=True):
        assert history[:-1] == allowed.history(user).tolist() != []
    early, facts = allowed_events(found, RankerConfig(holdout="time", cut="1970-01-01T00:00:01"))
    assert pairs_of(early) == pairs_of(events.where(times <= 1))
    assert facts["cut"] == "1970-01-01T00:00:01+00:00"
    held_out = last_events(early)
    fitted = early.where(~held_out)
    assert pairs_of(early.where(held_out)).isdisjoint(pairs_of(fitted))
    assert (np.diff(fitted.starts)[early.users[held_out]] >= 2).all()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def index(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "index"))
    put_index(folder, num_videos=40)
    return folder


def ids_of(index: Folder) -> list[str]:
    assert index.uri
    return make_items(40)[0]["video_id"].to_pylist()


def rows_of(index: Folder, num_users: int = 12, length: int = 5) -> list[dict[str, Any]]:
    ids = ids_of(index)
    return [
        {
            "user_id": f"u{user}",
            "video_id": ids[(3 * user + at) % 40],
            "watched_at": (START + dt.timedelta(days=at, seconds=user)).isoformat(),
            "split": "train" if at < length - 2 else ("validation", "test")[at - length + 2],
        }
        for user in range(num_users)
        for at in range(length)
    ]


def config_of(index: Folder, history: str, **ranker: Any) -> TrainConfig:  # noqa: ANN401 - passed on
    values = {"objective": "next_video", "index": index.uri, "history": history, "output": f"{index.uri}-model"}
    return TrainConfig(**values, ranker=ranker)


def hashes_of(rows: list[dict[str, Any]]) -> set[int]:
    users, videos = sorted({row["user_id"] for row in rows}), sorted({row["video_id"] for row in rows})
    events, _, ids = Events.of_rows(
        np.array([users.index(row["user_id"]) for row in rows]),
        np.array([videos.index(row["video_id"]) for row in rows]),
    )
    return set(event_hashes(events, [users[at] for at in ids], videos).tolist())


@pytest.mark.parametrize(
    ("ranker", "num_fitted", "refits"),
    [
        ({}, 3, False),
        ({"holdout": "given"}, 3, False),
        ({"holdout": "time", "cut": "2024-01-04T12:00:00"}, 4, True),
        ({"holdout": "none"}, 5, True),
    ],
)
def test_the_hashes_are_of_the_fitted_events_alone(
    tmp_path: Path, index: Folder, ranker: dict[str, Any], num_fitted: int, *, refits: bool
) -> None:
    rows = rows_of(index)
    found = find_histories(config_of(index, write_rows(tmp_path / "h.csv", rows), **ranker))
    fitted, rest = hashes_of([row for at, row in enumerate(rows) if at % 5 < num_fitted]), hashes_of(rows)
    assert set(found.event_hashes.tolist()) == fitted < {*rest, 0}
    assert found.event_hashes.tolist() == sorted(found.event_hashes.tolist())
    assert (found.selection is not None) == refits
    assert found.facts["num_events"] == 12 * num_fitted
    assert found.facts["num_users"] == 12
    assert found.facts["first_event_at"] == START.isoformat()
    assert (found.train.num_rows, found.validation.num_rows) == (12, 0 if refits else 12)
    if found.selection is not None:
        assert found.selection.validation.num_rows == 12
        assert set(found.selection.event_hashes.tolist()) == hashes_of(
            [row for at, row in enumerate(rows) if at % 5 < num_fitted - 1]
        )


def test_given_without_validation_rows_chooses_the_epoch_by_the_last_training_event(
    tmp_path: Path, index: Folder
) -> None:
    rows = [{**row, "split": "test" if row["split"] == "test" else "train"} for row in rows_of(index)]
    found = find_histories(config_of(index, write_rows(tmp_path / "h.csv", rows), holdout="given"))
    assert found.selection is not None
    assert found.facts["num_events"] == 12 * 4
    assert found.selection.facts["num_events"] == 12 * 3


def test_bad_rows_are_counted_and_left_out(tmp_path: Path, index: Folder) -> None:
    rows = rows_of(index)
    late = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    bad = [
        {**rows[0], "video_id": "no such video"},
        {**rows[0]},
        {**rows[0], "user_id": ""},
        {**rows[0], "watched_at": late.isoformat()},
    ]
    found = find_histories(config_of(index, write_rows(tmp_path / "h.csv", rows + bad)))
    expected = {"unknown_videos": 1, "repeated_events": 1, "without_user_or_video": 1, "in_future": 1}
    assert found.counts == expected
    assert found.facts["num_events"] == 12 * 3


def test_a_user_with_one_event_is_no_sample(tmp_path: Path, index: Folder) -> None:
    rows = rows_of(index)
    alone = [{**rows[0], "user_id": "alone"}]
    found = find_histories(config_of(index, write_rows(tmp_path / "h.csv", rows + alone)))
    assert (found.train.num_rows, found.facts["num_users"]) == (12, 13)
    with pytest.raises(ConfigError) as caught:
        find_histories(config_of(index, write_rows(tmp_path / "one.csv", alone)))
    assert caught.value.key == "history"


@pytest.mark.parametrize(("holdout", "column"), [("time", "watched_at"), ("given", "split")])
def test_a_holdout_needs_its_column(tmp_path: Path, index: Folder, holdout: str, column: str) -> None:
    rows = [{key: value for key, value in row.items() if key != column} for row in rows_of(index)]
    with pytest.raises(ConfigError) as caught:
        find_histories(config_of(index, write_rows(tmp_path / "h.csv", rows), holdout=holdout))
    assert (caught.value.key, caught.value.value) == ("ranker.holdout", holdout)
    assert column in str(caught.value)


def test_there_must_be_an_index(tmp_path: Path, index: Folder) -> None:
    history = write_rows(tmp_path / "h.csv", rows_of(index))
    with pytest.raises(IndexVersionError):
        find_histories(config_of(Folder(str(tmp_path / "none")), history))
    with pytest.raises(IndexVersionError):
        find_histories(config_of(index, history, index_version="20240531T120000-0a1b2c3d"))


def spec_of(config: TrainConfig) -> tuple[RunSpec, HistorySamples]:
    samples = find_histories(config)
    return prepare(config, samples), samples


def test_sizes_depend_on_the_histories(tmp_path: Path, index: Folder) -> None:
    short = write_rows(tmp_path / "short.csv", rows_of(index, num_users=30))
    spec, _ = spec_of(config_of(index, short, min_events=3))
    config = spec.network.config
    assert (config.n_embd, config.n_layer, config.content_dim) == (64, 1, 16)
    watched = np.bincount(spec.samples.events.items, minlength=40)  # type: ignore[union-attr]
    assert config.num_ids == (watched >= 3).sum() > 0
    assert spec.learning_rate == 1e-3
    long = write_rows(tmp_path / "long.csv", rows_of(index, length=34))
    assert spec_of(config_of(index, long))[0].network.config.n_layer == 2
    with pytest.raises(ConfigError) as caught:
        spec_of(config_of(index, short, n_embd=30, n_head=4))
    assert caught.value.key == "ranker.n_embd"
    assert spec_of(config_of(index, short, content=False))[0].network.config.content_dim == 0


def test_other_histories_or_another_version_are_another_run(tmp_path: Path, index: Folder) -> None:
    rows = rows_of(index)
    history = write_rows(tmp_path / "h.csv", rows)
    first, samples = spec_of(config_of(index, history))
    before = run_facts(first)
    assert "model" not in before["settings"]
    version = put_version(index, *make_items(40))
    pinned = config_of(index, history, index_version=samples.index.version)
    assert run_facts(spec_of(pinned)[0]) == before
    later = run_facts(spec_of(config_of(index, history))[0])
    assert later["data"]["index_version"] == version != before["data"]["index_version"]
    write_rows(tmp_path / "h.csv", rows[:-6])
    assert run_facts(spec_of(pinned)[0])["data"]["samples"] != before["data"]["samples"]


def test_many_validation_users_are_drawn_by_seed() -> None:
    events = Events.of_histories([[user % 7, 7 + user % 5, 20] for user in range(50)])
    held_out = last_events(events)
    drawn = [validation_table(events.where(~held_out), events, held_out, max_users=20, seed=seed) for seed in (0, 0, 1)]
    assert isinstance(drawn[0], pa.Table)
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])
    assert drawn[0].num_rows == 20
