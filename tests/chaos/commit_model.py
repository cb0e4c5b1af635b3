"""An exhaustive model of the commit: several drivers that may crash at every storage call, in every interleaving.

A driver is the real code of ``raypipe.dataset``. A state is what is stored, how far each driver is, and which puts of
dead drivers are still in flight. No state is visited twice. When all drivers are done or dead, one more driver
recovers while the in-flight puts may still arrive.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from chaos.memory_storage import BUCKET, Bucket, Reply, Request
from chaos.stepped_drivers import Drivers, Position
from raypipe import schema
from raypipe.dataset import commit
from raypipe.dataset.plan import PlannedVideo, StoredPlans, gone_flags, plan_numbers, read_plan
from raypipe.dataset.planner import Planner, Unlisted
from raypipe.dataset.read import read_rows
from raypipe.jobs.embed.inputs import pack
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.embed_outputs import MARK, SETTINGS, VERSIONS, made_rows

RECOVERY = "recovery"
_OUTPUT = f"{BUCKET}out"
_DEAD = Position("dead", None)


@dataclass(frozen=True)
class Case:
    """A case to explore: what each driver finds in the input (the recovering driver last), and how many may crash."""

    listings: Mapping[str, tuple[PlannedVideo, ...]]
    max_crashes: int = 2
    videos_per_shard: int = 2
    bucket: Bucket = field(default_factory=Bucket)
    are_rows_alike: bool = True  # False: no two drivers write the same bytes of a shard
    is_doubling_right: bool = False  # True: an input that changes is planned again
    is_marking: bool = False  # True: a video that a driver does not find is marked as gone


@dataclass(frozen=True, slots=True)
class State:
    """Everything that determines what can happen next."""

    bucket: Bucket
    drivers: tuple[Position, ...]
    under_way: frozenset[Request] = frozenset()  # puts of dead drivers: each may arrive at any time, or never
    crashes_left: int = 0
    is_disturbed: bool = False  # a put arrived while the last driver recovered


class Model:
    """Explore the states of a case. ``violations`` is what is wrong in the first bad state, ``trail`` the way to it.

    ``is_reduced`` skips orders that no other driver can distinguish: a call with a fixed reply is answered at once,
    and a driver crashes at the put that the crash prevents.
    """

    def __init__(self, case: Case, *, is_reduced: bool = True) -> None:
        self.case = case
        self.is_reduced = is_reduced
        self.violations: list[str] = []
        self.trail: list[str] = []
        self.ends: dict[tuple[Bucket, bool], list[str]] = {}
        self.drivers = Drivers(self._drive)
        self._rows: dict[tuple[str, str, int], pa.Table] = {}
        self._schedules: dict[State, int] = {}

    @property
    def num_states(self) -> int:
        """Return how many states were visited."""
        return len(self._schedules)

    def explore(self) -> int:
        """Visit every state, and count the schedules: the ways from the start to an end."""
        with self.drivers.in_place():
            drivers = tuple(self.drivers.start(name) for name in self.case.listings if name != RECOVERY)
            return self._visit(State(self.case.bucket, drivers, crashes_left=self.case.max_crashes))

    def _visit(self, state: State) -> int:
        if state in self._schedules:
            return self._schedules[state]
        last = state.drivers[-1]
        if last.driver == RECOVERY and last.request is None:
            self._check_end(state)  # in-flight puts may arrive, or never
        count = 0
        for label, move in self._moves(state):
            if self.violations:
                break
            self.trail.append(label)
            count += self._visit(move)
            self.violations += self.drivers.problems if not self.violations else []
            if not self.violations:
                self.trail.pop()
        self._schedules[state] = max(1, count)
        return self._schedules[state]

    def _moves(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield each possible next step and the state after it."""
        waiting = [(at, position) for at, position in enumerate(state.drivers) if position.request is not None]
        if self.is_reduced and (settled := [one for one in waiting if _is_settled(state.bucket, one[1].request)]):
            yield self._reply(state, *settled[0])
            return
        is_recovering = state.drivers[-1].driver == RECOVERY
        for request in state.under_way:
            bucket, _ = state.bucket.answer(request)
            arrived = replace(state, bucket=bucket, under_way=state.under_way - {request}, is_disturbed=is_recovering)
            yield f"{request.key} arrives late", arrived
        if not waiting and not is_recovering:
            yield "recovery", replace(state, drivers=(self.drivers.start(RECOVERY),))
        for at, position in sorted(waiting, key=lambda one: one[1].num_calls):  # drivers in parallel first: races
            yield self._reply(state, at, position)
            yield from self._faults(state, at, position)

    def _reply(self, state: State, at: int, position: Position) -> tuple[str, State]:
        assert position.request is not None
        bucket, reply = state.bucket.answer(position.request)
        label = f"{position.driver}: {position.request.operation} {position.request.key}"
        return label, self._go_on(state, at, bucket, reply)

    def _go_on(self, state: State, at: int, bucket: Bucket, reply: Reply) -> State:
        after = self.drivers.step(state.drivers[at], reply)
        return replace(state, bucket=bucket, drivers=(*state.drivers[:at], after, *state.drivers[at + 1 :]))

    def _faults(self, state: State, at: int, position: Position) -> Iterator[tuple[str, State]]:
        """Yield a lost reply, and crashes before the call, after it took effect, and while it is in flight."""
        request = position.request
        assert request is not None
        bucket, reply = state.bucket.answer(request)
        does_create = request.operation == "put" and reply is True
        who = f"{position.driver}: {request.operation} {request.key}"
        if does_create:
            yield f"{who}, sent twice", self._go_on(state, at, bucket, reply=False)
        if state.crashes_left and position.driver != RECOVERY and (does_create or not self.is_reduced):
            drivers = (*state.drivers[:at], _DEAD, *state.drivers[at + 1 :])
            crashed = replace(state, drivers=drivers, crashes_left=state.crashes_left - 1)
            yield f"{who}, died before", crashed
            if does_create:
                yield f"{who}, died after", replace(crashed, bucket=bucket)
                yield f"{who}, died under way", replace(crashed, under_way=state.under_way | {request})

    def _drive(self, driver: str) -> None:
        """Run the job like ``raypipe.jobs.embed.job`` and ``raypipe.runs.job``, but without Ray and videos."""
        output = Folder(_OUTPUT)
        plans = StoredPlans(output)
        unlisted = Unlisted(plans, f"{BUCKET}in") if self.case.is_marking else None
        planner = Planner(plans, SETTINGS, f"{BUCKET}in", unlisted=unlisted)
        planner.load()
        packing = partial(pack, max_videos=self.case.videos_per_shard, max_frames=64, frames_per_video=1, slots=1)
        new = list(planner.new_videos(self.case.listings[driver]))
        gone = unlisted.find(lambda _: True) if unlisted is not None else ()
        planner.store([*new, *gone], pack=packing)
        numbers = commit.unsealed_plans(output)
        for block in commit.missing_shards(plans, numbers):
            number, shard = block[schema.GENERATION][0].as_py(), block[schema.SHARD][0].as_py()
            rows = self._rows_of(driver, block, number)
            commit.put_shard(output, rows, commit.describe_shard(rows, plan=number, shard=shard, fingerprint=MARK))
        for number in numbers:
            commit.seal(plans, number, versions=VERSIONS)

    def _rows_of(self, driver: str, block: pa.Table, number: int) -> pa.Table:
        """Return the rows that the driver makes of a shard."""
        maker = "all" if self.case.are_rows_alike else driver
        key = (maker, commit.shard_digest(block), number)
        if key not in self._rows:
            rows = made_rows(block, ["gone" if is_gone else "ok" for is_gone in gone_flags(block)])
            at = rows.schema.get_field_index(schema.DECODER)
            self._rows[key] = rows.set_column(at, rows.schema.field(at), pa.array([maker] * block.num_rows))
        return self._rows[key]

    def _check_end(self, state: State) -> None:
        end = state.bucket, state.is_disturbed
        if end not in self.ends:
            with self.drivers.looking_at(state.bucket):
                self.ends[end] = list(self._problems(Folder(_OUTPUT), is_disturbed=state.is_disturbed))
        self.violations += self.ends[end]

    def _problems(self, output: Folder, *, is_disturbed: bool) -> Iterator[str]:
        """Yield what breaks a promise. A disturbed recovery may leave work for the next one."""
        if not is_disturbed:
            yield from verify(output).violations
        self._drive(RECOVERY)
        if violations := verify(output).violations:
            yield from violations
            return
        planned_rows = [read_plan(output, number).rows for number in plan_numbers(output)]
        planned = sorted(pair for videos in planned_rows for pair in _pairs(videos))
        if not self.case.is_doubling_right and len(planned) != len(set(planned)):
            yield f"planned twice: {planned}"
        wanted = sorted((video.video_id, video.etag) for video in self.case.listings[RECOVERY])
        present = (table.filter(pc.not_equal(table[schema.STATUS], "gone")) for table in read_rows(output))
        rows = sorted(pair for table in present for pair in _pairs(table))
        if rows != wanted:
            yield f"the rows are {rows}; wanted are {wanted}"


def _pairs(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows[schema.VIDEO_ID].to_pylist(), rows[schema.ETAG].to_pylist(), strict=True))


def _is_settled(bucket: Bucket, request: Request | None) -> bool:
    """Return whether the reply is fixed and the call changes nothing, because the object exists and stays."""
    if request is None or request.operation == "list" or (request.operation == "put" and not bucket.is_create_only):
        return False
    return bucket.holds(request.key)
