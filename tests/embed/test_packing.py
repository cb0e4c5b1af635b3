"""Every video is in one shard, shards stay within the limits, and the order of the input does not matter."""

import random
from itertools import pairwise

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset.plan import Plan, PlannedVideo, planned_videos
from raypipe.jobs.embed.inputs import pack
from support.embed_outputs import MARK, SETTINGS
from support.properties import examples

GIB = 1024**3
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VIDEOS = st.lists(
    st.builds(PlannedVideo, NAMES, NAMES, NAMES, st.integers(0, 2 * GIB) | st.integers(0, 3)),
    max_size=40,
    unique_by=lambda one: (one.video_uri, one.etag),
)
LIMITS = st.fixed_dictionaries(
    {
        "max_videos": st.integers(1, 20),
        "max_frames": st.integers(1, 100),
        "frames_per_video": st.integers(1, 100),
        "slots": st.integers(1, 8),
    }
)
QUICK = settings(max_examples=examples(150))


@QUICK
@given(videos=VIDEOS, limits=LIMITS)
def test_every_video_is_in_one_shard_and_the_shards_are_numbered_from_0(
    videos: list[PlannedVideo], limits: dict[str, int]
) -> None:
    table = pack(videos, **limits)
    assert table.schema == schema.PLAN_SCHEMA
    assert sorted(planned_videos(table), key=str) == sorted(videos, key=str)
    shards = table[schema.SHARD].to_pylist()
    assert shards[:1] == [0][: len(videos)]
    assert all(after - before in {0, 1} for before, after in pairwise(shards))


@QUICK
@given(videos=VIDEOS, limits=LIMITS)
def test_no_shard_is_larger_than_its_limits(videos: list[PlannedVideo], limits: dict[str, int]) -> None:
    if not videos:
        return
    made = Plan(0, pack(videos, **limits), MARK, SETTINGS, "")
    for _, rows in made.shards():
        assert 1 <= rows.num_rows <= limits["max_videos"]
        assert rows.num_rows == 1 or rows.num_rows * limits["frames_per_video"] <= limits["max_frames"]
        assert rows.num_rows == 1 or sum(rows[schema.SIZE_BYTES].to_pylist()) <= GIB
        assert rows.num_rows <= max(1, -(-len(videos) // (4 * limits["slots"])))  # no slot waits for one large shard


@QUICK
@given(videos=VIDEOS, limits=LIMITS, seed=st.integers())
def test_packing_does_not_depend_on_the_order_and_puts_the_largest_first(
    videos: list[PlannedVideo], limits: dict[str, int], seed: int
) -> None:
    table = pack(videos, **limits)
    sizes = table[schema.SIZE_BYTES].to_pylist()
    assert sizes == sorted(sizes, reverse=True)
    shuffled = random.Random(seed).sample(videos, len(videos))
    assert pack(shuffled, **limits).equals(table)


@QUICK
@given(videos=VIDEOS, limits=LIMITS)
def test_the_shards_are_the_plan_in_order(videos: list[PlannedVideo], limits: dict[str, int]) -> None:
    if not videos:
        return
    made = Plan(0, pack(videos, **limits), MARK, SETTINGS, "")
    shards = list(made.shards())
    assert [number for number, _ in shards] == list(range(made.num_shards))
    assert pa.concat_tables(rows for _, rows in shards).equals(made.rows)
    assert all(set(rows[schema.SHARD].to_pylist()) == {number} for number, rows in shards)
