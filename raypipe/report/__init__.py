"""Reports of runs and trainings: ``report.html``, ``summary.json`` and the model card."""

from raypipe.report.write import summarize, write_report, write_training_report

__all__ = ["summarize", "write_report", "write_training_report"]
