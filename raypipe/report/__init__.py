"""The record of one run: what each shard tells the driver, and the JSON and HTML made of it."""

from raypipe.report.record import Outcome, RunRecord, ShardSummary, VideoNote
from raypipe.report.write import summarize, write_report

__all__ = ["Outcome", "RunRecord", "ShardSummary", "VideoNote", "summarize", "write_report"]
