"""Listing: compare a page's XML with botocore's parser, and a divided listing with a bucket in memory."""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.storage import Folder, s3_list
from raypipe.storage.s3_list import boundary
from support.properties import examples

NAMES = st.text(st.sampled_from("019abz-./~é\U0001f600"), min_size=1, max_size=6)
HEX = st.integers(0, 2**32 - 1).map(lambda number: f"v/{number:08x}.mp4")
NUMBERED = st.integers(0, 3000).map(lambda number: f"a-video/{number:06d}.mp4")

_SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_MODEL = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("+%& <>/é"), min_size=1)


class Bucket:
    """A bucket with these keys that answers like S3, as the client would parse it."""

    def __init__(self, keys: Sequence[str], *, server: str = "AmazonS3", knows_start_after: bool = True) -> None:
        self.meta = self.events = self
        self.keys = sorted(keys, key=str.encode)
        self.headers = {"server": server}
        self.knows_start_after = knows_start_after
        self.num_requests = self.at_once = self.most_at_once = 0

    def register(self, *_: object, **__: object) -> None:
        """Do nothing: no XML is parsed here."""

    async def list_objects_v2(self, **asked: Any) -> dict[str, Any]:  # noqa: ANN401 - keywords of the client
        """Return one page."""
        self.num_requests += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        assert "Delimiter" not in asked
        keys = [key for key in self.keys if key.startswith(asked["Prefix"])]
        after = asked.get("ContinuationToken", asked.get("StartAfter", "") if self.knows_start_after else "")
        at = bisect_right(keys, after)
        page = keys[at : at + asked["MaxKeys"]]
        return {
            "IsTruncated": at + len(page) < len(keys),
            "NextContinuationToken": page[-1] if page else "",
            s3_list.OBJECTS: [(key, len(key), '"e"') for key in page],
            "ResponseMetadata": {"HTTPHeaders": self.headers},
        }


@contextmanager
def listed_in_pages_of(count: int, bucket: Bucket) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_list, "client", lambda: bucket)
        patch.setattr(s3_list, "PAGE_KEYS", count)
        yield


@settings(max_examples=examples(80))
@given(
    keys=st.one_of(*(st.sets(kind, max_size=60) for kind in (NAMES, HEX, NUMBERED, NAMES | HEX))),
    page=st.integers(1, 7),
    knows_start_after=st.booleans(),
)
def test_each_key_is_listed_once(keys: set[str], page: int, knows_start_after: bool) -> None:  # noqa: FBT001
    bucket = Bucket(list(keys), knows_start_after=knows_start_after)
    with listed_in_pages_of(page, bucket):
        found = Counter(stored.key for stored in Folder("s3://b").list())
    assert found == Counter(key for key in keys if not key.endswith("/"))


@pytest.mark.parametrize("form", ["v/{:06d}.mp4", "v/{:06x}.mp4", "v/{:03d}/{:06d}.mp4", "v/a-name-{1:05d}/b.mp4"])
def test_a_long_listing_is_requested_in_parallel(form: str) -> None:
    bucket = Bucket([form.format(number * 7 % 1000, number) for number in range(5000)])
    with listed_in_pages_of(20, bucket):
        found = sorted(stored.key for stored in Folder("s3://b/v").list())
    assert [f"v/{key}" for key in found] == bucket.keys
    assert bucket.most_at_once == s3_list.CONCURRENCY
    assert bucket.num_requests <= 1.5 * 5000 / 20


@pytest.mark.parametrize(
    ("name", "server"), [("b", "SeaweedFS"), ("b--use1-az4--x-s3", "AmazonS3"), ("b--use1-az4--xa-s3", "AmazonS3")]
)
def test_keys_in_another_order_are_listed_one_page_after_another(name: str, server: str) -> None:
    bucket = Bucket([f"{number:04d}" for number in range(200)], server=server)
    with listed_in_pages_of(20, bucket):
        assert sum(1 for _ in Folder(f"s3://{name}").list()) == 200
    assert (bucket.most_at_once, bucket.num_requests) == (1, 10)


@settings(max_examples=examples(300))
@given(keys=st.lists(NAMES | HEX | NUMBERED, min_size=3, max_size=3, unique=True).map(sorted), is_open=st.booleans())
def test_a_boundary_is_between_the_last_key_seen_and_the_end(keys: list[str], is_open: bool) -> None:  # noqa: FBT001
    first, last, until = keys[0], keys[1], "" if is_open else keys[2]
    found = boundary(first=first, last=last, until=until, prefix="")
    assert not found or (last < found and (is_open or found < until))


def test_a_boundary_is_first_after_the_common_prefix_and_then_inside_it() -> None:
    first, last = "v/name-000000.mp4", "v/name-000999.mp4"
    assert boundary(first=first, last=last, until="", prefix="v/") == "v/name-001"
    assert boundary(first=first, last="v/name-001999.mp4", until="", prefix="v/") == "v/name-01"
    assert boundary(first=first, last=last, until="v/name-01", prefix="v/") == "v/name-005"
    assert boundary(first="v/0", last="v/9", until="", prefix="v/") == ""


def xml_reply(body: str, status: int = 200) -> dict[str, Any]:
    return {"body": body.encode(), "status_code": status, "headers": {}}


def read(body: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return botocore's result for a page, and ours, where the objects are parsed separately."""
    whole: dict[str, Any] = create_parser("rest-xml").parse(xml_reply(body), _MODEL)
    taken: dict[str, Any] = {}
    rest = xml_reply(body)
    s3_list._take_objects(rest, taken)
    return whole, {**create_parser("rest-xml").parse(rest, _MODEL), **taken}


@settings(max_examples=examples(60))
@given(keys=st.lists(st.tuples(KEYS, st.integers(0, 2**45)), max_size=5), space=st.sampled_from(["", _SPACE]))
def test_a_page_is_read_as_botocore_reads_it(keys: list[tuple[str, int]], space: str) -> None:
    contents = "".join(
        f"<Contents><Key>{quote_plus(key, safe='/')}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
        f"<ETag>&quot;{size:x}&quot;</ETag><Size>{size}</Size><Owner><ID>1</ID></Owner></Contents>"
        for key, size in keys
    )
    head = "<IsTruncated>true</IsTruncated><NextContinuationToken>a+b</NextContinuationToken>"
    tail = "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes><EncodingType>url</EncodingType>"
    whole, found = read(f"<ListBucketResult{space}>{head}{contents}{tail}</ListBucketResult>")
    assert found.pop(s3_list.OBJECTS) == [(key, size, f'"{size:x}"') for key, size in keys]
    listed = whole.pop("Contents", [])
    assert [(item["Size"], item["ETag"]) for item in listed] == [(size, f'"{size:x}"') for _, size in keys]
    assert found == whole


def test_a_key_that_the_storage_did_not_encode_is_left_as_it_is() -> None:
    key = "a+b%20c&d.mp4"
    contents = f"<Contents><Key>{escape(key)}</Key><Size>7</Size><ETag>e</ETag></Contents>"
    _, found = read(f"<ListBucketResult>{contents}<IsTruncated>false</IsTruncated></ListBucketResult>")
    assert found[s3_list.OBJECTS] == [(key, 7, "e")]


@pytest.mark.parametrize("body", ["<Error><Code>SlowDown</Code></Error>", "", "<ListBucketResult><Contents>"])
def test_other_replies_are_left_to_botocore(body: str) -> None:
    left, taken = xml_reply(body, 503), dict[str, Any]()
    s3_list._take_objects(left, taken)
    assert (left, taken) == (xml_reply(body, 503), {})
