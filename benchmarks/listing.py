"""Measure the time and memory to list and plan a million videos.

    python benchmarks/listing.py [--videos 1000000] [--page-ms 100] [--quick]

A server on this machine answers ListObjectsV2 for made-up keys, with the latency of S3 for each page of 1000. The job's
real listing, planning and packing run against it in a separate process, and plans go to a local folder. On the second
run every video is already planned. Peak memory is the ``VmHWM`` of the planning process.
"""

import asyncio
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

from raypipe.dataset.plan import StoredPlans
from raypipe.jobs.embed.inputs import Planning, pack, plan_listing
from raypipe.storage import Folder
from support import describe_machine, make_parser, print_table, scratch_folder
from support.processes import Seconds, Stopwatch, in_process, peak_bytes

KEYS = {
    "flat, numbered": lambda number: f"catalogue/a-video-of-some-length-of-name-{number:09d}.mp4",
    "flat, random": lambda number: f"catalogue/{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}.mp4",
    "1000 folders": lambda number: f"catalogue/folder-{number % 1000:04d}/a-video-of-some-name-{number:09d}.mp4",
    "10 videos a folder": lambda number: f"catalogue/{number // 10:09d}/a-video-of-some-name-{number % 10}.mp4",
}
_OBJECT = (
    "<Contents><Key>{}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{:032x}&quot;</ETag>"
    "<Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>videos</Name><KeyCount>{}</KeyCount><MaxKeys>{}</MaxKeys><IsTruncated>{}</IsTruncated>{}</ListBucketResult>"
)


async def answer(keys: Sequence[str], *, page_seconds: float, port: Connection) -> None:
    """Listen on a free port, send its number, and answer until killed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            query = {name: values[0] for name, values in parse_qs(urlsplit(line.split()[1].decode()).query).items()}
            body = page(keys, query).encode()
            await asyncio.sleep(page_seconds)
            head = ("HTTP/1.1 200 OK", "Server: AmazonS3", f"Content-Length: {len(body)}", "", "")
            writer.write("\r\n".join(head).encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def page(keys: Sequence[str], query: dict[str, str]) -> str:
    """Return one page; the continuation token is the last key or common prefix of the previous page."""
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
    is_truncated = at < len(keys) and keys[at].startswith(prefix)
    token = f"<NextContinuationToken>{quote(last)}</NextContinuationToken>" if is_truncated else ""
    encoding = "<EncodingType>url</EncodingType>" if "encoding-type" in query else ""
    return _PAGE.format(len(parts), max_keys, str(is_truncated).lower(), encoding + token + "".join(parts))


def serve(shape: str, num_videos: int, page_seconds: float, port: Connection) -> None:
    keys = sorted(map(KEYS[shape], range(num_videos)))
    asyncio.run(answer(keys, page_seconds=page_seconds, port=port))


def plan(input_uri: str, output_uri: str) -> tuple[int, Seconds, int]:
    """List, and plan new videos; return the number of known videos, the time and the peak memory in bytes."""
    watch = Stopwatch()
    planning = Planning.load(StoredPlans(Folder(output_uri)), {"format": 1}, input_uri)
    packing = partial(pack, max_videos=64, max_frames=8192, frames_per_video=16, slots=8)
    plan_listing(planning, max_gone_fraction=0.2, pack=packing)
    return len(planning.planner.known), watch.read(), peak_bytes()


def measure(shape: str, num_videos: int, page_seconds: float) -> Iterator[tuple[str, ...]]:
    """Yield the rows of one shape of keys: first all videos are new, then all are known."""
    receiver, sender = Pipe(duplex=False)
    server = get_context("spawn").Process(target=serve, args=(shape, num_videos, page_seconds, sender), daemon=True)
    server.start()
    account = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(account, AWS_ENDPOINT_URL=f"http://127.0.0.1:{receiver.recv()}")
    with scratch_folder() as scratch:
        for state in ("all new", "all known"):
            known, spent, peak = in_process(plan, "s3://videos/catalogue", str(scratch))
            if known != num_videos:
                sys.exit(f"{known} videos are known of {num_videos}.")
            yield shape, state, f"{spent.wall:.1f}", f"{spent.cpu:.1f}", f"{peak / 1e9:.2f}"
    server.kill()


def main() -> None:
    parser = make_parser(__doc__, quick="20,000 videos")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--page-ms", type=float, default=100.0)
    options = parser.parse_args()
    num_videos = 20_000 if options.quick else options.videos
    rows = [row for shape in KEYS for row in measure(shape, num_videos, options.page_ms / 1000)]
    print(f"{describe_machine()}; {num_videos} videos, {options.page_ms:g} ms a page of 1000")
    print_table(("keys", "videos", "s", "CPU s", "peak GB"), rows)


if __name__ == "__main__":
    main()
