"""The command reports how dates were read, and warns about columns with bad values."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raypipe import cli
from raypipe.search.index import VideoIndex
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.tables.column_types import EPOCHS, ISO_TEXT
from support.train_runs import embed_all, video_ids

IDS = video_ids(24)
TIMES = [datetime(2024, 5, 31, tzinfo=UTC) - timedelta(days=7 * at) for at in range(len(IDS))]
A_WEEK_OLD = 2 ** (-7 / 30)  # freshness halves every 30 days


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return embed_all(Folder(str(tmp_path_factory.mktemp("embeddings"))), IDS)


def index(embeddings: Folder, place: Path, columns: Mapping[str, list[object]]) -> VideoIndex:
    """Run the command with a catalogue of these columns, and open its index."""
    names = ["video_id", *columns]
    lines = [",".join(names), *(",".join(map(str, row)) for row in zip(IDS, *columns.values(), strict=True))]
    (place / "catalogue.csv").write_text("\n".join(lines), encoding="utf-8")
    files = ("--catalogue", str(place / "catalogue.csv"), "--output", str(place / "index"))
    with pytest.raises(SystemExit) as left:
        cli.app(["index", "--embeddings", embeddings.uri, *files])
    assert left.value.code == 0
    versions = Versions(Folder(str(place / "index")))
    version = versions.require_current()
    return VideoIndex.load(versions.fetch(version, place / "cache"), versions.read_manifest(version))


def freshness(index: VideoIndex) -> list[float]:
    ranking = index.ranking("freshness")
    assert ranking is not None
    positions = index.items.positions(IDS)
    return [float(ranking.values[position]) for position in positions if position is not None]


def test_dates_are_fresh_whatever_their_unit(
    embeddings: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    written: dict[str, list[object]] = {
        ISO_TEXT: [time.isoformat() for time in TIMES],
        EPOCHS[1]: [int(time.timestamp()) * 1000 for time in TIMES],
    }
    for unit, values in written.items():
        (place := tmp_path / unit).mkdir()
        found = freshness(index(embeddings, place, {"published_at": values}))
        assert found[:2] == [1, pytest.approx(A_WEEK_OLD)]
        np.testing.assert_allclose(found, [A_WEEK_OLD**at for at in range(len(IDS))], rtol=1e-5)
        said = " ".join(capsys.readouterr().out.split())
        assert all(token in said for token in ("published_at", unit, "2024-05-31"))


def test_bad_values_are_warned_of(embeddings: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dates: list[object] = [time.isoformat() for time in TIMES]
    dates[2] = "n/a"
    views: list[object] = [*range(len(IDS) - 4), *["many"] * 4]
    with caplog.at_level(logging.WARNING):
        found = index(embeddings, tmp_path, {"published_at": dates, "views": views, "year": range(1800, 1824)})
    said = [record.getMessage() for record in caplog.records if record.name == "raypipe.jobs.index.inputs"]
    assert len(said) == 2
    for message, tokens in zip(
        said, (("'published_at'", "1 ", "24", "'n/a'"), ("'views'", "4 ", "24", "'many'")), strict=True
    ):
        assert all(token in message for token in tokens)
    assert freshness(found)[1:4] == [pytest.approx(A_WEEK_OLD), 0, pytest.approx(A_WEEK_OLD**3)]
    version = Versions(Folder(str(tmp_path / "index"))).require_current()
    kinds = pq.read_schema(tmp_path / "index" / "versions" / version / "items.parquet")
    assert [str(kinds.field(name).type) for name in ("published_at", "views", "year")] == [
        *("timestamp[us, tz=UTC]", "string", "int64"),
    ]
