"""The embed job as ``raypipe.jobs.embed.job`` runs it, but in this process, without Ray, and with a tiny model.

The videos come from ``support.embed_outputs``: their bytes say what their outcome is.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any, BinaryIO

import pyarrow as pa
from rich.console import Console

from raypipe import schema
from raypipe.config import EmbedConfig
from raypipe.dataset.plan import StoredPlans
from raypipe.dataset.planner import Retry
from raypipe.dataset.read import read_rows
from raypipe.errors import RaypipeError
from raypipe.jobs.embed import shard as work
from raypipe.jobs.embed.inputs import Planning, plan_listing
from raypipe.jobs.embed.verify import verify
from raypipe.runs.executor import Executor, Needs, Placement
from raypipe.runs.job import Job
from raypipe.runs.job import run_job as run_the_job
from raypipe.runs.stages import Stage
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder
from raypipe.video.sandbox.parent import DecodedVideo
from support.embed_outputs import CROP, DIM, PACK, SETTINGS, FakeSandbox, embed
from support.executors import InlineExecutor

_MAX_RUNS = 4
_MAX_SIZE_BYTES = 2**20
Vectors = tuple[tuple[float, ...], ...]


class PartialSandbox(FakeSandbox):
    """A fake sandbox that can also read a video in parts, its end first."""

    def decode(self, file: BinaryIO, *, part: Any = None) -> DecodedVideo:  # noqa: ANN401 - a protocol of the sandbox's
        """Return the outcome that the bytes name."""
        if part is not None:
            size_bytes = file.seek(0, 2)
            part.bring([(size_bytes // 2, size_bytes)])
            part.bring([(0, size_bytes // 2)])
            file.seek(0)
        return super().decode(file)


class Decode:
    """A stage: plan rows to decoded rows."""

    def __init__(self, _: None) -> None:
        self._sandbox: Any = PartialSandbox()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decode one shard."""
        decoded = work.decode_shard(rows, self._sandbox, max_size_bytes=_MAX_SIZE_BYTES)
        return work.embed_shard(decoded, embed, embedding_dim=DIM, crop_size=CROP)


class TinyJob(Job):
    """The embed job with a tiny model."""

    name = "embed"
    config = EmbedConfig(input="unused", output="unused")
    summarize = staticmethod(work.summarize)
    settings = SETTINGS
    rows = schema.embeddings_schema(DIM, row_format=SETTINGS["format"])

    def __init__(self, source: Folder, output: Folder, *, retry: Retry) -> None:
        self.output, self.input_uri, self.retry = output, source.uri, retry

    def needs(self) -> Needs:
        """Ask for one processor."""
        return Needs()

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        """Plan like the embed job."""
        assert num_slots == 1
        planning = Planning.load(plans, SETTINGS, self.input_uri, retry=self.retry)
        plan_listing(planning, max_gone_fraction=0.2, pack=PACK)
        planning.check_found()

    def stages(self, executor: Executor, placement: Placement) -> list[Stage]:
        """Return one stage with one actor."""
        assert executor
        return [placement.stage((Decode, None))]


def run_job(source: Folder, output: Folder, *, retry: Retry = "none") -> None:
    """Run the job's command once.

    Raises:
        RaypipeError: The command fails.
    """
    job = TinyJob(source, output, retry=retry)
    run_the_job(job, executor=InlineExecutor(), console=Console(file=StringIO()))


def run_again_until_done(
    source: Folder, output: Folder, *, retry: Retry = "none", fix_cause: Callable[[], None] = lambda: None
) -> list[str]:
    """Repeat the command until it succeeds, as a scheduler would, and return the errors of the failed attempts.

    After each failed attempt, ``fix_cause`` fixes the outside cause: it renews credentials, or a storage is up again.

    Raises:
        AssertionError: The command never succeeds without a person.
    """
    endings: list[str] = []
    while len(endings) < _MAX_RUNS:
        try:
            run_job(source, output, retry=retry)
        except RaypipeError as error:
            endings.append(f"{type(error).__name__}: {error}")
            fix_cause()
        else:
            return endings
    raise AssertionError(endings)


def vectors_of(output: Folder) -> dict[str, tuple[str, Vectors | None]]:
    """Return each video's status, and its vectors if it has some.

    Raises:
        AssertionError: A promise is broken.
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
