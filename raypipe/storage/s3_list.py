"""List a folder of S3: several requests at once, a bounded number of pages in memory, every key once."""

from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from raypipe.storage.base import StoredObject
from raypipe.storage.s3_client import FAILURES, call, client, split, start, storage_error
from raypipe.storage.s3_page import OBJECTS, read_objects_of
from raypipe.storage.s3_ranges import boundary

PAGE_KEYS = 1000
CONCURRENCY = 16
LARGE_SUBFOLDERS = 8  # a page of keys from at most so many: each is worth a listing of its own
# Amazon promises keys in the order of their bytes, but for its directory buckets; others list folder by folder.
_IN_ORDER = "AmazonS3"
_NOT_IN_ORDER = ("--x-s3", "--xa-s3")  # directory buckets, and access points of them
_Reply = dict[str, Any]
_Request = Callable[[], Coroutine[Any, Any, _Reply]]


@dataclass(frozen=True, slots=True)
class _Page:
    """One request of a listing: the keys that begin with ``prefix``, or only up to the next ``delimiter``.

    Of a listing in parts it is of those behind ``after`` and not behind ``until``; ``first`` is the first of all.
    """

    prefix: str
    delimiter: str = ""
    token: str = ""
    after: str = ""
    until: str = ""
    first: str = ""

    def request(self, bucket: str) -> dict[str, Any]:
        given = {"Delimiter": self.delimiter, "ContinuationToken": self.token, "StartAfter": self.after}
        more = {name: value for name, value in given.items() if value}
        return {"Bucket": bucket, "Prefix": self.prefix, "MaxKeys": PAGE_KEYS, **more}

    def holds(self, key: str) -> bool:
        return key > self.after and (not self.until or key <= self.until)


def list_objects(
    root: str,
    prefix: str,
    *,
    skipped: list[str] | None = None,  # noqa: ARG001 - a bucket hides nothing
) -> Iterator[StoredObject]:
    """Yield page by page, several requests at once; folder markers (keys that end in a slash) are left out.

    Raises:
        StorageError: a page cannot be read, or is incomplete.
    """
    bucket, base = split(root)
    base = f"{base}/" if base else ""
    s3 = client()
    read_objects_of(s3)
    todo = [_Page(base + prefix)]
    asked: dict[Future[_Reply], tuple[_Page, _Request]] = {}
    try:
        while todo or asked:
            while todo and len(asked) < CONCURRENCY:
                page = todo.pop()
                request: _Request = partial(_ask, s3, page.request(bucket))
                asked[start(request())] = page, request
            for future in wait_for(asked, return_when=FIRST_COMPLETED).done:
                page, again = asked.pop(future)
                reply = _reply(future, again, root)
                in_order = _is_in_order(bucket, reply)
                if not in_order and _is_worth_splitting(page, reply):
                    todo.append(replace(page, delimiter="/"))
                    continue
                may_divide = in_order and len(asked) + len(todo) < CONCURRENCY
                todo.extend(_next_pages(page, reply, may_divide=may_divide))
                yield from _objects(page, reply, bucket, base)
    finally:
        for future in asked:
            future.cancel()


async def _ask(s3: Any, asked: dict[str, Any]) -> _Reply:  # noqa: ANN401 - botocore builds the class of a client
    """Request one page, and check that the reply is one: no other reply may look like the end of the listing.

    Raises:
        ClientPayloadError: the reply is cut off, is not a page, or is truncated and has no token for the next page.
    """
    try:
        reply: _Reply = await s3.list_objects_v2(**asked)
    except ResponseParserError as error:
        msg = "The reply to a listing is not XML: it may have been cut off."
        raise aiohttp.ClientPayloadError(msg) from error
    if OBJECTS not in reply or not isinstance(reply.get("IsTruncated"), bool):
        msg = "The reply is not a page of a listing: it does not say whether more pages follow."
        raise aiohttp.ClientPayloadError(msg)
    token = reply.get("NextContinuationToken")
    if reply["IsTruncated"] and (not token or token == asked.get("ContinuationToken")):
        msg = "A page of a listing says that more pages follow, but has no new continuation token."
        raise aiohttp.ClientPayloadError(msg)
    return reply


def _reply(future: Future[_Reply], request: _Request, root: str) -> _Reply:
    try:
        try:
            return future.result()
        except FAILURES:
            return call(request)
    except FAILURES as error:
        raise storage_error(error, root, "list", permission="s3:ListBucket") from error


def _is_in_order(bucket: str, reply: _Reply) -> bool:
    headers = reply["ResponseMetadata"].get("HTTPHeaders", {})
    return headers.get("server") == _IN_ORDER and not bucket.endswith(_NOT_IN_ORDER)


def _is_worth_splitting(page: _Page, reply: _Reply) -> bool:
    """Tell a few large subfolders, to be listed side by side, from many small ones: those take a request each."""
    if page.delimiter or page.token or not reply["IsTruncated"]:
        return False
    rests = (key[len(page.prefix) :].partition("/") for key, _, _ in reply.get(OBJECTS, []))
    return 0 < len({name for name, slash, _ in rests if slash}) <= LARGE_SUBFOLDERS


def _next_pages(page: _Page, reply: _Reply, *, may_divide: bool) -> list[_Page]:
    """Return what is left to ask, the subfolders last: they are asked first, so that few are waiting at a time."""
    objects = reply.get(OBJECTS, [])
    is_over = not reply["IsTruncated"] or bool(objects and page.until and objects[-1][0] > page.until)
    following = [] if is_over else [replace(page, token=reply["NextContinuationToken"])]
    if following and objects and may_divide and page.holds(objects[-1][0]):
        first, last = page.first or objects[0][0], objects[-1][0]
        if middle := boundary(first=first, last=last, until=page.until, prefix=page.prefix):
            rest = replace(page, token="", after=middle, first=first)
            following = [replace(following[0], until=middle, first=first), rest]
    return following + [_Page(item["Prefix"]) for item in reversed(reply.get("CommonPrefixes", []))]


def _objects(page: _Page, reply: _Reply, bucket: str, base: str) -> Iterator[StoredObject]:
    for key, size_bytes, etag in reply.get(OBJECTS, []):
        if not key.endswith("/") and page.holds(key):
            yield StoredObject(f"s3://{bucket}/{key}", key[len(base) :], size_bytes, etag.strip('"'))
