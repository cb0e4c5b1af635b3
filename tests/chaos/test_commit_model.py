"""For every order of two drivers, and wherever they crash, one more run gives every video exactly one row."""

import pytest

from chaos.commit_model import RECOVERY, Case, Model
from chaos.memory_storage import Bucket
from raypipe.dataset import planner
from raypipe.dataset.plan import Plan, PlannedVideo
from raypipe.storage import Folder, folder
from support.embed_outputs import video

A, B, REPLACED = video("a"), video("b"), video("a", etag="e2")
ALIKE = Case({"first": (A, B), "second": (A, B), RECOVERY: (A, B)}, videos_per_shard=1)
ONE_MORE = Case({"first": (A,), "second": (A, B), RECOVERY: (A, B)}, max_crashes=1)
CHANGED = Case({"first": (A,), "second": (REPLACED,), RECOVERY: (REPLACED,)}, max_crashes=1, is_doubling_right=True)

DELETED = Case(
    {"first": (A, B), "second": (A,), RECOVERY: (A,)}, max_crashes=1, is_doubling_right=True, is_marking=True
)


def explored(case: Case, *, is_reduced: bool = True) -> Model:
    model = Model(case, is_reduced=is_reduced)
    num_schedules = model.explore()
    assert not model.violations, [*model.trail, *model.violations]
    assert num_schedules > 100_000
    return model


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(ALIKE, id="alike"),
        pytest.param(ONE_MORE, id="one-more", marks=pytest.mark.slow),
        pytest.param(CHANGED, id="changed", marks=pytest.mark.slow),
        pytest.param(DELETED, id="deleted", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_or_doubled_in_any_order(case: Case) -> None:
    model = explored(case)
    assert model.num_states > 10_000
    assert model.ends


def test_skipped_orders_reach_the_same_states() -> None:
    case = Case({"first": (A,), "second": (A,), RECOVERY: (A,)}, max_crashes=1)
    assert explored(case).ends.keys() == explored(case, is_reduced=False).ends.keys()


def _ignore_what_another_planned(patch: pytest.MonkeyPatch) -> None:
    def store(
        self: planner.Planner, batch: list[PlannedVideo], *, pack: planner.Callable[..., planner.pa.Table]
    ) -> list[int]:
        self.next_number = max((-1, *self.plans.numbers())) + 1
        mark = planner.fingerprint(self.settings)
        while batch and not self.plans.put(Plan(self.next_number, pack(batch), mark, self.settings, "")):
            self.next_number += 1
        return [self.next_number]

    patch.setattr(planner.Planner, "_store_batch", store)


def _look_before_the_put(patch: pytest.MonkeyPatch) -> None:
    def put_new(self: Folder, name: str, data: bytes) -> bool:
        return not self.exists(name) and folder.storage_of(self.uri).put_new(self.child(name), data)

    patch.setattr(Folder, "put_new", put_new)


@pytest.mark.parametrize(
    ("breaks", "bucket"),
    [
        (_ignore_what_another_planned, Bucket()),
        (_look_before_the_put, Bucket(is_create_only=False)),
        (lambda _: None, Bucket(is_create_only=False)),
    ],
    ids=["planned-twice", "looked-before-put", "overwritten"],
)
def test_a_broken_commit_is_found(
    monkeypatch: pytest.MonkeyPatch, breaks: "planner.Callable[[pytest.MonkeyPatch], None]", bucket: Bucket
) -> None:
    breaks(monkeypatch)
    model = Model(Case(ONE_MORE.listings, max_crashes=0, bucket=bucket))
    model.explore()
    assert model.violations
    assert model.trail
