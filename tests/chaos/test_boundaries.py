"""Whatever S3 answers at any call: repeating the command succeeds, and every video has its row and its vectors."""

import random
import secrets
from collections.abc import Iterator

import numpy as np
import pytest

from chaos import job
from chaos.boundaries import SPANS, Scene, Tally, at_random, from_call, impatient, prepared_scene
from chaos.fault_proxy import FAULTS, FaultProxy
from raypipe.demo.s3_server import S3Server
from raypipe.errors import RaypipeError
from raypipe.jobs.embed import fetch, inputs
from support.embed_outputs import embed

Prepared = tuple[Scene, FaultProxy]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(s3: S3Server) -> Iterator[Prepared]:
    with impatient(), prepared_scene(s3, secrets.token_hex(8)) as scene:
        yield scene


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_call(prepared: Prepared, fault: str) -> None:
    scene, proxy = prepared
    tally = Tally()
    index, span = random.randrange(scene.num_calls), 1 if fault == "slow" else random.choice((1, 3))
    scene.strike(proxy, from_call(fault, index, span), what=f"{fault} at {index} for {span}", tally=tally)
    assert tally.problems == []
    assert tally.num_faults >= 1


@pytest.mark.parametrize("fault", ["internal_error", "denied", "expired", "skewed", "truncated"])
def test_a_fault_that_lasts(prepared: Prepared, fault: str) -> None:
    scene, proxy = prepared
    tally = Tally()
    index = random.randrange(scene.num_calls)
    scene.strike(proxy, from_call(fault, index, SPANS[-1]), what=f"{fault} from {index} on", tally=tally)
    assert tally.problems == []


def test_the_reported_error_is_the_cause(prepared: Prepared) -> None:
    scene, proxy = prepared
    proxy.tell(lambda call: "expired" if call.index >= scene.num_calls // 2 else "")
    with pytest.raises(RaypipeError) as caught:
        job.run_job(scene.source, scene.new_output())
    assert "ExpiredToken" in str(caught.value)
    proxy.calm()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_s3_throttling_fails_no_video(prepared: Prepared, fraction: float) -> None:
    scene, proxy = prepared
    tally = Tally()
    scene.strike(proxy, at_random("slow_down", fraction, random.randrange(2**32)), what="slow_down", tally=tally)
    assert tally.problems == []
    assert tally.statuses.keys() == {"ok"}


@pytest.mark.parametrize("fault", ["truncated", "changed", "deleted", "denied"])
def test_a_fault_at_a_video_that_is_read_in_parts(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    scene, proxy = prepared
    monkeypatch.setattr(fetch, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(fetch, "_HEAD_BYTES", 2)
    gets: list[int] = []

    def choose(call: object) -> str:
        is_part = getattr(call, "operation", "") == "get" and "/in/" in getattr(call, "key", "")
        gets.extend([1] * is_part)
        return fault if is_part and len(gets) == 2 else ""

    tally = Tally()
    scene.strike(proxy, choose, what=fault, tally=tally)
    assert tally.problems == []
    assert tally.num_faults == 1
    assert len(gets) > 2 * len(scene.expected)


def test_lost_rows_and_changed_vectors_are_found(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, proxy = prepared
    tally = Tally()
    find_videos = inputs.find_videos
    monkeypatch.setattr(inputs, "find_videos", lambda *args, **kwargs: list(find_videos(*args, **kwargs))[1:])
    scene.strike(proxy, lambda _: "", what="lost", tally=tally)
    monkeypatch.setattr(inputs, "find_videos", find_videos)
    monkeypatch.setattr(job, "embed", lambda frames: embed(frames) + np.float32(1))
    scene.strike(proxy, lambda _: "", what="other", tally=tally)
    assert ["is lost" in tally.problems[0], "has other vectors" in tally.problems[1]] == [True, True]
