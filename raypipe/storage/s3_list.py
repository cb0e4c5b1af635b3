"""List a folder on S3 with parallel requests and a bounded number of pages in memory. Each key is yielded once."""

from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import aiohttp
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from raypipe.storage.base import StoredObject
from raypipe.storage.s3_client import FAILURES, call, client, split, start, storage_error

PAGE_KEYS = 1000
CONCURRENCY = 16
LARGE_SUBFOLDERS = 8  # if a page of keys comes from at most this many subfolders, each is worth a separate listing
OBJECTS = "RaypipeObjects"  # the reply's entry that holds (key, size in bytes, etag) of each object
# Amazon guarantees keys in byte order, except in directory buckets. Other servers are listed folder by folder.
_IN_ORDER = "AmazonS3"
_NOT_IN_ORDER = ("--x-s3", "--xa-s3")  # directory buckets and their access points
_DIGITS = frozenset("0123456789")
_LAST_BEFORE_SURROGATES = "\ud7ff"
_Reply = dict[str, Any]
_Request = Callable[[], Coroutine[Any, Any, _Reply]]


@dataclass(frozen=True, slots=True)
class _Page:
    """One request of a listing, which returns a page of the keys that begin with ``prefix``.

    If ``delimiter`` is given, keys that contain it after the prefix are left out, and the page names their subfolders
    instead. In a divided listing, the page holds only keys after ``after`` and up to ``until``. ``first`` is then the
    first key of the whole listing.
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


def list_objects(root: str, prefix: str, *, skipped: list[str] | None = None) -> Iterator[StoredObject]:  # noqa: ARG001 - a bucket hides nothing
    """Yield the objects below ``root`` whose key begins with ``prefix``, using parallel requests.

    Folder markers, which are keys that end in a slash, are left out. Nothing is appended to ``skipped``.
    """
    bucket, base = split(root)
    base = f"{base}/" if base else ""
    s3 = client()
    # botocore itself takes four times as long to parse a page, mostly for dates. Registering twice is a no-op.
    s3.meta.events.register("before-parse.s3.ListObjectsV2", _take_objects, unique_id=OBJECTS)
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
                for key, size_bytes, etag in reply[OBJECTS]:
                    if not key.endswith("/") and page.holds(key):
                        yield StoredObject(f"s3://{bucket}/{key}", key[len(base) :], size_bytes, etag.strip('"'))
    finally:
        for future in asked:
            future.cancel()


async def _ask(s3: Any, asked: dict[str, Any]) -> _Reply:  # noqa: ANN401 - botocore builds the class of a client
    """Request one page of a listing.

    Raises:
        aiohttp.ClientPayloadError: the reply is anything else. It must not look like the end of a listing.
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


def _take_objects(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_more: object) -> None:
    """Cut the object entries out of a page's XML and store them under ``OBJECTS``.

    botocore parses the rest of the page: errors, tokens and prefixes.
    """
    try:
        root = ET.fromstring(response_dict["body"])  # noqa: S314 - as botocore does
    except ET.ParseError:
        return
    namespace, _, kind = root.tag.rpartition("}")
    if kind != "ListBucketResult":
        return
    space = f"{namespace}}}" if namespace else ""
    if root.findtext(f"{space}IsTruncated") not in {"true", "false"}:
        return  # botocore would take anything else for the end of the listing
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    contents, key, size, etag = (f"{space}{name}" for name in ("Contents", "Key", "Size", "ETag"))
    objects = []
    for item in root.findall(contents):
        objects.append((decode(item.findtext(key, "")), int(item.findtext(size) or 0), item.findtext(etag, "")))
        root.remove(item)
    customized_response_dict[OBJECTS] = objects
    response_dict["body"] = ET.tostring(root)


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
    """Return whether to list each subfolder separately, in parallel.

    This is faster if all keys of the page are in a few large subfolders. Many small subfolders would take one request
    each.
    """
    if page.delimiter or page.token or not reply["IsTruncated"]:
        return False
    rests = (key[len(page.prefix) :].partition("/") for key, _, _ in reply[OBJECTS])
    return 0 < len({name for name, slash, _ in rests if slash}) <= LARGE_SUBFOLDERS


def _next_pages(page: _Page, reply: _Reply, *, may_divide: bool) -> list[_Page]:
    """Return the pages to request after this one, with subfolders last.

    The caller pops the last page first, so this order keeps the number of waiting pages small. If ``may_divide`` is
    true, the rest of the listing may be divided into two pages that can be requested in parallel.
    """
    objects = reply[OBJECTS]
    is_over = not reply["IsTruncated"] or bool(objects and page.until and objects[-1][0] > page.until)
    following = [] if is_over else [replace(page, token=reply["NextContinuationToken"])]
    if following and objects and may_divide and page.holds(objects[-1][0]):
        first, last = page.first or objects[0][0], objects[-1][0]
        if middle := boundary(first=first, last=last, until=page.until, prefix=page.prefix):
            rest = replace(page, token="", after=middle, first=first)
            following = [replace(following[0], until=middle, first=first), rest]
    return following + [_Page(item["Prefix"]) for item in reversed(reply.get("CommonPrefixes", []))]


def boundary(*, first: str, last: str, until: str, prefix: str) -> str:
    """Guess where to divide the rest of a listing, so that its parts can be requested in parallel.

    Return a string between ``last`` and ``until`` that probably has keys on both sides, or "" if no such string is
    found. ``first`` is the first key of the whole listing, and ``last`` is the last key seen. The remaining keys are
    greater than ``last`` and begin with ``prefix``. Unless ``until`` is "", they are also at most ``until``. A wrong
    guess only costs speed, because each key is on exactly one side of any boundary.
    """
    if not until and (after_all := _after_all(last[: _num_shared(first, last)], prefix)):
        return after_all
    shared = _num_shared(last, until) if until else len(prefix)
    seen = frozenset(first[len(prefix) :] + last[len(prefix) :])
    for at in range(shared, len(last)):
        most = until[at] if at == shared < len(until) else ""
        for alphabet in (_DIGITS if last[at] in _DIGITS else frozenset(), seen):
            signs = sorted(sign for sign in alphabet if sign > last[at] and (not most or sign <= most))
            middle = last[:at] + signs[len(signs) // 2] if signs else ""
            if middle and (not until or middle < until):
                return middle
    return ""


def _num_shared(one: str, other: str) -> int:
    """Return the length of the longest common prefix of two strings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _after_all(common: str, prefix: str) -> str:
    """Return a string that sorts after every key that begins with ``common``, or "" if there is no such string.

    ``common`` is the common prefix of all keys so far. A few requests after that string show whether other keys follow.
    """
    if len(common) <= len(prefix) or not " " <= common[-1] < _LAST_BEFORE_SURROGATES:
        return ""
    return common[:-1] + chr(ord(common[-1]) + 1)
