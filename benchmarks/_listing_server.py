"""A stand-in for S3 that answers ListObjectsV2 for made-up keys, and takes as long for a page as S3 does."""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

_OBJECT = (
    "<Contents><Key>{}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{:032x}&quot;</ETag>"
    "<Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_REPLY = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>videos</Name><KeyCount>{}</KeyCount><MaxKeys>{}</MaxKeys><IsTruncated>{}</IsTruncated>{}</ListBucketResult>"
)


async def serve(keys: Sequence[str], *, page_seconds: float) -> None:
    """Listen on a free port of the loopback, print its number, and answer until it is killed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            query = {name: values[0] for name, values in parse_qs(urlsplit(line.split()[1].decode()).query).items()}
            body = page(keys, query).encode()
            await asyncio.sleep(page_seconds)
            lines = ("HTTP/1.1 200 OK", "Server: AmazonS3", f"Content-Length: {len(body)}", "", "")
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def page(keys: Sequence[str], query: dict[str, str]) -> str:
    """One reply; the continuation token is the last key or common prefix of the page before."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    max_keys = int(query.get("max-keys", "1000"))
    at = bisect_left(keys, prefix)
    if after := query.get("continuation-token", "") or query.get("start-after", ""):
        is_folder = bool(delimiter) and after.endswith(delimiter)
        at = max(at, bisect_right(keys, after + "\U0010ffff" if is_folder else after))
    parts: list[str] = []
    last = ""
    while len(parts) < max_keys and at < len(keys) and keys[at].startswith(prefix):
        folder, found, _ = keys[at][len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            last = prefix + folder + delimiter
            parts.append(f"<CommonPrefixes><Prefix>{quote(last)}</Prefix></CommonPrefixes>")
            at = bisect_left(keys, last + "\U0010ffff")
        else:
            last = keys[at]
            parts.append(_OBJECT.format(escape(quote(last)), at, 1_000_000 + at))
            at += 1
    more = at < len(keys) and keys[at].startswith(prefix)
    token = f"<NextContinuationToken>{quote(last)}</NextContinuationToken>" if more else ""
    encoding = "<EncodingType>url</EncodingType>" if "encoding-type" in query else ""
    return _REPLY.format(len(parts), max_keys, str(more).lower(), encoding + token + "".join(parts))
