"""A history that is counted in parts gives bit-identical files, whatever the parts, with and without Ray."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypipe
from raypipe.errors import ConfigError
from raypipe.jobs.index import watching
from raypipe.jobs.index.counting import Fitting, count_in_parts
from raypipe.search.items import Items
from raypipe.search.versions import FITTED, SUCCESSORS, VIEWS, Versions
from raypipe.storage import Folder
from raypipe.tables import table_place
from raypipe.tables.event_groups import EventGroups
from raypipe.tables.history import HistoryFile

NUM_VIDEOS = 40
IDS = [f"video {number}" for number in range(NUM_VIDEOS)]
ITEMS = Items(pa.table({"video_id": pa.array(IDS, pa.large_string())}), None)
DAY = 86_400_000_000  # in microseconds
NOW = 20_000 * DAY
FUTURE = 60_000 * DAY


class InlineTasks:
    """Call the functions here, and count the calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def share(self, value: object) -> Any:  # noqa: ANN401
        """Return the value itself."""
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        """Call the function."""
        self.num_calls += 1
        return function(*arguments)

    def call_many(self, function: Callable[..., Any], *arguments: Any, num_results: int) -> list[Any]:  # noqa: ANN401
        """Call the function."""
        results: list[Any] = self.call(function, *arguments)
        assert len(results) == num_results
        return results

    def get(self, reference: Any) -> Any:  # noqa: ANN401
        """Return the result."""
        return reference


def event_rows(seed: int, *, num_rows: int = 600, times: bool = True) -> pa.Table:
    """Return events with repeated ones, equal times, and every kind of bad row."""
    random = np.random.default_rng(seed)
    users = [None if user == 0 else "" if user == 1 else f"user {user}" for user in random.integers(0, 40, num_rows)]
    popular = (random.random(num_rows) ** 2 * (NUM_VIDEOS + 3)).astype(np.int64)
    videos = [IDS[at] if at < NUM_VIDEOS else ("unknown", "", None)[at - NUM_VIDEOS] for at in popular.tolist()]
    columns: dict[str, Any] = {"user_id": users, "video_id": videos}
    if times:
        moments = NOW + random.integers(0, 60, num_rows) * DAY // 4
        moments[random.random(num_rows) < 0.02] = FUTURE
        moments[random.random(num_rows) < 0.01] = 5  # too close to 1970 to be a date
        is_null = random.random(num_rows) < 0.02
        columns["watched_at"] = pa.array(moments, pa.int64(), mask=is_null).cast(pa.timestamp("us"))
    columns["split"] = random.choice(["train", "train", "Val ", "test"], num_rows).tolist()
    return pa.table(columns)


def history_rows(seed: int, *, num_rows: int = 120) -> pa.Table:
    """Return one row per user, with repeated users and videos, empty histories and rows with an error."""
    random = np.random.default_rng(seed)
    users = [None if user == 0 else f"user {user}" for user in random.integers(0, 90, num_rows)]
    names = [*IDS, "unknown"]
    histories: list[list[str | None]] = [
        [names[at] for at in random.integers(0, len(names), random.integers(0, 9))] for _ in users
    ]
    histories[3] = ["video 1", None]
    return pa.table({"user_id": users, "history": histories})


def write(path: Path, table: pa.Table) -> str:
    with pq.ParquetWriter(path, table.schema) as file:
        file.write_table(table.slice(0, 0))
        file.write_table(table, row_group_size=37)
    return str(path)


def add(folder: Path, uri: str, *, in_process: int, **events: Any) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:  # noqa: ANN401
    """Return the files and the facts that ``add_history`` makes of a history."""
    folder.mkdir()
    pq.write_table(pa.table({"video_id": IDS}), folder / "items.parquet")
    with pa.ipc.new_file(folder / "thumbnails.arrow", pa.schema([("thumbnail", pa.large_binary())])) as file:
        file.write_table(pa.table({"thumbnail": pa.nulls(NUM_VIDEOS, pa.large_binary())}))
    config = raypipe.IndexConfig(embeddings="e", output="o", history=uri, events={"in_process": in_process, **events})
    facts = watching.add_history(folder, config, watching.WatchHistory.find(config), None).facts
    return {name: (folder / name).read_bytes() for name in (SUCCESSORS, VIEWS, FITTED)}, facts


SETTINGS = [
    {"holdout": "none", "cut": "2024-10-10"},
    {"holdout": "leave_one_out", "popular_days": 2.0},
    {"holdout": "time"},
    {"holdout": "time", "cut": "2024-10-10T06:00:00"},
    {"holdout": "given"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("seed", range(3))
def test_any_parts_of_events_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, settings: dict[str, Any]
) -> None:
    uri = write(tmp_path / "events.parquet", event_rows(seed))
    expected = add(tmp_path / "here", uri, in_process=10**9, **settings)
    assert {"without_user_or_video", "without_time", "in_future", "unknown_videos", "repeated_events"} == {
        *expected[1]["left_out"]
    }
    _expect_equal(tmp_path, monkeypatch, uri, expected, settings)


@pytest.mark.parametrize("holdout", ["none", "leave_one_out"])
@pytest.mark.parametrize("seed", range(3))
def test_any_parts_of_histories_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, holdout: str
) -> None:
    uri = write(tmp_path / "histories.parquet", history_rows(seed))
    expected = add(tmp_path / "here", uri, in_process=10**9, holdout=holdout)
    assert {"with_error", "repeated_users", "empty_histories", "unknown_videos", "repeated_events"} == {
        *expected[1]["left_out"]
    }
    _expect_equal(tmp_path, monkeypatch, uri, expected, {"holdout": holdout})


