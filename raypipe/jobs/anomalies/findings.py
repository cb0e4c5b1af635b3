"""What all scored videos of an output say together: the anomalies among them, and the drift over time.

Both depend on all rows, so they are not stored row by row, but in files that every run replaces.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import schema
from raypipe.config import AnomaliesConfig
from raypipe.config.load import command_line
from raypipe.dataset.footer import parquet_bytes
from raypipe.dataset.plan import data_name, plan_numbers
from raypipe.dataset.read import column_by_id, embeddings_manifests, planned_rows, rows_of, sealed_manifests
from raypipe.errors import ConfigError
from raypipe.evaluation.discoveries import Drift, fewest_discoveries, find_drift, q_values
from raypipe.jobs.anomalies.shard import SCORED
from raypipe.records import AnomalyRecord, ListedVideo, StrangeVideo, versions
from raypipe.report.anomaly_page import anomaly_page
from raypipe.search.index import VideoIndex
from raypipe.search.novelty import Novelty
from raypipe.status import Status
from raypipe.storage import Folder
from raypipe.tables import empty_rows, read_table, table_place

TABLE, METRICS, REPORT = "anomalies.parquet", "anomalies.json", "anomalies.html"
Q_VALUE, IS_ANOMALY, PLACE, CUSUM, TIME = "q_value", "is_anomaly", "place", "cusum", "time"
NUM_SHOWN = 24
_READ = (schema.VIDEO_ID, schema.STATUS, schema.GENERATION, *(name for name in SCORED if name != schema.FRAME_SCORES))


@dataclass(frozen=True, slots=True)
class Findings:
    """The content of ``anomalies.json``, and the URI of the report. The URI is empty if no video was ever planned."""

    metrics: Mapping[str, Any]
    report_uri: str = ""


def read_order(uri: str) -> pa.Table:
    """Read the time of each video from a user's table, and return ``video_id`` and ``time`` in seconds.

    Raises:
        ConfigError: the table cannot be read, lacks a column, has no times, or has several rows for a video.
    """
    folder, name = table_place(uri, what="times")
    found = read_table(
        folder, name, text=(schema.VIDEO_ID,), required=(schema.VIDEO_ID, TIME), what="times"
    ).table.select([schema.VIDEO_ID, TIME])
    kind = found[TIME].type
    if pa.types.is_timestamp(kind):
        seconds = pc.divide(found[TIME].cast(pa.int64()).cast(pa.float64()), 1e6)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        seconds = found[TIME].cast(pa.float64())
    else:
        msg = f"{uri}: the column {TIME!r} holds {kind}, not times."
        raise ConfigError(msg, key=TIME, value=str(kind), remedy="Give ISO 8601 times, or seconds as numbers.")
    ids = found[schema.VIDEO_ID].combine_chunks()
    if lacking := empty_rows(found[schema.VIDEO_ID]):
        msg = f"{uri}: {len(lacking)} rows have no video_id, the first is row {lacking[0]}."
        raise ConfigError(msg, key=schema.VIDEO_ID, value="")
    if len(pc.unique(ids)) < len(ids):
        msg = f"{uri}: some videos have several rows."
        raise ConfigError(msg, key=schema.VIDEO_ID, remedy="Give each video one row.")
    return pa.table({schema.VIDEO_ID: ids, TIME: seconds})


def write_findings(config: AnomaliesConfig, novelty: Novelty, *, num_known: int, order: pa.Table | None) -> Findings:
    """Mark the anomalies among all scored videos of the output, look for a drift, and write the results.

    Raises:
        CommitError: a stored file is corrupt.
    """
    began = time.time()
    output = Folder(config.output)
    if not plan_numbers(output):
        return Findings(_metrics(config, novelty, _no_rows(), None, num_known=num_known, counts={}))
    manifests = sealed_manifests(output)
    rows = pa.concat_tables(rows_of(output, manifests, _READ)).combine_chunks()
    rows = rows.filter(pc.not_equal(rows[schema.STATUS], str(Status.GONE)))
    num_videos = rows.num_rows
    rows = _in_order(rows.filter(rows[schema.P_VALUE].is_valid()), order)
    counts = {"num_unscored": num_videos - rows.num_rows}
    if order is not None:
        counts["num_without_time"] = rows[TIME].null_count
    p_values = rows[schema.P_VALUE].to_numpy()
    drift = find_drift(p_values, num_scores=len(novelty.calibration), false_alarm_rate=config.false_alarm_rate)
    q = q_values(p_values)
    rows = rows.append_column(Q_VALUE, pa.array(q)).append_column(
        IS_ANOMALY, pa.array(q <= config.false_discovery_rate)
    )
    rows = rows.append_column(PLACE, pa.array(np.arange(rows.num_rows))).append_column(CUSUM, pa.array(drift.path))
    metrics = _metrics(config, novelty, rows, drift, num_known=num_known, counts=counts)
    ordered = rows.sort_by(
        [(schema.P_VALUE, "ascending"), (schema.NEIGHBOR_DISTANCE, "descending"), (schema.VIDEO_ID, "ascending")]
    )
    output.put(TABLE, parquet_bytes(ordered.drop_columns([schema.STATUS]), {"job": "anomalies"}))
    output.put(METRICS, f"{json.dumps(metrics, indent=1, allow_nan=False)}\n".encode())
    record = AnomalyRecord(
        command=str(metrics["command"]),
        index_uri=Folder(config.index).uri,
        embeddings_uri=Folder(config.embeddings).uri,
        output_uri=output.uri,
        settings=config.model_dump(mode="json"),
        versions=versions(("faiss-cpu",)),
        started_at=began,
        finished_at=time.time(),
        metrics=metrics,
        cusum=drift.path.tolist(),
        videos=_strangest(config, novelty.index, ordered.slice(0, NUM_SHOWN), manifests),
    )
    output.put(REPORT, anomaly_page(record).encode())
    return Findings(metrics, output.child(REPORT))


def _no_rows() -> pa.Table:
    return pa.table({schema.VIDEO_ID: pa.array([], pa.string()), IS_ANOMALY: pa.array([], pa.bool_())})


def _in_order(rows: pa.Table, order: pa.Table | None) -> pa.Table:
    """Sort rows by time or, without times, by generation; then by id. Rows without a time come last."""
    keys = [(schema.GENERATION, "ascending"), (schema.VIDEO_ID, "ascending")]
    if order is not None:
        at = pc.index_in(rows[schema.VIDEO_ID], value_set=order[schema.VIDEO_ID].combine_chunks())
        rows = rows.append_column(TIME, order[TIME].take(at))
        keys = [(TIME, "ascending"), *keys]
    return rows.sort_by(keys)


def _metrics(
    config: AnomaliesConfig,
    novelty: Novelty,
    rows: pa.Table,
    drift: Drift | None,
    *,
    num_known: int,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    calibration, size = novelty.calibration, rows.num_rows
    rate = config.false_discovery_rate
    smallest = calibration.smallest_p_value
    metrics = {
        "command": command_line("anomalies", config),
        "index_version": novelty.index.version,
        "num_catalogue_videos": len(novelty.index),
        "num_calibration_videos": len(calibration),
        "num_videos": size,
        "num_already_in_index": num_known,
        **counts,
        "false_discovery_rate": rate,
        "num_anomalies": int(pc.sum(rows[IS_ANOMALY]).as_py() or 0),
        "smallest_p_value": smallest,
        "fewest_discoveries": fewest_discoveries(size, smallest_p_value=smallest, rate=rate) if size else None,
        "drift": None,
    }
    if drift is not None:
        ids = rows[schema.VIDEO_ID]
        metrics["drift"] = {
            "threshold": drift.threshold,
            "largest": float(drift.path.max(initial=0)),
            "false_alarm_rate": config.false_alarm_rate,
            "order": config.times or "generation, video_id",
            "alarm": None if drift.alarm is None else ids[drift.alarm].as_py(),
            "alarm_place": drift.alarm,
            "since": None if drift.since is None else ids[drift.since].as_py(),
            "since_place": drift.since,
        }
    return metrics


def _strangest(
    config: AnomaliesConfig, index: VideoIndex, rows: pa.Table, manifests: list[dict[str, Any]]
) -> tuple[StrangeVideo, ...]:
    """Return the videos of some rows with their pictures, the scores of their frames, and their neighbors."""
    ids = rows[schema.VIDEO_ID].to_pylist()
    output = Folder(config.output)
    of_frames = column_by_id(output, dict(_files_with(output, manifests, ids)), schema.FRAME_SCORES)
    embeddings = Folder(config.embeddings)
    files = dict(_files_with(embeddings, embeddings_manifests(embeddings), ids))
    pictures = column_by_id(embeddings, files, schema.THUMBNAIL)
    return tuple(
        StrangeVideo(
            video=ListedVideo(name=row[schema.VIDEO_ID], thumbnail=pictures.get(row[schema.VIDEO_ID])),
            p_value=row[schema.P_VALUE],
            q_value=row[Q_VALUE],
            is_anomaly=row[IS_ANOMALY],
            neighbor_distance=row[schema.NEIGHBOR_DISTANCE],
            mahalanobis_length=row[schema.MAHALANOBIS_LENGTH],
            closest=_catalogue_video(index, row[schema.CLOSEST_VIDEO]),
            strangest_seconds=row[schema.STRANGEST_SECONDS],
            frame_scores=tuple(of_frames.get(row[schema.VIDEO_ID]) or ()),
        )
        for row in rows.to_pylist()
    )


def _catalogue_video(index: VideoIndex, video_id: str) -> ListedVideo:
    position = index.items.position(video_id)
    return ListedVideo(name=video_id, thumbnail=None if position is None else index.items.thumbnail(position))


def _files_with(
    folder: Folder, manifests: list[dict[str, Any]], ids: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each file that holds current rows of these videos, with their ids."""
    for generation, planned in planned_rows(folder, manifests):
        some = planned.filter(pc.is_in(planned[schema.VIDEO_ID], value_set=pa.array(list(ids), pa.string())))
        shards: npt.NDArray[np.int32] = some[schema.SHARD].to_numpy()
        for shard in np.unique(shards).tolist():
            names = some.filter(pa.array(shards == shard))[schema.VIDEO_ID].to_pylist()
            yield data_name(generation, shard), names
