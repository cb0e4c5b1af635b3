"""Candidates of a classifier are made, distilled and stored as models that load like any other."""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypipe.config import CompressConfig
from raypipe.jobs.compress.candidates import ORIGINAL, Candidate
from raypipe.jobs.compress.classifier_students import ClassifierStudents, DistillData
from raypipe.jobs.compress.distillation import ask_teacher, divergences
from raypipe.jobs.train.checkpoints import saved_files
from raypipe.jobs.train.inputs import TARGETS
from raypipe.models.classifier import VideoClassifier
from raypipe.models.classifier_files import build_classifier
from raypipe.models.model_files import ModelFiles
from support.tiny_models import tiny_classifier
from support.train_loops import CPU, block_of, labelled_videos, read_of

TRAIN, VALIDATION = labelled_videos(24), labelled_videos(12, seed=1)


def files_of(model: VideoClassifier) -> ModelFiles:
    return ModelFiles(saved_files(model, metrics={}), "digest", "here")


def made_of(
    model: VideoClassifier,
    *,
    labelled: bool = True,
    probe: Mapping[str, torch.Tensor] | None = None,
    **keys: object,
) -> list[Candidate]:
    config = CompressConfig.model_validate(
        {"model": "m", "output": "o", "embeddings": "e", "distill": {"epochs": 1}, "max_accuracy_loss": 0.99, **keys}
    )
    tables = []
    for videos in (TRAIN, VALIDATION):
        targets = None if labelled else [[]] * len(videos)
        tables.append(block_of(videos, targets=targets).select(["index", "targets"]))
    read = [read_of(videos, unlabelled=not labelled) for videos in (TRAIN, VALIDATION)]
    data = DistillData(tables[0], tables[1], read[0], read[1], has_labels=labelled, probe=probe)
    students = ClassifierStudents(files_of(model), data, config, device=CPU, notify=lambda _kind, _about: None)
    return students.make()


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no_labels"])
def test_every_candidate_loads_and_gives_its_answers(*, labelled: bool) -> None:
    found = made_of(tiny_classifier(probe="mean_slope_std", gpt2_reads="changes"), labelled=labelled)
    assert [one.name for one in found] == [ORIGINAL, "int8", "1 block", "1 block, int8"]
    assert [one.int8 for one in found] == [False, True, False, True]
    assert [len(one.heads) for one in found] == [2, 2, 1, 1]
    for one in found:
        model = build_classifier(ModelFiles(one.files, "", one.name))
        best = model.classify(VALIDATION).probabilities.argmax(axis=1)
        assert np.array_equal(np.asarray(one.answers).argmax(axis=1), best)
        assert (one.scores is not None) == labelled
        assert one.work() == len(VALIDATION)
    assert len(found[1].files["model.safetensors"]) < len(found[0].files["model.safetensors"])
    assert json.loads(found[3].files["config.json"])["gpt2_heads"] == list(found[3].heads)


def test_candidates_are_measured_with_a_probe_that_has_not_seen_the_videos() -> None:
    model = tiny_classifier(probe="mean", gpt2_reads="changes")
    unseen = {name: torch.full_like(tensor, 0.5) for name, tensor in model.probe.state_dict().items()}
    found = made_of(model, probe=unseen)
    for one in found:
        stored = build_classifier(ModelFiles(one.files, "", one.name))
        assert all(
            torch.equal(stored.probe.state_dict()[name], tensor) for name, tensor in model.probe.state_dict().items()
        )
        stored.probe.load_state_dict(unseen)
        best = stored.classify(VALIDATION).probabilities.argmax(axis=1)
        assert np.array_equal(np.asarray(one.answers).argmax(axis=1), best)
    assert found[0].files == files_of(model).files


def test_a_probe_and_an_int8_model_have_nothing_to_compress() -> None:
    probe = tiny_classifier(probe="mean")
    probe.drop_gpt2()
    assert [one.name for one in made_of(probe)] == [ORIGINAL]
    small = made_of(tiny_classifier(), blocks=[])[1]
    again = build_classifier(ModelFiles(small.files, "", ""))
    assert [one.name for one in made_of(again)] == [ORIGINAL]


def test_no_smaller_student_is_made_after_one_that_loses_too_much() -> None:
    model = tiny_classifier(gpt2={"n_layer": 4, "n_head": 2, "n_embd": 16})
    with torch.no_grad():
        model.head.weight.mul_(20)
    keys = {"int8": False, "distill": {"epochs": 1, "learning_rate": 1e-9}}
    names = [one.name for one in made_of(model, labelled=False, max_accuracy_loss=0.0, head_tolerance=9.0, **keys)]
    assert names == [ORIGINAL, "2 blocks"]
    assert len(made_of(model, labelled=False, **keys)) == 3


def test_distillation_brings_the_student_closer_to_its_teacher() -> None:
    model = tiny_classifier()
    with torch.no_grad():
        model.head.weight.mul_(5)
    keys = {"int8": False, "head_tolerance": 0.0}
    untrained = made_of(model, labelled=False, distill={"epochs": 1, "learning_rate": 1e-9}, **keys)
    trained = made_of(model, labelled=False, distill={"epochs": 30, "early_stop_epochs": 0}, **keys)

    def distance(one: Candidate) -> float:
        logits = [
            ask_teacher(each, table, [block]).logits
            for each in (model, build_classifier(ModelFiles(one.files, "", "")))
        ]
        return float(divergences(logits[1], logits[0], temperature=1.0, multi_label=False).mean())

    block = block_of(VALIDATION)
    table = block.select(["index", "targets"])
    assert distance(trained[1]) < distance(untrained[1])


def test_videos_without_a_label_get_that_of_the_teacher() -> None:
    model = tiny_classifier()
    targets = [[number % 3] if number % 2 else [] for number in range(len(TRAIN))]
    block = block_of(TRAIN, targets=targets)
    answers = ask_teacher(model, block.select(["index", "targets"]), [block.slice(9), block.slice(0, 9)])
    filled = pa.concat_tables(answers.fill([block.slice(9), block.slice(0, 9)], multi_label=False))
    said = model.classify(TRAIN).probabilities.argmax(axis=1)
    order = filled["index"].to_pylist()
    wanted = [targets[at] or [int(said[at])] for at in order]
    assert filled[TARGETS].to_pylist() == wanted
    assert answers.is_labelled.tolist() == [bool(target) for target in targets]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_divergence_is_zero_for_equal_probabilities_only(*, multi_label: bool) -> None:
    logits = torch.randn(4, 3)
    shifted = logits if multi_label else logits + 5.0  # a softmax ignores what all logits have in common
    same = divergences(shifted, logits, temperature=2.0, multi_label=multi_label)
    torch.testing.assert_close(same, torch.zeros(4), atol=1e-5, rtol=0)
    assert (divergences(-logits, logits, temperature=2.0, multi_label=multi_label) > 0).all()
