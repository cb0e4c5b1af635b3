"""The embed job as ``raypipe.jobs.embed.job`` runs it, but in this process, without Ray, and with a tiny model.

Its videos are those of ``support.embed_outputs``: bytes that say what becomes of them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from typing import Any, BinaryIO

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.dataset.planner import Retry
from raypipe.dataset.read import read_rows
from raypipe.errors import ConfigError, RaypipeError
from raypipe.jobs.embed import shard as work
from raypipe.jobs.embed.planning import Planning, plan_listing
from raypipe.jobs.embed.stages import PutSettings, PutShard
from raypipe.jobs.embed.verify import verify
from raypipe.records import ShardSummary
from raypipe.runs.job import finish, start_record
from raypipe.runs.stages import SUMMARY, RunSteps, SkipCommitted
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder
from raypipe.video.sandbox import DecodedVideo
from support.embed_outputs import CROP, DIM, MARK, PACK, SETTINGS, FakeSandbox, embed

_MAX_RUNS = 4
_MAX_SIZE_BYTES = 2**20
Vectors = tuple[tuple[float, ...], ...]


class PartialSandbox(FakeSandbox):
    """Also reads a video that comes in parts, the end of it first."""

    def decode(self, file: BinaryIO, *, part: Any = None) -> DecodedVideo:  # noqa: ANN401 - a protocol of the sandbox's
        """Give what the bytes say."""
        if part is not None:
            size_bytes = file.seek(0, 2)
            part.bring([(size_bytes // 2, size_bytes)])
            part.bring([(0, size_bytes // 2)])
            file.seek(0)
        return super().decode(file)


class Decode:
    """A step: plan rows to decoded rows."""

    def __init__(self, _: None) -> None:
        self._sandbox: Any = PartialSandbox()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One shard."""
        decoded = work.decode_shard(rows, self._sandbox, max_size_bytes=_MAX_SIZE_BYTES)
        return work.embed_shard(decoded, embed, embedding_dim=DIM, crop_size=CROP)


def run_job(source: Folder, output: Folder, *, retry: Retry = "none") -> None:
    """One run of the job's command.

    Raises:
        RaypipeError: what ends the command.
    """
    output.check_writable()
    planning = Planning.load(output, SETTINGS, source.uri, retry=retry)
    plan_listing(planning, max_gone_fraction=0.2, pack=PACK)
    if not planning.planner.known:
        raise ConfigError(source.uri)
    record = start_record(
        output,
        job="embed",
        input_uri=source.uri,
        fingerprint=MARK,
        settings={},
        packages=(),
        machine={},
        num_slots=1,
    )
    if record.plans:
        put = PutSettings(output.uri, MARK, DIM, row_format=SETTINGS["format"])
        steps = RunSteps([(SkipCommitted, output.uri), (Decode, None), (PutShard, put)])
        finish(output, record, lambda blocks: _run(steps, blocks), patience=8, console=Console(file=StringIO()))


def _run(steps: RunSteps, blocks: Sequence[pa.Table]) -> Iterator[ShardSummary]:
    for block in blocks:
        done = steps(block)
        assert isinstance(done, dict)
        yield done[SUMMARY][0]


def run_again_until_done(
    source: Folder, output: Folder, *, retry: Retry = "none", mend: Callable[[], None] = lambda: None
) -> list[str]:
    """Give the same command until it ends well, as a scheduler would; what the others ended with.

    After one that did not, ``mend`` ends what was wrong outside: credentials are renewed, a storage is up again.

    Raises:
        AssertionError: it never does: it needs a person.
    """
    endings: list[str] = []
    while len(endings) < _MAX_RUNS:
        try:
            run_job(source, output, retry=retry)
        except RaypipeError as error:
            endings.append(f"{type(error).__name__}: {error}")
            mend()
        else:
            return endings
    raise AssertionError(endings)


def vectors_of(output: Folder) -> dict[str, tuple[str, Vectors | None]]:
    """Each video's status, and its vectors where it has some.

    Raises:
        AssertionError: a promise is broken.
    """
    assert verify(output).violations == []
    rows = [row for table in read_rows(output) for row in table.to_pylist()]
    doubled = [name for name, times in Counter(row[schema.VIDEO_ID] for row in rows).items() if times > 1]
    assert not doubled
    return {row[schema.VIDEO_ID]: (row[schema.STATUS], _vectors(row)) for row in rows}


def _vectors(row: Mapping[str, Any]) -> Vectors | None:
    if row[schema.STATUS] not in HAS_FRAMES:
        return None
    return (tuple(row[schema.EMBEDDING]), *(tuple(vector) for vector in row[schema.FRAME_EMBEDDINGS]))
