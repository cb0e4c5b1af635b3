"""Outputs that released versions wrote, read with the current code: ``tests/golden/vVERSION/``.

A test that fails here means that users cannot read what they have stored. Make the code read it, or refuse it with a
clear error and document that in the README.md of the golden folder. Never rewrite the golden files.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from golden.make import EXPECTED, frame_vectors, read, verified
from raypipe.config import ClassifyConfig, DecodeConfig, EmbedConfig, IndexConfig, TrainConfig, load_config
from raypipe.dataset.plan import PlannedVideo, StoredPlans, plan_numbers
from raypipe.dataset.verify import Verification, stored_job, stored_settings
from raypipe.errors import FingerprintError
from raypipe.jobs.classify import job as classify
from raypipe.jobs.classify.verify import verify as verify_predictions
from raypipe.jobs.embed import inputs
from raypipe.jobs.embed import setup as embed
from raypipe.jobs.embed.inputs import find_videos
from raypipe.jobs.embed.job import plan_new
from raypipe.jobs.embed.verify import recheck_inputs
from raypipe.jobs.embed.verify import verify as verify_embeddings
from raypipe.jobs.index.job import run_index
from raypipe.jobs.train.checkpoints import Checkpoints, load_optimizer
from raypipe.jobs.train.events import earlier_record
from raypipe.jobs.train.inputs import find_samples
from raypipe.jobs.train.loop import make_optimizer
from raypipe.jobs.train.run_spec import build, check_same_run, prepare, run_facts
from raypipe.models.classifier_files import build_classifier, read_model
from raypipe.records import TrainingRecord
from raypipe.schema import row_format_of
from raypipe.storage import Folder, Listed
from support import TESTS
from support.embed_outputs import PACK, planned, planner, video
from support.folders import keys
from support.train_runs import history

VERSIONS = sorted(path for path in (TESTS / "golden").glob("v*") if path.is_dir())
VERIFY: dict[str, Callable[[Folder], Verification]] = {"embed": verify_embeddings, "predictions": verify_predictions}
JOBS = {"embed": "embed", "predictions": "classify"}  # folder -> the job that wrote it
ConfigT = TypeVar("ConfigT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden folder: on this machine, and copied to the URI where its files were written."""

    local: Path
    place: Folder
    expected: dict[str, Any]
    cache: Path  # for index versions

    def read(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the current code reads from one part, and what it must read."""
        expected = {key: value for key, value in self.expected[name].items() if key != "verified"}
        return read(name, self.place, self.cache), expected

    def folder(self, name: str) -> Folder:
        """Return an output in the bucket. Tests only read it."""
        return Folder(self.place.child(name))

    def copy(self, name: str, target: Folder) -> Folder:
        """Copy an output into a folder where the test may write."""
        upload(self.local / name, target)
        return target

    def config(self, kind: type[ConfigT], job: str) -> ConfigT:
        """Load the configuration that the job ran with."""
        return load_config(kind, self.local / "jobs" / f"{job}.yaml")


def upload(source: Path, target: Folder) -> None:
    """Copy every file of a local folder into an empty one."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            assert target.put_new(path.relative_to(source).as_posix(), path.read_bytes())


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, s3: object, tmp_path_factory: pytest.TempPathFactory) -> Golden:  # noqa: ARG001
    """Copy a golden folder into the bucket."""
    local: Path = request.param
    expected = json.loads((local / EXPECTED).read_text())
    place = Folder(expected.pop("place"))
    upload(local, place)
    return Golden(local, place, expected, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def embed_setup(golden: Golden) -> embed.EmbedSetup:
    """Prepare the settings of the golden embed job with the current code."""
    return embed.prepare(golden.config(EmbedConfig, "embed"), dtype="float32")


def test_the_first_release_is_there() -> None:
    assert VERSIONS[0].name == "v0.1.0"


def test_the_rows_of_embed(golden: Golden) -> None:
    found, expected = golden.read("embed")
    assert {row["status"] for row in expected["rows"].values()} == {"ok", "partial", "forbidden_format"}
    assert found == expected


def test_the_rows_of_classify(golden: Golden) -> None:
    found, expected = golden.read("predictions")
    assert sum(row["label"] is not None for row in expected["rows"].values()) == 8
    assert found == expected


@pytest.mark.parametrize("name", ["embed", "predictions"])
def test_verify_accepts_a_copy_in_a_bucket(golden: Golden, name: str) -> None:
    found = VERIFY[name](golden.folder(name))
    assert (found.violations, verified(found)) == ([], golden.expected[name]["verified"])
    assert stored_job(golden.folder(name)) == JOBS[name]


@pytest.mark.parametrize("name", ["embed", "predictions"])
def test_verify_names_only_etags_in_a_local_copy(golden: Golden, name: str) -> None:
    """The etag of a local file contains its time, which no copy keeps; everything else must hold."""
    output = Folder(str(golden.local / name))
    found = VERIFY[name](output)
    assert verified(found) == golden.expected[name]["verified"]
    assert sorted(violation.partition(" ")[0] for violation in found.violations) == keys(output, "data/")


def test_the_model_gives_the_same_probabilities(golden: Golden) -> None:
    found, expected = golden.read("model")
    ids, numbers = _split(found.pop("probabilities")), _split(expected.pop("probabilities"))
    assert ids[0] == numbers[0]
    assert ids[1] == pytest.approx(numbers[1], abs=1e-5)
    assert found == expected
    rows = golden.expected["predictions"]["rows"]
    assert numbers[1].max(axis=1) == pytest.approx([rows[video_id]["score"] for video_id in numbers[0]], abs=1e-5)


def _split(probabilities: dict[str, list[float]]) -> tuple[list[str], np.ndarray[Any, Any]]:
    return sorted(probabilities), np.array([probabilities[video_id] for video_id in sorted(probabilities)])


def test_the_checkpoint_holds_the_same_state(golden: Golden) -> None:
    found, expected = golden.read("checkpoint")
    for tensors in ("model", "optimizer"):
        assert found.pop(tensors) == pytest.approx(expected.pop(tensors), abs=1e-6)
    assert found == expected
    assert (found["state"]["epoch"], found["state"]["step"]) == (2, 6)
    assert history(golden.folder("model")) == expected["state"]["history"]


def test_the_checkpoint_goes_into_the_model_of_its_training(golden: Golden) -> None:
    checkpoint = Checkpoints(golden.folder("model")).latest()
    assert checkpoint is not None
    config = golden.config(TrainConfig, "train")
    model = build(prepare(config, find_samples(config)).network, seed=config.seed)
    model.load_state_dict(dict(checkpoint.model))
    optimizer = make_optimizer(model, weight_decay=config.optimizer.weight_decay)
    load_optimizer(model, optimizer, checkpoint.optimizer)
    assert {int(moments["step"]) for moments in optimizer.state.values()} == {6}

    assert not model.config.probe
    finished = build_classifier(read_model(golden.folder("model")))
    frames = torch.from_numpy(np.stack([one for _, one in frame_vectors(golden.folder("embed")) if len(one) == 2]))
    with torch.inference_mode():
        said, meant = (one.eval()(frames.float()).logits for one in (model, finished))
    assert torch.allclose(said, meant, atol=1e-5)


def test_the_same_training_continues_and_another_is_refused(golden: Golden) -> None:
    config = load_config(TrainConfig, golden.config(TrainConfig, "train"), overrides=["model.head=gpt2"])
    samples = find_samples(config)
    check_same_run(golden.folder("model"), run_facts(prepare(config, samples)))
    for key, before, now in (("model.head", "gpt2", "auto"), ("seed", 0, 1)):
        other = load_config(TrainConfig, config, overrides=[f"{key}={now}"])
        with pytest.raises(FingerprintError) as caught:
            check_same_run(golden.folder("model"), run_facts(prepare(other, samples)))
        assert (caught.value.key, caught.value.expected, caught.value.value) == (key, before, now)


def test_the_summary_of_the_training(golden: Golden) -> None:
    unknown = TrainingRecord(objective="classify", outcome="running", started_at=0.0)
    record = earlier_record(golden.folder("model"), unknown)
    assert (record.outcome, record.best_epoch, len(record.epochs)) == ("finished", 2, 2)
    assert record.kept is not None
    assert record.kept.validation_loss == golden.expected["checkpoint"]["state"]["history"][1]["validation_loss"]


def test_the_index_answers_as_before(golden: Golden) -> None:
    found, expected = golden.read("index")
    answers, meant = found.pop("answers"), expected.pop("answers")
    assert found == expected
    assert answers.keys() == meant.keys() == {"nearest", "filtered", "popular"}
    for name, results in meant.items():
        assert [video_id for video_id, _ in answers[name]] == [video_id for video_id, _ in results], name
        # A newer video of a history counts more than in that version, which moves scores a little.
        assert [score for _, score in answers[name]] == pytest.approx([score for _, score in results], abs=5e-3)


def test_an_index_is_appended_to(golden: Golden, bucket: str) -> None:
    output = golden.copy("index", Folder(bucket))
    config = golden.config(IndexConfig, "index").model_copy(update={"output": output.uri})
    run = run_index(config)
    assert run.changes is not None
    assert (bool(run.changes), run.num_left_out, run.manifest["num_videos"]) == (False, 2, 7)


def test_only_new_videos_are_planned(golden: Golden, bucket: str, embed_setup: embed.EmbedSetup) -> None:
    output = golden.copy("embed", Folder(bucket))
    plan_new(replace(embed_setup, output=output), StoredPlans(output), num_slots=1)
    assert plan_numbers(output) == [0, 1]

    config = embed_setup.config
    known = list(find_videos(config.input, output_uri=output.uri))
    assert {one.video_id for one in known} == set(golden.expected["embed"]["rows"])
    replaced = replace(known[0], etag="another")
    again = planner(output, embed_setup.settings, input_uri=config.input)
    new = list(again.new_videos([video("new.mp4"), replaced, *known[1:]]))
    assert [one.video_id for one in new] == ["new.mp4", known[0].video_id]
    assert again.store(new, pack=PACK) == [2]
    again = planner(output, embed_setup.settings, input_uri=config.input)
    assert [one.video_id for one in again.new_videos(known, retry="all")] == [known[0].video_id, "dog/no video.mp4"]


def test_rows_of_format_1_stay_readable_and_resumable(golden: Golden, embed_setup: embed.EmbedSetup) -> None:
    output = Folder(golden.place.child("embed"))
    assert (embed_setup.row_format, row_format_of(stored_settings(output))) == (1, 1)
    assert embed_setup.settings["format"] == embed_setup.decode_request.row_format == 1
    rows = list(recheck_inputs(output, stored_settings(output), decode=DecodeConfig(), num_workers=1))
    assert len(rows) == 9
    assert not any(row.changes or row.problem for row in rows)  # ordinary videos, which no later rule affects


def test_other_settings_need_another_output(golden: Golden, embed_setup: embed.EmbedSetup) -> None:
    config = golden.config(EmbedConfig, "embed")
    sampling = config.sampling.model_copy(update={"num_frames": 3})
    other = replace(embed_setup, config=config.model_copy(update={"sampling": sampling}))
    with pytest.raises(FingerprintError):
        plan_new(other, StoredPlans(other.output), num_slots=1)
    assert plan_numbers(golden.folder("embed")) == [0, 1]


def test_predictions_of_format_1_are_not_continued(golden: Golden, bucket: str) -> None:
    output = golden.copy("predictions", Folder(bucket))
    config = golden.config(ClassifyConfig, "classify").model_copy(update={"output": output.uri})
    setup = classify.prepare(config)
    with pytest.raises(FingerprintError) as caught:
        classify.plan_new(setup, StoredPlans(output), num_slots=1)
    assert (caught.value.expected, caught.value.value) == ({"format": 1}, {"format": 2})
    assert plan_numbers(output) == [0]


def test_videos_gone_from_an_old_output_are_marked(
    golden: Golden, bucket: str, embed_setup: embed.EmbedSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = golden.copy("embed", Folder(bucket))
    known = {one.video_id: one for one in find_videos(embed_setup.config.input, output_uri=output.uri)}
    gone = {"cat/0.mp4", "dog/no video.mp4"}  # of both plans; one had failed

    def left(_: str, *, output_uri: str, listed: Listed) -> Iterator[PlannedVideo]:
        for video_id, one in known.items():
            if video_id not in gone:
                yield one
        listed.uri, listed.kind = Folder(embed_setup.config.input).uri, "folder"
        assert output_uri == output.uri

    monkeypatch.setattr(inputs, "find_videos", left)
    plan_new(replace(embed_setup, output=output), StoredPlans(output), num_slots=1)
    assert plan_numbers(output) == [0, 1, 2]
    assert {one.video_id for one in planned(output, [2]) if one.is_gone} == gone
    monkeypatch.undo()
    plan_new(replace(embed_setup, output=output), StoredPlans(output), num_slots=1)
    assert {one.video_id for one in planned(output, [3]) if not one.is_gone} == gone
