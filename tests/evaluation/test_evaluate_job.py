"""``raypipe evaluate``: files of every kind, bad rows are counted, and the requirement decides the exit code."""

import datetime as dt
import json
from base64 import b64encode
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypipe
from raypipe import cli
from raypipe.config import EvaluateConfig
from raypipe.evaluation.protocols import leave_one_out
from raypipe.jobs.evaluate.inputs import split_events
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.storage import Folder
from raypipe.tables.event_table import read_events
from support.report_pages import Page
from support.served_index import make_items, put_index

NUM_VIDEOS = 150
IDS = make_items(NUM_VIDEOS)[0]["video_id"].to_pylist()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("index")
    put_index(Folder(str(folder)), num_videos=NUM_VIDEOS)
    return str(folder)


@pytest.fixture(scope="module")
def items(index: str) -> VideoIndex:
    return VideoIndex.open(index)


def chains(num_users: int) -> list[tuple[str, str, str]]:
    """Return rows of users who watch the videos of a circle one after the other, a day apart."""
    random = np.random.default_rng(0)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    rows = []
    for user in range(num_users):
        first = int(random.integers(NUM_VIDEOS))
        for step in range(6):
            moment = start + dt.timedelta(days=step + int(random.integers(3)) / 10)
            rows.append((f"u{user}", IDS[(first + step) % NUM_VIDEOS], moment.isoformat()))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str, str]]) -> str:
    path.write_text("user_id,video_id,watched_at\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return str(path)


def test_events_and_histories_of_every_format_are_the_same(items: VideoIndex, tmp_path: Path) -> None:
    rows = chains(20)
    histories: dict[str, list[str]] = {}
    for user, video, _ in rows:
        histories.setdefault(user, []).append(video)
    wide, long = tmp_path / "wide", tmp_path / "long"
    columns = ("user_id", "video_id", "watched_at")
    write_csv(long.with_suffix(".csv"), rows)
    table = pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))
    moments = pa.array(map(dt.datetime.fromisoformat, table["watched_at"].to_pylist()), pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(2, "watched_at", moments), long.with_suffix(".parquet"))
    lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
    long.with_suffix(".jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"user_id": [*histories], "history": [*histories.values()]}), wide.with_suffix(".parquet"))
    quoted = (json.dumps(history).replace('"', '""') for history in histories.values())
    texts = (f'{user},"{text}"\n' for user, text in zip(histories, quoted, strict=True))
    wide.with_suffix(".csv").write_text("user_id,history\n" + "".join(texts))
    paths = [long.with_suffix(end) for end in (".csv", ".parquet", ".jsonl")]
    paths += [wide.with_suffix(end) for end in (".csv", ".parquet")]
    for path in paths:
        found = read_events(str(path), items.items)
        assert found.counts == {}, path
        events = {user: found.events.history(at).tolist() for at, user in enumerate(found.user_ids)}
        assert events == {user: items.items.positions(history) for user, history in histories.items()}, path
        assert (found.events.times is not None) == (path.stem == "long")


def test_bad_rows_are_counted_by_reason(items: VideoIndex, tmp_path: Path) -> None:
    rows = [
        ("a", IDS[0], "2026-01-02"),
        ("a", IDS[1], "2026-01-01"),
        ("a", IDS[0], "2026-01-03"),
        ("a", "unknown.mp4", "2026-01-03"),
        ("", IDS[2], "2026-01-03"),
        ("b", IDS[2], ""),
        ("b", IDS[3], "2099-01-01"),
        *(("c", IDS[number], "2026-02-01") for number in range(10)),
    ]
    found = read_events(write_csv(tmp_path / "events.csv", rows), items.items)
    assert found.counts == {
        "without_user_or_video": 1,
        "without_time": 1,
        "in_future": 1,
        "unknown_videos": 1,
        "repeated_events": 1,
    }
    assert found.user_ids == ["a", "c"]
    assert found.events.history(0).tolist() == items.items.positions([IDS[1], IDS[0]])


def test_a_column_split_decides(items: VideoIndex, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    parts = ("train", "train", "val", "test")
    rows = "".join(f"a,{IDS[number]},{part}\n" for number, part in enumerate(parts))
    path.write_text(f"user_id,video_id,split\n{rows}")
    config = EvaluateConfig(index="i", history=str(path), output="o")
    split = split_events(read_events(str(path), items.items), config)
    assert split.facts == {"protocol": "given", "num_users_without_target": 0}
    assert split.train.is_ordered
    assert not read_events(str(path), items.items, is_ordered=False).events.is_ordered
    assert split.known.history(0).tolist() == items.items.positions(IDS[:2])
    assert split.targets.history(0).tolist() == items.items.positions(IDS[3:4])


def test_the_command_writes_metrics_and_enforces_a_requirement(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history, output = write_csv(tmp_path / "events.csv", chains(300)), str(tmp_path / "out")
    words = ["evaluate", "--index", index, "--history", history, "--output", output]
    codes = []
    for require in ("ndcg@10 >= popular", "ndcg@10 >= transitions"):
        with pytest.raises(SystemExit) as ended:
            cli.app([*words, "--set", "protocol=leave_one_out", "--require", require], prog_name="raypipe")
        codes.append(ended.value.code)
    assert codes == [0, 1]
    assert "transitions" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["best_baseline"]["ndcg@10"] == "transitions"
    assert metrics["differences"]["served"]["ndcg@10"]["high"] < 0
    assert (metrics["num_users"], metrics["meets_requirement"], metrics["outcome"]) == (300, False, "worse")
    users = pq.read_table(tmp_path / "out/users.parquet").to_pydict()
    assert len(set(users["user_id"])) == 300
    last = {user: video for user, video, _ in sorted(chains(300), key=lambda row: row[2])}
    assert dict(zip(users["user_id"], users["target_video_ids"], strict=True)) == {u: [v] for u, v in last.items()}
    page = (tmp_path / "out/report.html").read_text()
    assert metrics["verdict"].rstrip(".") in unescape(page)
    assert all(f">{name}</th>" in page for name in metrics["rankers"])
    hits = np.mean(np.array(users["transitions"]) <= 10)
    assert hits == pytest.approx(metrics["rankers"]["transitions"]["hr@10"]["value"])


def test_served_lists_are_those_of_the_index(index: str, items: VideoIndex, tmp_path: Path) -> None:
    history = write_csv(tmp_path / "events.csv", chains(30))
    result = raypipe.evaluate(index, history, tmp_path / "out", protocol="leave_one_out", ranking={"top_k": 20})
    found = read_events(history, items.items)
    split = leave_one_out(found.events)
    for user, rank in zip(split.users.tolist(), result.record.ranks["served"].tolist(), strict=True):
        known = [items.items.video_id(item) for item in split.known.history(user)]
        listed = [one.position for one in items.recommend(known, top_k=20)]
        target = int(split.targets.history(user)[0])
        assert rank == listed.index(target) + 1 if target in listed else rank > 20


def test_the_controls_are_the_served_lists_of_another_search_and_of_other_orders(index: str, tmp_path: Path) -> None:
    history, given = write_csv(tmp_path / "events.csv", chains(250)), {"protocol": "leave_one_out", "k": [20]}
    found = raypipe.evaluate(index, history, tmp_path / "out", **given).record
    # The index is small, so its search is exhaustive in any case; the order decides which videos weigh most.
    assert found.ranks["served_exact"].tolist() == found.ranks["served"].tolist()
    assert found.ranks["served_shuffled"].tolist() != found.ranks["served"].tolist()
    references = json.loads((tmp_path / "out/metrics.json").read_text())["references"]
    assert references["served_exact"]["ndcg@20"] == {"value": 0, "low": 0, "high": 0}
    again = raypipe.evaluate(index, history, tmp_path / "out", **given).record
    assert again.ranks["served_shuffled"].tolist() == found.ranks["served_shuffled"].tolist()
    without = raypipe.evaluate(index, history, tmp_path / "out", controls=False, **given).record
    assert {*found.rankers} - {*without.rankers} == {"served_exact", "served_shuffled"}
    assert without.ranks["served"].tolist() == found.ranks["served"].tolist()
    unordered = raypipe.evaluate(index, unordered_history(tmp_path), tmp_path / "out", history_ordered=False).record
    assert {*found.rankers} - {*unordered.rankers} == {"served_shuffled", "transitions", "popular_7_days"}


def unordered_history(folder: Path) -> str:
    rows = "".join(f"{user},{video}\n" for user, video, _ in chains(20))
    path = folder / "unordered.csv"
    path.write_text(f"user_id,video_id\n{rows}")
    return str(path)


def test_slices_cover_every_user(index: str, tmp_path: Path) -> None:
    history = write_csv(tmp_path / "events.csv", chains(120))
    found = raypipe.evaluate(index, history, tmp_path / "out", max_users=50, slices=["category", "label"]).record
    names = {"target_frequency", "newness", "history_length", "days_since_publication", "category", "label"}
    assert found.slices.keys() == names
    for title, groups in found.slices.items():
        assert sum(group["users"]["count"] for group in groups.values()) == 50, title
    assert {"music", "news", "sport", "cooking"} <= found.slices["category"].keys()


def test_a_report_shows_the_lists_of_twelve_users(index: str, items: VideoIndex, tmp_path: Path) -> None:
    result = raypipe.evaluate(index, write_csv(tmp_path / "events.csv", chains(60)), tmp_path / "out")
    page = Page((tmp_path / "out/report.html").read_bytes())
    assert sum(tag == "div" and value == "user" for tag, _, value in page.attributes) == 12
    assert "script" not in {tag for tag, _ in page.elements}
    pictures = {value for tag, name, value in page.attributes if (tag, name) == ("img", "src")}
    known = {items.items.thumbnail(position) for position in range(NUM_VIDEOS)} - {None}
    assert pictures <= {f"data:image/jpeg;base64,{b64encode(jpeg).decode()}" for jpeg in known if jpeg}
    titles = {items.items.row(position)["title"] for position in range(NUM_VIDEOS)}
    assert len(titles & {*page.texts}) > 20
    marked = [value for _, name, value in page.attributes if (name, value) == ("class", "target")]
    assert len(marked) >= 12  # the targets, and each target that is among the first six
    assert result.record.facts["num_users"] >= 12


def test_users_and_ids_of_any_form_are_counted_or_read(items: VideoIndex, tmp_path: Path) -> None:
    path = tmp_path / "histories.parquet"
    histories = [[IDS[0], IDS[1], IDS[0]], [], None, [IDS[2]], ["unknown"]]
    pq.write_table(pa.table({"user_id": [1, 2, 3, 4, 1], "history": histories}), path)
    found = read_events(str(path), items.items)
    assert found.user_ids == ["1", "2", "3", "4"]
    assert found.counts == {"empty_histories": 2, "repeated_users": 1, "repeated_events": 1}
    split = split_events(found, EvaluateConfig(index="i", history="h", output="o", protocol="last_k"))
    assert split.facts["num_users_without_target"] == 1  # the user with one event
    numbers = Items(pa.table({"video_id": ["7", "8", "9"]}), None)
    for users, videos in (([1, 1, 2], [7, 8, 9]), ([1.0, 1.0, None], [7.0, 8.0, 9.0])):
        pq.write_table(pa.table({"user_id": users, "video_id": videos}), path)
        found = read_events(str(path), numbers)
        assert found.user_ids[0] == "1"
        assert found.events.history(0).tolist() == [0, 1]
        assert found.counts == ({"without_user_or_video": 1} if None in users else {})


@pytest.mark.parametrize("moments", [["soon", "later"], [True, False], [1, 2]])
def test_times_that_are_not_dates_are_refused(items: VideoIndex, tmp_path: Path, moments: list[object]) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"user_id": ["a", "a"], "video_id": IDS[:2], "watched_at": moments}), path)
    with pytest.raises(raypipe.ConfigError) as caught:
        read_events(str(path), items.items)
    assert caught.value.key == "watched_at"


