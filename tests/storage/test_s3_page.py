"""The reading of a listing's XML: as botocore reads it, object for object."""

from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.storage.s3_page import OBJECTS, _take_objects
from support.properties import examples

_SPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_MODEL = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from("+%& <>/é"), min_size=1)


def reply(body: str, status: int = 200) -> dict[str, Any]:
    return {"body": body.encode(), "status_code": status, "headers": {}}


def read(body: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What botocore makes of a page, before and after the objects are taken out of it."""
    whole: dict[str, Any] = create_parser("rest-xml").parse(reply(body), _MODEL)
    taken: dict[str, Any] = {}
    rest = reply(body)
    _take_objects(rest, taken)
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
    assert found.pop(OBJECTS) == [(key, size, f'"{size:x}"') for key, size in keys]
    listed = whole.pop("Contents", [])
    assert [(item["Size"], item["ETag"]) for item in listed] == [(size, f'"{size:x}"') for _, size in keys]
    assert found == whole


def test_a_key_that_the_storage_did_not_encode_is_left_as_it_is() -> None:
    key = "a+b%20c&d.mp4"
    contents = f"<Contents><Key>{escape(key)}</Key><Size>7</Size><ETag>e</ETag></Contents>"
    _, found = read(f"<ListBucketResult>{contents}<IsTruncated>false</IsTruncated></ListBucketResult>")
    assert found[OBJECTS] == [(key, 7, "e")]


@pytest.mark.parametrize("body", ["<Error><Code>SlowDown</Code></Error>", "", "<ListBucketResult><Contents>"])
def test_what_is_no_listing_is_left_to_botocore(body: str) -> None:
    left, taken = reply(body, 503), dict[str, Any]()
    _take_objects(left, taken)
    assert (left, taken) == (reply(body, 503), {})
