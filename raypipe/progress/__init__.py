"""What a person sees while a job runs: a live display on a terminal, plain lines elsewhere, the same in Prometheus."""

from raypipe.progress.live import Progress
from raypipe.progress.metrics import Metrics
from raypipe.progress.training import TrainingProgress, training_table
from raypipe.progress.view import final_table

__all__ = ["Metrics", "Progress", "TrainingProgress", "final_table", "training_table"]
