"""What classify refuses before any work, and which settings and inputs a run depends on."""

from pathlib import Path

import numpy as np
import pytest

from raypipe import schema
from raypipe.config import ClassifyConfig
from raypipe.dataset.commit import missing_shards
from raypipe.dataset.plan import PlannedVideo, StoredPlans, fingerprint, plan_numbers, read_plan
from raypipe.dataset.read import read_rows
from raypipe.errors import ConfigError, FingerprintError, JobError, RaypipeError, WeightsError
from raypipe.jobs.classify.job import plan_new as plan_job
from raypipe.jobs.classify.job import prepare
from raypipe.models.classifier_files import build_classifier
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder
from support.classify_outputs import DIM, OPTIONS, classified_rows, plan_new, save_model
from support.embed_outputs import MARK, PACK, commit_statuses, make_output, planner, replace_object


@pytest.fixture
def embeddings(tmp_path: Path) -> Folder:
    return make_output(Folder(str(tmp_path)))


def configured(embeddings: Folder, model: Path | str, **keys: object) -> ClassifyConfig:
    given = {"embeddings": embeddings.uri, "model": str(model), "output": f"{embeddings.uri}-labels"}
    return ClassifyConfig(**given | keys)  # type: ignore[arg-type]


def test_the_fingerprint_depends_on_model_and_embeddings(embeddings: Folder, tmp_path: Path) -> None:
    model, other = (save_model(tmp_path / name, seed=seed) for seed, name in enumerate(("model", "other")))
    setup = prepare(configured(embeddings, model))
    assert setup.settings == {
        "job": "classify",
        "format": schema.PREDICTIONS_FORMAT,
        "model": setup.files.digest,
        "embeddings": MARK,
        "top_k": 5,
        "frame_scores": False,
        "dtype": "float32",
    }
    same = prepare(configured(embeddings, model, batch_size=3, output="elsewhere"))
    assert fingerprint(same.settings) == fingerprint(setup.settings)
    plan_job(setup, StoredPlans(setup.output), num_slots=1)
    assert [read_plan(setup.output, 0).rows.num_rows, read_plan(setup.output, 0).input] == [7, embeddings.uri]
    plan_job(setup, StoredPlans(setup.output), num_slots=1)
    for changed, key in ((configured(embeddings, other), "model"), (configured(embeddings, model, top_k=2), "top_k")):
        again = prepare(changed)
        with pytest.raises(FingerprintError) as caught:
            plan_job(again, StoredPlans(again.output), num_slots=1)
        assert caught.value.expected == {key: setup.settings[key]}
        assert caught.value.value == {key: again.settings[key]}


@pytest.mark.parametrize("mark", [None, MARK])
def test_a_model_for_these_embeddings_is_accepted(embeddings: Folder, tmp_path: Path, mark: str | None) -> None:
    assert prepare(configured(embeddings, save_model(tmp_path / "model", mark=mark))).embedding_dim == DIM