def test_a_column_of_times_without_any_is_ignored(items: VideoIndex, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(pa.table({"user_id": ["a", "a"], "video_id": IDS[:2], "watched_at": pa.nulls(2)}), path)
    found = read_events(str(path), items.items)
    assert (found.counts, found.events.times, len(found.events)) == ({}, None, 2)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"slices": ["genre"]}, "slices"),
        ({"protocol": "given"}, "protocol"),
        ({"cut": "yesterday"}, "cut"),
        ({"require": "ndcg@10 >= magic"}, "require"),
        ({"require": "ndcg@7 >= popular"}, ""),
        ({"ranking": {"filters": {"nothing": 1}}}, "ranking"),
        ({"history": "nowhere.csv"}, "history"),
    ],
)
def test_what_cannot_be_evaluated_is_one_error(
    index: str, tmp_path: Path, settings: dict[str, object], key: str
) -> None:
    given = {"history": write_csv(tmp_path / "events.csv", chains(10))} | settings
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.evaluate(index, output=tmp_path / "out", **given)
    assert caught.value.key == key


def test_a_history_of_other_videos_is_refused(index: str, tmp_path: Path) -> None:
    history = write_csv(tmp_path / "events.csv", [("a", "x.mp4", "2026-01-01"), ("a", "y.mp4", "2026-01-02")])
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.evaluate(index, history, tmp_path / "out")
    assert caught.value.key == "history"


def test_the_order_of_a_file_without_order_is_not_used(items: VideoIndex, tmp_path: Path) -> None:
    """A file that is sorted by id gives each user's events in an order that depends on nothing in the file."""
    rows = [(f"u{user}", IDS[item], "train" if item < 90 else "test") for user in range(5) for item in range(100)]
    table = pa.table(dict(zip(("user_id", "video_id", "split"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "rows.parquet")
    ordered = read_events(str(tmp_path / "rows.parquet"), items.items)
    found = read_events(str(tmp_path / "rows.parquet"), items.items, is_ordered=False)
    assert found.parts is not None
    for user in range(5):
        watched = found.events.history(user)
        assert sorted(watched.tolist()) == sorted(ordered.events.history(user).tolist())
        assert abs(np.corrcoef(watched, np.arange(100))[0, 1]) < 0.4
        parts = found.parts[found.events.starts[user] : found.events.starts[user + 1]]
        last = {items.items.position(IDS[item]) for item in range(90, 100)}
        assert {int(position) for position in watched[parts == 2]} == last
    again = read_events(str(tmp_path / "rows.parquet"), items.items, is_ordered=False)
    assert np.array_equal(again.events.items, found.events.items)
