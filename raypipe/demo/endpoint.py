"""The demo's last two steps: an index of the clips, and the endpoint that recommends them."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raypipe.client import Client
from raypipe.demo.clips import Clip
from raypipe.errors import JobError, RaypipeError
from raypipe.free_ports import free_ports

_PORT = 8000
_READY_SECONDS = 120.0
_END_SECONDS = 60.0
_NUM_SHOWN = 3


def write_catalogue(folder: Path, clips: Sequence[Clip]) -> Path:
    """Write ``catalogue.csv``: what a platform would know of its videos, made up from the clips' own numbers."""
    path = folder / "catalogue.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "title", "category", "published_at", "popularity"))
        for number, clip in enumerate(clips):
            words = clip.label.replace("_", " ").capitalize()
            title = f"{words}, take {clip.path.stem.rpartition('-')[2]}"
            published = date(2026, 1, 1) + timedelta(days=number * 7 % 300)
            video_id = clip.path.relative_to(folder / "clips").as_posix()
            writer.writerow((video_id, title, clip.label, published.isoformat(), number * 37 % 100))
    return path


def show_endpoint(console: Console, *, index: str, model: str, weights: str, log: Path, keep: bool) -> None:
    """Start ``raypipe serve``, ask it for recommendations, and end it; with ``keep``, when Ctrl-C says so.

    Raises:
        JobError: it does not start.
    """
    port = _free_port()
    command = [sys.executable, "-m", "raypipe", "serve", "--index", index, "--model", model]
    command += ["--set", f"port={port}", "--set", f"embedder.weights={weights}"]
    with _running(command, log) as server:
        client = Client(f"http://127.0.0.1:{port}")
        _await_ready(client, server, log)
        _recommend(console, client)
        if keep:
            console.print(f"The page: [bold]http://127.0.0.1:{port}/[/] (Ctrl-C ends it)")
            server.wait()
        else:
            console.print(f"The page was at http://127.0.0.1:{port}/: [bold]raypipe demo --keep[/] leaves it there.")


def _recommend(console: Console, client: Client) -> None:
    """Print what is recommended to somebody who has watched two clips."""
    watched = {video["video_id"]: _title(video) for video in client.videos(limit=2)["videos"]}
    answer = client.recommend(list(watched), top_k=_NUM_SHOWN, diversity=0.3)
    table = Table("recommended", "score", "because of", "similarity")
    for result in answer["results"]:
        why = result["why"]
        closest = watched.get(why["closest"], "")
        table.add_row(_title(result["video"]), f"{result['score']:.2f}", closest, f"{why['similarity']:.2f}")
    console.print(f"To somebody who watched {' and '.join(repr(title) for title in watched.values())}:")
    console.print(table)


def _title(video: Mapping[str, Any]) -> str:
    return str(video["fields"]["title"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            return free_ports(1)[0]
    return _PORT


@contextmanager
def _running(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo, which ends the server in its turn.
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ, start_new_session=True)  # noqa: S603 - its arguments are ours
        try:
            yield server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await_ready(client: Client, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            client.index()
        except RaypipeError:
            time.sleep(0.2)
        else:
            return
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    msg = f"The endpoint did not start: {lines[-1]} All it said is in {log}."
    raise JobError(msg)
