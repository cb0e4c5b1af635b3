import json
import logging
import re
from contextlib import closing
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from raypipe.endpoint.replica import SERVE_LOGGER, RequestLog, log_folder


def test_a_request_is_a_line_of_json(tmp_path: Path) -> None:
    with closing(RequestLog(tmp_path / "requests.jsonl")) as log:
        for number in range(1000):
            log({"request_id": f'"{number}\n', "status": 200})
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["request_id"] for line in lines] == [f'"{number}\n' for number in range(1000)]
    assert {line["status"] for line in lines} == {200}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"]) for line in lines)


def test_the_first_line_is_written_at_once(tmp_path: Path) -> None:
    with closing(RequestLog(tmp_path / "requests.jsonl")) as log:
        log({"status": 200})
        assert (tmp_path / "requests.jsonl").read_text().count("\n") == 1


def test_a_log_file_is_rotated(tmp_path: Path) -> None:
    with closing(RequestLog(tmp_path / "requests.jsonl", max_bytes=1000)) as log:
        for _ in range(2000):
            log({"status": 200})
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "requests.1.jsonl"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 60_000


def test_a_log_that_cannot_be_written_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "none" / "requests.jsonl"
    log = RequestLog(path)
    log({"status": 200})
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.getMessage()


def test_the_log_is_in_ray_serves_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = logging.FileHandler(tmp_path / "replica.log")
    monkeypatch.setattr(logging.getLogger(SERVE_LOGGER), "handlers", [MemoryHandler(1, target=file)])
    assert log_folder() == tmp_path
    file.close()
