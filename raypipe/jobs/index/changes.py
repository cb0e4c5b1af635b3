"""What differs between the rows of the current version and those that there are now."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.search.items import DUPLICATE_GROUP


@dataclass(frozen=True, slots=True)
class Changes:
    """Videos that are new, that were embedded again, and that are gone; ``describes_anew``: other columns or labels."""

    num_new: int
    num_changed: int
    num_deleted: int
    describes_anew: bool

    def __bool__(self) -> bool:
        return bool(self.num_new or self.num_changed or self.num_deleted or self.describes_anew)


def compare(before: pa.Table, now: pa.Table, *, same_plans: bool) -> Changes:
    """Hold the items of two versions against each other; ``before`` has its duplicate groups, ``now`` none yet.

    Where no plan was sealed in between, what ``before`` lacks are videos that could not be indexed, and still cannot.
    """
    if same_plans:
        now = now.filter(pc.is_in(now[schema.VIDEO_ID], value_set=before[schema.VIDEO_ID].combine_chunks()))
    positions = pc.index_in(now[schema.VIDEO_ID], value_set=before[schema.VIDEO_ID].combine_chunks())
    found = before.select([schema.GENERATION, schema.ETAG]).take(positions)
    is_same = pc.and_(
        pc.equal(found[schema.GENERATION], now[schema.GENERATION]), pc.equal(found[schema.ETAG], now[schema.ETAG])
    )
    num_known = now.num_rows - positions.null_count
    num_same = int(pc.sum(is_same).as_py() or 0)
    changes = Changes(now.num_rows - num_known, num_known - num_same, before.num_rows - num_known, describes_anew=False)
    return changes or Changes(0, 0, 0, describes_anew=not _equal(before, now))


def _equal(before: pa.Table, now: pa.Table) -> bool:
    if {*before.column_names} - {DUPLICATE_GROUP} != set(now.column_names):
        return False
    try:
        return bool(before.select(now.column_names).cast(now.schema).equals(now))
    except pa.ArrowException:  # a column holds values of another type
        return False