def test_events_without_times_keep_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write(tmp_path / "events.parquet", event_rows(5, times=False))
    expected = add(tmp_path / "here", uri, in_process=10**9)
    assert expected[1]["counts"] == "transitions"
    _expect_equal(tmp_path, monkeypatch, uri, expected, {})


def _expect_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: tuple[Any, Any], settings: dict[str, Any]
) -> None:
    for number, (partition_events, read_events) in enumerate([(10**6, 10**6), (97, 50), (11, 1)]):
        tasks = InlineTasks()

        def on_ray(
            groups: EventGroups,
            items: Items,
            _: object,
            fitting: Fitting,
            parts: tuple[Any, int, int] = (tasks, partition_events, read_events),
        ) -> Any:  # noqa: ANN401
            counter, of_partition, of_task = parts
            return count_in_parts(groups, items, fitting, counter, partition_events=of_partition, read_events=of_task)

        monkeypatch.setattr(watching, "count_on_ray", on_ray)
        files, facts = add(tmp_path / f"parts-{number}", uri, in_process=0, **settings)
        assert tasks.num_calls >= (4 if number == 0 else 10)
        assert facts == expected[1]
        for name, content in files.items():
            assert content == expected[0][name], name
    assert facts["num_pairs"] > 50


def test_a_history_that_changes_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "events.parquet", event_rows(0))
    file = HistoryFile.find(*table_place(uri, what="history"))
    groups = EventGroups.find(file)
    assert groups is not None
    write(tmp_path / "events.parquet", event_rows(1))
    for attempt in (lambda: EventGroups.find(file), lambda: groups.read([0], ITEMS, now=0.0)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.expected == file.stored.etag


def test_what_needs_all_events_at_once_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "events.parquet", event_rows(0))
    for number, counts in enumerate(("item_knn", "ease")):
        with pytest.raises(ConfigError, match="transitions") as caught:
            add(tmp_path / str(number), uri, in_process=100, counts=counts)
        assert caught.value.key == "events.in_process"
    with pytest.raises(ConfigError) as caught:
        watching.WatchHistory.find(
            raypipe.IndexConfig(embeddings="e", output="o", history=uri, evaluate=uri, events={"in_process": 100})
        )
    assert caught.value.key == "events.in_process"
    with pytest.raises(ConfigError) as caught:
        add(
            tmp_path / "time",
            write(tmp_path / "no_times.parquet", event_rows(0, times=False)),
            in_process=1,
            holdout="time",
        )
    assert caught.value.key == "events.holdout"


def test_a_column_that_is_mostly_no_dates_is_refused(tmp_path: Path) -> None:
    table = event_rows(0)
    bad = pa.array([7] * table.num_rows, pa.int64()).cast(pa.timestamp("us"))
    uri = write(tmp_path / "events.parquet", table.set_column(2, "watched_at", bad))
    groups = EventGroups.find(HistoryFile.find(*table_place(uri, what="history")))
    assert groups is not None
    with pytest.raises(ConfigError) as caught:
        count_in_parts(groups, ITEMS, Fitting("none", None, "k", True, 7.0), InlineTasks())  # noqa: FBT003
    assert caught.value.key == "watched_at"


def test_other_files_stay_in_this_process(tmp_path: Path) -> None:
    table = event_rows(0)
    texts = table.set_column(2, "watched_at", table["watched_at"].cast(pa.string()))
    (tmp_path / "events.csv").write_text("user_id,video_id\na,video 1\n")
    for uri in (write(tmp_path / "texts.parquet", texts), str(tmp_path / "events.csv")):
        assert EventGroups.find(HistoryFile.find(*table_place(uri, what="history"))) is None


@pytest.mark.slow
@pytest.mark.parametrize("make", [event_rows, history_rows])
def test_ray_gives_the_same_files(
    ray_address: str,  # noqa: ARG001 - the tasks run there
    tmp_path: Path,
    make: Callable[[int], pa.Table],
) -> None:
    vectors = np.random.default_rng(0).standard_normal((NUM_VIDEOS, 8)).astype(np.float32)
    pq.write_table(pa.table({"video_id": IDS, "embedding": list(vectors)}), tmp_path / "v.parquet")
    uri = write(tmp_path / "history.parquet", make(7))
    manifests, files = [], []
    for in_process in (0, 10**9):
        output = Folder(str(tmp_path / str(in_process)))
        raypipe.index(tmp_path / "v.parquet", output.uri, history=uri, events={"in_process": in_process})
        version = Versions(output).require_current()
        manifests.append(Versions(output).read_manifest(version)["history"])
        files.append([output.read(f"versions/{version}/{name}") for name in (SUCCESSORS, VIEWS, FITTED)])
    for one, other in itertools.pairwise(zip(manifests, files, strict=True)):
        assert one == other
