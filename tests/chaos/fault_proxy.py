"""A proxy on loopback before a real S3 server. It fails, call by call, in the ways that S3 and networks fail.

The ``Host`` header, which the client signed, is passed on unchanged. Each connection carries one request.
"""

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

FAULTS = (
    *("slow_down", "internal_error", "reset", "slow", "truncated", "error_in_200", "reply_lost"),
    *("denied", "expired", "skewed", "changed", "deleted"),
)
TAMPERING = frozenset({"changed", "deleted"})  # these faults change the input; the request itself succeeds
_REPLIES = {
    "slow_down": (503, "Slow Down", "SlowDown"),
    "internal_error": (500, "Internal Server Error", "InternalError"),
    "denied": (403, "Forbidden", "AccessDenied"),
    "expired": (400, "Bad Request", "ExpiredToken"),
    "skewed": (403, "Forbidden", "RequestTimeTooSkewed"),
    "error_in_200": (200, "OK", "InternalError"),
    # servers without a feature of S3
    "not_implemented": (501, "Not Implemented", "NotImplemented"),
    "sha256_mismatch": (400, "Bad Request", "XAmzContentSHA256Mismatch"),
}
_SLOW_BYTES_PER_SECOND = 1000
_PIECE_BYTES = 250
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Its number counts from the last ``tell``."""

    index: int
    operation: str  # "list", "head", "get", "put" or "delete"
    key: str  # including the bucket
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)  # by lower-case name


Choose = Callable[[Call], str]  # returns the fault of a call; "" is no fault


class FaultProxy:
    """The proxy's address, the calls it saw, and the faults it injects."""

    def __init__(self, target_url: str, *, tamper: Callable[[str], None] = lambda _: None) -> None:
        target = urlsplit(target_url)
        assert target.hostname
        assert target.port
        self._target = target.hostname, target.port
        self._tamper = tamper
        self._choose: Choose = lambda _: ""
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.num_faults = 0
        self.endpoint_url = ""

    def tell(self, choose: Choose) -> None:
        """Reset the counters, and from now on handle each call as ``choose`` says."""
        with self._lock:
            self.calls, self.num_faults, self._choose = [], 0, choose

    def calm(self) -> None:
        """Stop injecting faults, and keep the counters."""
        with self._lock:
            self._choose = lambda _: ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(_END_OF_HEAD)
            if re.search(rb"\r\nexpect: *100-continue\r\n", head, re.IGNORECASE):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *([0-9]+)\r\n", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            await self._answer(head, body, writer)
        writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        call, fault = self._note(head)
        if fault in TAMPERING:
            await asyncio.to_thread(self._tamper, fault)
        if fault in _REPLIES:
            await _send(writer, _error_reply(*_REPLIES[fault], with_body=call.operation != "head"))
        elif fault == "reset":
            _reset(writer)
        else:
            reply = await self._forward(head, body)
            await _RELAY.get(fault, _send)(writer, reply)

    def _note(self, head: bytes) -> tuple[Call, str]:
        first, *lines = head.decode("latin-1").splitlines()
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path = urlsplit(target)
        is_list = method == "GET" and "list-type=" in path.query
        with self._lock:
            call = Call(len(self.calls), "list" if is_list else method.lower(), unquote(path.path.lstrip("/")), headers)
            self.calls.append(call)
            fault = self._choose(call)
            self.num_faults += bool(fault)
        return call, fault

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        lines = [
            line
            for line in head.removesuffix(_END_OF_HEAD).split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"expect:"))
        ]
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            writer.write(b"\r\n".join([*lines, b"Connection: close"]) + _END_OF_HEAD + body)
            return await reader.read()
        finally:
            writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _send_slowly(writer: asyncio.StreamWriter, data: bytes) -> None:
    head, separator, body = data.partition(_END_OF_HEAD)
    await _send(writer, head + separator)
    for start in range(0, len(body), _PIECE_BYTES):
        await asyncio.sleep(_PIECE_BYTES / _SLOW_BYTES_PER_SECOND)
        await _send(writer, body[start : start + _PIECE_BYTES])


async def _send_half(writer: asyncio.StreamWriter, data: bytes) -> None:
    head, separator, body = data.partition(_END_OF_HEAD)
    await _send(writer, head + separator + body[: len(body) // 2])


async def _lose(writer: asyncio.StreamWriter, _: bytes) -> None:
    _reset(writer)


_RELAY: dict[str, Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]] = {
    "slow": _send_slowly,
    "truncated": _send_half,
    "reply_lost": _lose,
}


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: Any = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _error_reply(status: int, reason: str, code: str, *, with_body: bool) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>the proxy says so</Message></Error>".encode() if with_body else b""
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close" + _END_OF_HEAD + body


@contextmanager
def running_proxy(target_url: str, *, tamper: Callable[[str], None] = lambda _: None) -> Iterator[FaultProxy]:
    """Run a proxy in its own thread until the block ends. ``tamper`` is called for faults that change the input."""
    proxy = FaultProxy(target_url, tamper=tamper)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.endpoint_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_end(server))
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
