"""Random requests: schemathesis generates them from OpenAPI; others are checked against the catalogue.

``RAYPIPE_RANDOM_REQUESTS=10000 RAYPIPE_SCHEMA_EXAMPLES=100`` is the long form.
"""

import datetime as dt
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.endpoints import Endpoint
from support.served_index import CATEGORIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_NUM_REQUESTS = int(os.environ.get("RAYPIPE_RANDOM_REQUESTS", "2000"))
_NUM_EXAMPLES = int(os.environ.get("RAYPIPE_SCHEMA_EXAMPLES", "10"))
_STARTED = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def test_no_request_from_openapi_is_a_server_error(endpoint: Endpoint, tmp_path: Path) -> None:
    command = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"{endpoint.url}/openapi.json", "--seed=1"),
        *(
            f"--max-examples={_NUM_EXAMPLES}",
            "--request-timeout=120",
            "--continue-on-failure",
            "--no-color",
            "--suppress-health-check=all",
        ),
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


class Catalogue:
    """Which videos may be recommended, computed from the catalogue's rows alone."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.rows = {row["video_id"]: row for row in endpoint.source.items.to_pylist()}
        self.ids = list(self.rows)

    def eligible(self, request: dict[str, Any]) -> set[str]:
        """Return the ids that pass the filters and are not excluded."""
        gone = {*request.get("exclude", ())}
        if request.get("exclude_history", True):
            gone |= {*request.get("history", ())}
        filters = request.get("filters", {}).items()
        return {
            video_id
            for video_id, row in self.rows.items()
            if video_id not in gone and all(_fits(row[name], wanted) for name, wanted in filters)
        }

    def request(self, chance: random.Random) -> dict[str, Any]:
        """Return a random valid request."""
        request: dict[str, Any] = {"top_k": chance.choice([1, 5, 20, 200])}
        if chance.random() < 0.8:
            request["history"] = [*chance.sample(self.ids, chance.randint(0, 20)), *chance.choice([[], ["unknown"]])]
        if chance.random() < 0.5:
            request["exclude"] = chance.sample(self.ids, chance.choice([1, 50, 1900]))
        if chance.random() < 0.3:
            request["exclude_history"] = chance.choice([True, False])
        if chance.random() < 0.3:
            request |= {"diversity": chance.random(), "freshness": chance.random(), "popularity": chance.random()}
        request["filters"] = {name: wanted for name, wanted in _filters(chance).items() if chance.random() < 0.4}
        return request


def _filters(chance: random.Random) -> dict[str, Any]:
    low = chance.randint(0, 99)
    moment = _STARTED + dt.timedelta(hours=chance.randint(0, 2000))
    return {
        "category": chance.choice([chance.choice(CATEGORIES), chance.sample(CATEGORIES, 2), "none"]),
        "popularity": {chance.choice(["gt", "gte"]): low, chance.choice(["lt", "lte"]): low + chance.randint(0, 50)},
        "published_at": {chance.choice(["gt", "gte", "lt", "lte"]): moment.isoformat()},
        "duration_seconds": chance.choice([7, 7.0, {"lt": 10.5}, [3.0, 4.0, 5.5]]),
        "rating": {"gte": chance.random() * 200},
        "label": [*chance.sample(CATEGORIES, 3)],
    }


def _fits(value: Any, wanted: Any) -> bool:  # noqa: ANN401 - of any column
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return False
    if isinstance(wanted, dict):
        parse = dt.datetime.fromisoformat if isinstance(value, dt.datetime) else lambda bound: bound
        compare = {"gt": value.__gt__, "gte": value.__ge__, "lt": value.__lt__, "lte": value.__le__}
        return all(compare[name](parse(bound)) is True for name, bound in wanted.items())
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def _problems(request: dict[str, Any], answer: dict[str, Any], catalogue: Catalogue) -> list[str]:
    """Return the promises that the answer breaks."""
    ids = [result["video"]["video_id"] for result in answer["results"]]
    closest = {result["why"]["closest"] for result in answer["results"]}
    history, eligible = request.get("history", []), catalogue.eligible(request)
    known = [one for one in history if one != "unknown"]
    promises = {
        "no video twice": len(set(ids)) == len(ids),
        "only eligible ones": set(ids) <= eligible,
        "top_k where so many are eligible": len(ids) == min(request["top_k"], len(eligible)),
        "fallback where nothing is known": (answer["fallback"] is None) == bool(known),
        "unknown ids are told": answer["unknown"] == history[len(known) :],
        "closest to what was watched": closest <= {None, *known},
    }
    return [promise for promise, held in promises.items() if not held]


def test_random_requests_keep_the_promises(endpoint: Endpoint) -> None:
    catalogue = Catalogue(endpoint)

    def ask(seeds: range) -> list[str]:
        problems = []
        with httpx.Client(base_url=endpoint.url, timeout=120) as client:
            for seed in seeds:
                request = catalogue.request(random.Random(seed))
                response = client.post("/v1/recommend", json=request)
                answered = response.status_code == 200
                broken = _problems(request, response.json(), catalogue) if answered else [response.text]
                problems += [f"seed {seed}: {one}: {str(request)[:500]}" for one in broken]
        return problems

    with ThreadPoolExecutor(4) as threads:
        parts = [range(start, _NUM_REQUESTS, 4) for start in range(4)]
        violations = [problem for problems in threads.map(ask, parts) for problem in problems]
    assert violations == []
