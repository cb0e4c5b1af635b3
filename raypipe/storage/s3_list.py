"""List a folder of S3: several requests at once, a bounded number of pages in memory, every key once."""

from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from raypipe.storage.base import StoredObject
from raypipe.storage.s3_client import FAILURES, call, client, split, start, storage_error

PAGE_KEYS = 1000
CONCURRENCY = 16
LARGE_SUBFOLDERS = 8  # a page of keys from at most so many: each is worth a listing of its own
_Request = Callable[[], Coroutine[Any, Any, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Page:
    """One request of a listing: all keys that begin with ``prefix``, or only up to the next ``delimiter``."""

    prefix: str
    delimiter: str = ""
    token: str = ""

    def request(self, bucket: str) -> dict[str, Any]:
        more = {"ContinuationToken": self.token} if self.token else {}
        delimiter = {"Delimiter": self.delimiter} if self.delimiter else {}
        return {"Bucket": bucket, "Prefix": self.prefix, "MaxKeys": PAGE_KEYS, **delimiter, **more}


def list_objects(root: str, prefix: str) -> Iterator[StoredObject]:
    """Yield page by page, several requests at once; folder markers (keys that end in a slash) are left out."""
    bucket, base = split(root)
    base = f"{base}/" if base else ""
    s3 = client()
    todo = [_Page(base + prefix)]
    asked: dict[Future[dict[str, Any]], tuple[_Page, _Request]] = {}
    try:
        while todo or asked:
            while todo and len(asked) < CONCURRENCY:
                page = todo.pop()
                request: _Request = partial(s3.list_objects_v2, **page.request(bucket))
                asked[start(request())] = page, request
            for future in wait_for(asked, return_when=FIRST_COMPLETED).done:
                page, again = asked.pop(future)
                reply = _reply(future, again, root)
                if _is_worth_splitting(page, reply):
                    todo.append(replace(page, delimiter="/"))
                    continue
                todo.extend(_next_pages(page, reply))
                yield from _objects(reply, bucket, base)
    finally:
        for future in asked:
            future.cancel()


def _reply(future: Future[dict[str, Any]], request: _Request, root: str) -> dict[str, Any]:
    try:
        try:
            return future.result()
        except FAILURES:
            return call(request)
    except FAILURES as error:
        raise storage_error(error, root, "list", permission="s3:ListBucket") from error


def _is_worth_splitting(page: _Page, reply: dict[str, Any]) -> bool:
    """Tell a few large subfolders, to be listed side by side, from many small ones: those take a request each."""
    if page.delimiter or page.token or not reply["IsTruncated"]:
        return False
    rests = (item["Key"][len(page.prefix) :].partition("/") for item in reply["Contents"])
    return 0 < len({name for name, slash, _ in rests if slash}) <= LARGE_SUBFOLDERS


def _next_pages(page: _Page, reply: dict[str, Any]) -> list[_Page]:
    """Return what is left to ask, the subfolders last: they are asked first, so that few are waiting at a time."""
    following = [replace(page, token=reply["NextContinuationToken"])] if reply["IsTruncated"] else []
    return following + [_Page(item["Prefix"]) for item in reversed(reply.get("CommonPrefixes", []))]


def _objects(reply: dict[str, Any], bucket: str, base: str) -> Iterator[StoredObject]:
    for item in reply.get("Contents", []):
        key = item["Key"]
        if not key.endswith("/"):
            yield StoredObject(f"s3://{bucket}/{key}", key[len(base) :], item["Size"], item["ETag"].strip('"'))