def test_a_mismatch_is_one_line_and_exit_code_2(embeddings: Folder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing, nowhere = (str(tmp_path / name) for name in ("empty", "nowhere"))
    # A configuration, its error, and the error's key, value and expected value.
    refused: list[tuple[ClassifyConfig, type[RaypipeError], tuple[object, ...]]] = [
        (
            configured(embeddings, save_model(tmp_path / "of other", mark="0" * 16)),
            FingerprintError,
            ("embedding_fingerprint", MARK, "0" * 16),
        ),
        (
            configured(embeddings, save_model(tmp_path / "wide", dim=DIM + 1)),
            FingerprintError,
            ("embedding_dim", DIM, DIM + 1),
        ),
        (configured(embeddings, nothing), WeightsError, (nothing, None, None)),
        (configured(embeddings, nowhere), WeightsError, (nowhere, None, None)),
        (
            configured(embeddings, save_model(tmp_path / "model"), output=f"{embeddings.uri}/"),
            ConfigError,
            ("output", embeddings.uri, None),
        ),
    ]
    for config, kind, fields in refused:
        with pytest.raises(kind) as caught:
            prepare(config)
        assert (caught.value.key, caught.value.value, caught.value.expected) == fields
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
    assert not Path(f"{embeddings.uri}-labels").exists()


@pytest.mark.parametrize(
    ("help_is", "asked", "warns"), [(False, True, 1), (False, False, 0), (True, True, 0), (None, True, 0)]
)
def test_frame_scores_that_do_not_help_are_warned_of(
    embeddings: Folder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    help_is: bool | None,
    asked: bool,
    warns: int,
) -> None:
    model = save_model(tmp_path / "model", frame_scores_help=help_is)
    setup = prepare(configured(embeddings, model, frame_scores=asked))
    assert build_classifier(setup.files).config.frame_scores_help is help_is
    assert sum(model.name in record.getMessage() for record in caplog.records) == warns


def test_two_ids_of_one_object_are_two_videos(tmp_path: Path) -> None:
    """The manifest renamed an object whose content changed: both rows count."""
    embeddings = Folder(str(tmp_path / "embeddings"))
    for video_id, etag in (("old name", "e1"), ("new name", "e2")):
        made = planner(embeddings)
        made.store(made.new_videos([PlannedVideo(video_id, "s3://nowhere/a.mp4", etag, 1)]), pack=PACK)
        commit_statuses(embeddings, {})
    setup = prepare(configured(embeddings, save_model(tmp_path / "model")))
    plan_job(setup, StoredPlans(setup.output), num_slots=1)
    assert sorted(read_plan(setup.output, 0).rows["video_id"].to_pylist()) == ["new name", "old name"]
    plan_job(setup, StoredPlans(setup.output), num_slots=1)
    assert plan_numbers(setup.output) == [0]


def test_predictions_are_not_embeddings(embeddings: Folder, tmp_path: Path) -> None:
    config = configured(embeddings, save_model(tmp_path / "model"))
    output = Folder(config.output)
    plan_new(embeddings, output)
    with pytest.raises(JobError) as caught:
        prepare(configured(output, config.model))
    assert (caught.value.key, caught.value.value) == (output.uri, [0])
    replace_object(embeddings, "manifests/00000.json", None)
    with pytest.raises(JobError) as caught:
        prepare(config)
    assert (caught.value.key, caught.value.value) == (embeddings.uri, [0])
    assert "raypipe embed" in caught.value.remedy


def test_the_rows_hold_the_models_predictions(embeddings: Folder, tmp_path: Path) -> None:
    """The real classifier on vectors of several lengths: a batch gives each video the result it has alone."""
    setup = prepare(configured(embeddings, save_model(tmp_path / "model")))
    plan_job(setup, StoredPlans(setup.output), num_slots=1)
    model = build_classifier(setup.files)
    rows = {row["video_id"]: row for table in read_rows(embeddings) for row in table.to_pylist()}
    for block in missing_shards(StoredPlans(setup.output), [0]):
        for row in classified_rows(block, embeddings, model).to_pylist():
            embedded = rows[row["video_id"]]
            assert row["status"] == embedded["status"]
            if row["status"] in HAS_FRAMES:
                vectors = np.array(embedded["frame_embeddings"], np.float16)
                alone = model.classify([vectors], frame_scores=True, batch_size=OPTIONS.batch_size)
                best = int(alone.probabilities[0].argmax())
                assert row["label"] == model.config.label_names[best]
                assert row["score"] == pytest.approx(alone.probabilities[0, best], abs=1e-5)
                assert alone.frame_scores is not None
                assert alone.order_scores is not None
                assert len(row["frame_scores"]) == len(row["order_scores"]) == embedded["num_frames"]
                assert row["frame_scores"] == pytest.approx(alone.frame_scores[0], abs=1e-5)
                assert row["order_scores"] == pytest.approx(alone.order_scores[0], abs=1e-5)
