"""A model's files are read from any folder, and only if they are complete; any error is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.errors import CommitError, FingerprintError, WeightsError
from raypipe.jobs.train.checkpoints import put_model
from raypipe.models.classifier_files import (
    COMPLETE,
    CONFIG,
    MODEL_FOLDER,
    WEIGHTS,
    build_classifier,
    build_model,
    check_embeddings,
    read_model,
)
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.tiny_models import DIM, NAMES, random_videos, tiny_classifier, tiny_masked_frame

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = tiny_classifier(embedding_fingerprint="abc")


def saved(folder: Folder, tmp_path: Path) -> Folder:
    """Return a folder written by ``save_pretrained``."""
    MODEL.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert folder.put_new(path.name, path.read_bytes())
    return folder


def put(folder: Folder) -> Folder:
    """Return the folder inside an output of train that holds the model."""
    put_model(folder, MODEL, metrics={"epoch": 2, "accuracy": 0.5})
    return Folder(folder.child(MODEL_FOLDER))


def problem(action: Callable[[], object]) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        action()
    assert str(caught.value).isprintable()
    assert caught.value.key in str(caught.value)
    return caught.value


def test_an_output_and_a_saved_folder_give_the_same_model(folder: Folder, tmp_path: Path) -> None:
    output, plain = Folder(folder.child("out")), Folder(folder.child("plain"))
    inner = put(output)
    saved(plain, tmp_path)
    for place in (output, inner, plain):
        model = build_classifier(read_model(place))
        assert not model.training
        state = model.state_dict()
        assert state.keys() == MODEL.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in MODEL.state_dict().items())
        assert model.config.label_names == list(NAMES)
    assert read_model(output).digest == read_model(inner).digest
    assert build_model(read_model(output)).config.metrics == {"epoch": 2, "accuracy": 0.5}


@pytest.mark.parametrize(
    "config", [{"probe": "mean", "has_gpt2": False}, {"probe": "mean_slope_std"}], ids=["probe", "both"]
)
def test_a_model_with_a_probe_is_built_and_classifies(tmp_path: Path, config: dict[str, object]) -> None:
    model = tiny_classifier(**config, temperature=1.5)
    put_model(Folder(str(tmp_path)), model, metrics={})
    built = build_classifier(read_model(Folder(str(tmp_path))))
    assert built.state_dict().keys() == model.state_dict().keys()
    videos = random_videos([1, 3, 20])
    found, expected = (one.classify(videos, frame_scores=True) for one in (built, model))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert found.frame_scores is not None
    assert expected.frame_scores is not None
    for scores, meant in zip(found.frame_scores, expected.frame_scores, strict=True):
        np.testing.assert_array_equal(scores, meant)


def test_a_model_without_the_keys_of_later_versions_is_built(tmp_path: Path) -> None:
    folder = saved(Folder(str(tmp_path / "model")), tmp_path)
    tree = json.loads(folder.read(CONFIG))
    older = {key: value for key, value in tree.items() if key not in {"probe", "has_gpt2", "temperature"}}
    replace_object(folder, CONFIG, json.dumps(older).encode())
    model = build_classifier(read_model(folder))
    assert (model.config.probe, model.config.has_gpt2, model.config.temperature) == (None, True, 1)
    videos = random_videos([1, 3, 20])
    found, expected = (one.classify(videos, frame_scores=True) for one in (model, MODEL))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_a_probe_of_a_later_version_is_refused(tmp_path: Path) -> None:
    folder = saved(Folder(str(tmp_path / "model")), tmp_path)
    tree = json.loads(folder.read(CONFIG)) | {"probe": "median"}
    replace_object(folder, CONFIG, json.dumps(tree).encode())
    error = problem(lambda: build_model(read_model(folder)))
    assert error.key == folder.child(CONFIG)
    assert "'median'" in str(error)


def test_a_digest_tells_models_apart(tmp_path: Path) -> None:
    digests = set()
    for at, model in enumerate([MODEL, tiny_classifier(seed=1, embedding_fingerprint="abc"), tiny_classifier()]):
        put_model(Folder(str(tmp_path / str(at))), model, metrics={})
        digests.add(read_model(Folder(str(tmp_path / str(at)))).digest)
    assert len(digests) == 3


def test_putting_the_same_model_again_is_no_error(folder: Folder) -> None:
    put(folder)
    put(folder)
    with pytest.raises(CommitError) as caught:
        put_model(folder, tiny_classifier(seed=1), metrics={})
    assert caught.value.key == folder.child(MODEL_FOLDER)


def test_a_masked_frame_model_is_built_as_one_and_not_as_a_classifier(tmp_path: Path) -> None:
    folder, model = Folder(str(tmp_path)), tiny_masked_frame()
    put_model(folder, model, metrics={})
    files = read_model(folder)
    assert type(build_model(files)) is type(model)
    error = problem(lambda: build_classifier(files))
    assert (error.key, error.value, error.expected) == ("architectures", "MaskedFrameModel", "VideoClassifier")
    assert f"init_from={files.source!r}" in error.remedy


def test_a_folder_without_a_model_is_named(folder: Folder) -> None:
    error = problem(lambda: read_model(folder))
    assert error.key == folder.uri
    assert all(name in str(error) for name in ("config.json", "model.safetensors", "model/"))
    assert "raypipe train" in error.remedy


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_an_incomplete_model_is_refused(folder: Folder, name: str) -> None:
    inner = put(folder)
    replace_object(inner, name, None)
    error = problem(lambda: read_model(folder))
    assert error.key == folder.uri
    assert "raypipe train" in error.remedy


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_of_another_content_is_refused(folder: Folder, name: str) -> None:
    inner = put(folder)
    data = bytearray(inner.read(name))
    data[-20] ^= 1
    replace_object(inner, name, bytes(data))
    error = problem(lambda: read_model(folder))
    assert error.key == inner.child(name)
    assert COMPLETE in str(error)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"sha256": {}}', b"\xff"])
def test_a_list_of_files_that_is_damaged_is_refused(tmp_path: Path, data: bytes) -> None:
    inner = put(Folder(str(tmp_path)))
    replace_object(inner, COMPLETE, data)
    error = problem(lambda: read_model(Folder(str(tmp_path))))
    assert error.key == inner.child(CONFIG)
    assert COMPLETE in str(error)


@pytest.mark.parametrize("keep", [0, 7, 100, -4])
def test_weights_that_are_cut_short_are_refused(folder: Folder, tmp_path: Path, keep: int) -> None:
    saved(folder, tmp_path)
    replace_object(folder, WEIGHTS, folder.read(WEIGHTS)[:keep])
    error = problem(lambda: build_model(read_model(folder)))
    assert error.key == folder.child(WEIGHTS)
    assert CONFIG in str(error)


@pytest.mark.parametrize(
    ("change", "file", "tokens"),
    [
        ({"model_type": "gpt2"}, CONFIG, ("model_type", "'gpt2'", "'raypipe_video_classifier'")),
        ({"max_frames": 99}, CONFIG, ("max_frames", "99", "16")),
        ({"gpt2": 7}, CONFIG, ()),
        ({"embedding_dim": DIM + 1}, WEIGHTS, (CONFIG,)),
        ({"id2label": {"0": "cat", "1": "dog"}}, WEIGHTS, (CONFIG,)),
        ({"architectures": ["MaskedFrameModel"]}, WEIGHTS, (CONFIG,)),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], file: str, tokens: tuple[str, ...]
) -> None:
    folder = saved(Folder(str(tmp_path / "model")), tmp_path)
    tree = json.loads(folder.read(CONFIG))
    replace_object(folder, CONFIG, json.dumps({**tree, **change}).encode())
    error = problem(lambda: build_model(read_model(folder)))
    assert error.key == folder.child(file)
    said = str(error).replace(folder.uri, "")
    assert all(token in said for token in tokens)


@pytest.mark.parametrize("architectures", [["GPT2Model"], None])
def test_a_model_of_another_kind_is_refused_with_the_choices(tmp_path: Path, architectures: list[str] | None) -> None:
    folder = saved(Folder(str(tmp_path / "model")), tmp_path)
    tree = json.loads(folder.read(CONFIG))
    replace_object(folder, CONFIG, json.dumps({**tree, "architectures": architectures}).encode())
    error = problem(lambda: build_model(read_model(folder)))
    assert (error.key, error.value) == ("architectures", architectures)
    assert error.choices == ("VideoClassifier", "MaskedFrameModel", "FrameOrderModel")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 9999])
def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    folder = saved(Folder(str(tmp_path / "model")), tmp_path)
    replace_object(folder, CONFIG, data)
    assert problem(lambda: build_model(read_model(folder))).key == folder.child(CONFIG)


def test_a_model_is_for_embeddings_of_one_fingerprint_and_size(tmp_path: Path) -> None:
    files = read_model(saved(Folder(str(tmp_path / "model")), tmp_path))
    check_embeddings(files, "abc", DIM)
    check_embeddings(files, "abd", DIM, comparable={"abc", "abd"})
    with pytest.raises(FingerprintError) as caught:
        check_embeddings(files, "abc", 512)
    assert (caught.value.key, caught.value.value, caught.value.expected) == ("embedding_dim", 512, DIM)
    with pytest.raises(FingerprintError) as caught:
        check_embeddings(files, "abd", DIM)
    assert (caught.value.key, caught.value.value, caught.value.expected) == ("embedding_fingerprint", "abd", "abc")


def test_a_model_that_names_no_fingerprint_takes_any(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    check_embeddings(read_model(Folder(str(tmp_path))), "whatever", DIM)
