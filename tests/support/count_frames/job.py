"""Count the frames of every video. ``run_job(CountFramesJob(config))`` resumes, retries, seals and reports."""

from collections.abc import Sequence
from functools import partial

from raypipe.config.load import BatchConfig
from raypipe.dataset.plan import StoredPlans
from raypipe.dataset.planner import Planner
from raypipe.jobs.embed.inputs import find_videos, pack
from raypipe.runs.executor import Executor, Placement
from raypipe.runs.job import Job
from raypipe.runs.stages import Stage
from raypipe.storage import Folder
from support.count_frames.shard import ROWS, CountFrames


class CountFramesConfig(BatchConfig):
    input: str
    output: str


class CountFramesJob(Job):
    name = "count_frames"
    settings = {"job": name, "format": 1}  # noqa: RUF012 - what changes a row: output of other settings is refused
    rows = ROWS

    def __init__(self, config: CountFramesConfig) -> None:
        self.config, self.output, self.input_uri = config, Folder(config.output), config.input

    def plan(self, plans: StoredPlans, *, num_slots: int) -> None:
        planner = Planner(plans, self.settings, self.input_uri)
        planner.load()
        new = planner.new_videos(find_videos(self.input_uri, output_uri=self.output.uri))
        planner.store(new, pack=partial(pack, max_videos=64, max_frames=10**6, frames_per_video=1000, slots=num_slots))

    def stages(self, executor: Executor, placement: Placement) -> Sequence[Stage]:  # noqa: ARG002
        return [placement.stage((CountFrames, 100_000))]
