"""Reports of runs and trainings: ``report.html``, ``summary.json`` and the model card."""
