"""Render records: ``report.html``, ``summary.json`` and the model card."""

from raypipe.report.training_page import write_training_report
from raypipe.report.write import summarize, write_report

__all__ = ["summarize", "write_report", "write_training_report"]
