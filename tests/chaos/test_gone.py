"""A listing is either complete or marks nothing: no video is marked as gone because a request failed."""

from collections.abc import Iterator

import pytest

from chaos.boundaries import impatient
from chaos.fault_proxy import Call, FaultProxy
from raypipe.dataset.plan import plan_numbers
from raypipe.errors import StorageError
from raypipe.storage import Folder, s3_list
from support.embed_outputs import content, embed_all, places, plan_new, planned, replace_object, upload

NAMES = [f"{number}.mp4" for number in range(9)]
FAULTS = ("internal_error", "reset", "truncated", "error_in_200", "denied", "expired", "skewed", "reply_lost")


@pytest.fixture
def embedded(
    proxy: FaultProxy,  # noqa: ARG001 - requests go through it
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Folder, Folder]]:
    """Return an input and its output; since embedding, one video was deleted and one is new. A page holds two keys."""
    source, output = places(Folder(bucket))
    upload(source, {name: content(seed=at) for at, name in enumerate(NAMES)})
    embed_all(source, output)
    replace_object(source, NAMES[4], None)
    upload(source, {"new.mp4": content(seed=99)})
    monkeypatch.setattr(s3_list, "PAGE_KEYS", 2)
    with impatient(retry_seconds=0):
        yield source, output


def num_lists(proxy: FaultProxy) -> int:
    return sum(call.operation == "list" for call in proxy.calls)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_listing_that_fails_at_any_page_marks_nothing(
    embedded: tuple[Folder, Folder], proxy: FaultProxy, fault: str
) -> None:
    source, output = embedded
    proxy.tell(lambda _: "")
    assert len(list(source.list())) == len(NAMES)
    assert num_lists(proxy) >= 5
    for first in range(num_lists(proxy)):

        def from_the(call: Call, first: int = first) -> str:
            is_due = call.operation == "list" and num_lists(proxy) > first + 1  # the first listing is of the plans
            return fault if is_due else ""

        proxy.tell(from_the)
        with pytest.raises(StorageError):
            plan_new(source.uri, output)
        assert proxy.num_faults
        proxy.calm()
        assert plan_numbers(output) == [0]
    assert plan_new(source.uri, output) == [1]
    assert {one.video_id: one.is_gone for one in planned(output, [1])} == {NAMES[4]: True, "new.mp4": False}


@pytest.mark.parametrize("fault", ["internal_error", "reset", "truncated", "reply_lost"])
def test_a_page_that_fails_once_is_retried(embedded: tuple[Folder, Folder], proxy: FaultProxy, fault: str) -> None:
    source, output = embedded
    proxy.tell(lambda call: fault if call.operation == "list" and num_lists(proxy) == 4 else "")
    assert plan_new(source.uri, output) == [1]
    assert proxy.num_faults == 1
    assert [one.video_id for one in planned(output, [1]) if one.is_gone] == [NAMES[4]]
