"""The record of one run: what it tells the driver, and the JSON and HTML made of it."""

from raypipe.report.record import Outcome, RunRecord, ShardSummary, VideoNote
from raypipe.report.training_page import write_training_report
from raypipe.report.training_record import ClassMetrics, EpochMetrics, Mistake, TrainingRecord, Trial
from raypipe.report.write import summarize, write_report

__all__ = [
    "ClassMetrics",
    "EpochMetrics",
    "Mistake",
    "Outcome",
    "RunRecord",
    "ShardSummary",
    "TrainingRecord",
    "Trial",
    "VideoNote",
    "summarize",
    "write_report",
    "write_training_report",
]
