"""Make the candidates of a classifier: pruned, distilled and with int8 weights. Ray is not used here."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from raypipe.config import CompressConfig, OptimizerConfig
from raypipe.jobs.compress.candidates import ORIGINAL, Candidate, losses
from raypipe.jobs.compress.distillation import Blocks, TeacherAnswers, ask_teacher, distil
from raypipe.jobs.compress.shrinking import block_levels, prune_blocks, prune_heads
from raypipe.jobs.train.batches import WorkerSamples
from raypipe.jobs.train.checkpoints import saved_files
from raypipe.jobs.train.classifier.scores import Bools, label_mask, predicted_sets
from raypipe.jobs.train.classifier.video_task import FramesWindow, VideoTask
from raypipe.jobs.train.inputs import TARGETS, Ints, even_stride
from raypipe.jobs.train.loop import Notify
from raypipe.models.classifier import VideoClassifier, by_length
from raypipe.models.classifier_files import build_classifier
from raypipe.models.int8 import num_weights, quantize
from raypipe.models.model_files import ModelFiles
from raypipe.models.pruning import num_heads
from raypipe.text import plural

_GELU = "gelu_pytorch_tanh"  # the function that GPT-2 has, gelu_new, as one operation
_MAX_TIMED, _MAX_COST_VIDEOS = 64, 256
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class DistillData:
    """The videos of a compression. ``read_train`` and ``read_validation`` read their frames, in any order.

    ``probe`` are weights that were fitted without the validation videos, if the probe of the model was fitted to them
    as well. Then candidates are measured with these, and stored with those of the model.
    """

    train: pa.Table
    validation: pa.Table
    read_train: Blocks
    read_validation: Blocks
    has_labels: bool
    probe: Mapping[str, torch.Tensor] | None = None


class ClassifierStudents:
    """Makes candidates, from the original model to ever smaller ones."""

    def __init__(
        self, files: ModelFiles, data: DistillData, config: CompressConfig, *, device: torch.device, notify: Notify
    ) -> None:
        self._files, self._data, self._config = files, data, config
        self._device, self._notify = device, notify
        self._teacher = build_classifier(files)
        self._multi_label = self._teacher.config.multi_label
        self._stored_probe = None
        if data.probe is not None:
            self._stored_probe = copy.deepcopy(self._teacher.probe.state_dict())
            self._teacher.probe.load_state_dict(dict(data.probe))
        self._teacher.to(device)  # type: ignore[arg-type]
        self._validation = self._samples(self._asked(data.validation, data.read_validation))
        self._window = next(self._validation.windows())
        self._truth = label_mask(self._window.targets, len(self._teacher.config.label_names))

    def _asked(self, samples: pa.Table, read: Blocks) -> Blocks:
        """Return a reader that gives videos without a label the label that the teacher predicts."""
        if all(len(targets) for targets in samples[TARGETS].to_pylist()):
            return read
        answers = ask_teacher(self._teacher, samples, read())
        return lambda: answers.fill(read(), multi_label=self._multi_label)

    def _samples(self, read: Blocks) -> WorkerSamples[FramesWindow]:
        return WorkerSamples(read, empty=FramesWindow, cache_bytes=self._config.data.cache_bytes)

    def make(self) -> list[Candidate]:
        """Return the candidates, the original model first. After one that loses too much, no smaller one is made."""
        original = replace(self._candidate(ORIGINAL, self._teacher), files=self._files.files)
        candidates, student = [original], copy.deepcopy(self._teacher)
        if not self._teacher.config.has_gpt2 or self._teacher.config.int8:
            return candidates
        student.config.gpt2.activation_function = _GELU
        student.config.frame_scores_help = None
        if self._config.int8:
            candidates.append(self._int8("int8", student))
        levels = block_levels(self._config.blocks, num_blocks=len(student.encoder.gpt2.h))
        if not levels:
            return candidates
        teacher = ask_teacher(self._teacher, self._data.train, self._data.read_train())
        train = self._samples(lambda: teacher.fill(self._data.read_train(), multi_label=self._multi_label))
        for num_blocks in levels:
            student = self._shrunk(student, num_blocks, teacher, train)
            made = [self._candidate(plural(num_blocks, "block"), student)]
            if self._config.int8:
                made.append(self._int8(f"{plural(num_blocks, 'block')}, int8", student))
            candidates += made
            if all(losses(original, one).mean() > self._config.max_accuracy_loss for one in made):
                break
        return candidates

    def _shrunk(
        self,
        student: VideoClassifier,
        num_blocks: int,
        teacher: TeacherAnswers,
        train: WorkerSamples[FramesWindow],
    ) -> VideoClassifier:
        """Return a pruned and distilled copy of the student.

        Heads are removed last: in a model that lacks blocks and has not learned without them, all heads seem useless.
        """
        student = copy.deepcopy(student)
        cost, gpt2 = self._cost_of(student), student.encoder.gpt2
        self._say(f"choosing {num_blocks} of {plural(len(gpt2.h), 'block')}")
        prune_blocks(gpt2, num_blocks, cost)
        student.config.gpt2.n_layer = num_blocks
        self._say(f"distilling {plural(num_blocks, 'block')}")
        distil(
            student,
            teacher,
            self._config.distill,
            train=train,
            validation=self._validation,
            num_validation=len(self._window.index),
            device=self._device,
            seed=self._config.seed,
            notify=self._notify,
        )
        prune_heads(gpt2, cost, tolerance=self._config.head_tolerance)
        student.config.gpt2_heads = num_heads(gpt2)
        return student

    def _cost_of(self, student: VideoClassifier) -> "_ValidationLoss":
        task = VideoTask(student, OptimizerConfig(), device=self._device)
        return _ValidationLoss(task, self._window)

    def _int8(self, name: str, student: VideoClassifier) -> Candidate:
        small = copy.deepcopy(student)
        quantize(small.encoder)
        small.config.int8 = True
        return self._candidate(name, small)

    def _candidate(self, name: str, model: VideoClassifier) -> Candidate:
        """Return a candidate with the answers of a model for the validation videos, as loaded from its files."""
        files = saved_files(model, metrics={})
        measured = build_classifier(ModelFiles(files, "", name))
        if self._stored_probe is not None:
            stored = copy.deepcopy(model)
            stored.probe.load_state_dict(self._stored_probe)
            files = saved_files(stored, metrics={})
        return self._measured(name, measured, files)

    def _measured(self, name: str, model: VideoClassifier, files: Mapping[str, bytes]) -> Candidate:
        frames = self._window.frames
        probabilities = model.classify(frames, batch_size=_AT_ONCE).probabilities
        answers = _sets(probabilities, multi_label=self._multi_label)
        heads = num_heads(model.encoder.gpt2) if model.config.has_gpt2 else []
        timed = frames[:: even_stride(len(frames), _MAX_TIMED)]
        scores = (answers == self._truth).all(axis=1).astype(np.float64) if self._data.has_labels else None

        def work() -> int:
            model.classify(timed, batch_size=_AT_ONCE)
            return len(timed)

        return Candidate(
            name=name,
            heads=heads,
            int8=model.config.int8,
            num_parameters=num_weights(model),
            files=files,
            answers=answers,
            scores=scores,
            work=work,
        )

    def _say(self, line: str) -> None:
        self._notify("note", {"line": line})


class _ValidationLoss:
    """The loss of a model on some validation videos. Calling it measures the model as it is now."""

    def __init__(self, task: VideoTask, window: FramesWindow) -> None:
        self._task, self._window = task, window
        some = np.arange(0, len(window.index), even_stride(len(window.index), _MAX_COST_VIDEOS))
        groups = by_length([window.lengths[at] for at in some], batch_size=_AT_ONCE)
        self._groups: list[Ints] = [some[group] for group in groups]

    @torch.no_grad()
    def __call__(self) -> float:
        self._task.model.train(mode=False)
        scores = self._task.scores()
        for positions in self._groups:
            self._task.score(self._window, positions, scores)
        return scores.loss


def _sets(probabilities: object, *, multi_label: bool) -> Bools:
    given = torch.from_numpy(np.asarray(probabilities))
    return predicted_sets(given.logit() if multi_label else given, multi_label=multi_label)
