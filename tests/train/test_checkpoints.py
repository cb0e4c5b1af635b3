"""A checkpoint is used only if it is complete, and the best one is never pruned."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.jobs.train.checkpoints import Checkpoints, load_optimizer
from raypipe.jobs.train.loop import make_optimizer, set_rate
from raypipe.models.classifier import VideoClassifier
from raypipe.models.gpt2 import VideoModel
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.folders import keys
from support.properties import examples
from support.tiny_models import DIM, tiny_classifier

SEEN = np.array([True, False, True, True, False, False, True, False, True])
STATE: dict[str, Any] = {"epoch": 2, "loss_sum": 0.1 + 0.2, "history": [{"accuracy": 1 / 3}], "best_checkpoint": None}
FILES = ("complete.json", "model.safetensors", "optimizer.safetensors", "seen.bin", "state.json")


def learn(model: VideoModel, optimizer: torch.optim.Optimizer, *, steps: int = 1, seed: int = 0) -> None:
    assert isinstance(model, VideoClassifier)
    set_rate(optimizer, 0.01)
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, DIM, generator=random), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()


def learned(*, steps: int = 2) -> tuple[VideoClassifier, torch.optim.Optimizer]:
    model = tiny_classifier()
    model.encoder.hidden_frame.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    optimizer = make_optimizer(model, weight_decay=0.1)
    learn(model, optimizer, steps=steps)
    return model, optimizer


MODEL, OPTIMIZER = learned()


def put(folder: Folder, *, is_best: bool = False, best: int | None = None) -> int | None:
    state = {**STATE, "best_checkpoint": best}
    return Checkpoints(folder).put(MODEL, OPTIMIZER, SEEN, state, is_best=is_best)


def numbers(folder: Folder) -> list[int]:
    return sorted({int(key.split("/")[1]) for key in keys(folder, "checkpoints/")})


def latest_number(folder: Folder) -> int | None:
    found = Checkpoints(folder).latest()
    return None if found is None else found.number


def test_an_empty_folder_has_no_latest_checkpoint(folder: Folder) -> None:
    assert Checkpoints(folder).latest() is None


def test_a_checkpoint_comes_back_bit_for_bit(folder: Folder) -> None:
    assert put(folder, is_best=True) == 0
    assert keys(folder) == [f"checkpoints/000000/{name}" for name in FILES]
    found = Checkpoints(folder).latest()
    assert found is not None
    assert found.model.keys() == MODEL.state_dict().keys()
    assert all(torch.equal(found.model[name], tensor) for name, tensor in MODEL.state_dict().items())
    assert found.seen.tolist() == SEEN.tolist()
    assert {key: found.state[key] for key in STATE} == {**STATE, "best_checkpoint": 0}


def test_the_optimizer_resumes_exactly(folder: Folder) -> None:
    model, optimizer = learned()
    Checkpoints(folder).put(model, optimizer, SEEN, STATE, is_best=False)
    found = Checkpoints(folder).latest()
    assert found is not None
    again, _ = learned(steps=0)
    again.load_state_dict(dict(found.model))
    other = make_optimizer(again, weight_decay=0.1)
    load_optimizer(again, other, found.optimizer)
    for one, its in ((model, optimizer), (again, other)):
        learn(one, its, steps=2, seed=1)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_numbers_go_up_and_the_best_stays_named(folder: Folder) -> None:
    assert put(folder, is_best=True) == 0
    assert put(folder, best=0) == 0
    assert put(folder, is_best=True, best=0) == 2
    assert numbers(folder) == [0, 1, 2]
    assert latest_number(folder) == 2


def cut_short(data: bytes) -> bytes | None:
    return data[:-1]


def one_bit(data: bytes) -> bytes | None:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def lost(_: bytes) -> bytes | None:
    return None


@pytest.mark.parametrize("damage", [cut_short, lost, one_bit])
@pytest.mark.parametrize("name", [name for name in FILES if name != "complete.json"])
def test_what_is_not_whole_is_passed_over_for_the_one_before(
    folder: Folder, name: str, damage: Callable[[bytes], bytes | None]
) -> None:
    put(folder, is_best=True)
    put(folder)
    key = f"checkpoints/000001/{name}"
    replace_object(folder, key, damage(folder.read(key)))
    assert Checkpoints(folder).read(1) is None
    assert latest_number(folder) == 0
    put(folder)
    assert latest_number(folder) == 2  # no number is used twice, because the incomplete files would be in the way
    assert Checkpoints(folder).read(1) is None


@settings(max_examples=examples(150))
@given(data=st.data())
def test_no_changed_byte_is_ever_taken(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = Folder(str(tmp_path_factory.getbasetemp() / "whole-checkpoint"))
    if not list(folder.list()):
        put(folder)
    key = f"checkpoints/000000/{data.draw(st.sampled_from(FILES))}"
    whole = folder.read(key)
    at, change = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    broken = whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
    replace_object(folder, key, broken)
    found = Checkpoints(folder).read(0)
    replace_object(folder, key, whole)
    if found is not None:  # a space became a tab
        assert key.endswith("complete.json")
        assert broken.split() == whole.split()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"sha256": {}}', b'{"sha256": []}', b"\xff", None])
def test_an_invalid_list_of_files_makes_no_checkpoint_complete(folder: Folder, data: bytes | None) -> None:
    put(folder)
    replace_object(folder, "checkpoints/000000/complete.json", data)
    assert Checkpoints(folder).latest() is None


def test_files_that_are_not_checkpoints_are_left_alone(folder: Folder) -> None:
    for name in ("checkpoints/notes.txt", "checkpoints/12/state.json", "checkpoints/abcdef/x"):
        assert folder.put_new(name, b"mine")
    assert put(folder, is_best=True) == 0
    Checkpoints(folder).prune(keep=1, also=None)
    assert latest_number(folder) == 0
    assert folder.read("checkpoints/notes.txt") == b"mine"


def test_the_newest_and_the_best_are_kept(folder: Folder) -> None:
    for _ in range(5):
        put(folder, best=1)
    Checkpoints(folder).prune(keep=2, also=1)
    assert numbers(folder) == [1, 3, 4]
    assert all(Checkpoints(folder).read(number) for number in (1, 3, 4))
    Checkpoints(folder).prune(keep=2, also=1)
    assert numbers(folder) == [1, 3, 4]
    Checkpoints(folder).prune(keep=1, also=4)
    assert numbers(folder) == [4]
    put(folder)
    assert latest_number(folder) == 5


def test_an_incomplete_checkpoint_is_pruned_in_its_turn(folder: Folder) -> None:
    for _ in range(3):
        put(folder)
    replace_object(folder, "checkpoints/000000/complete.json", None)  # as after an interrupted cleanup
    Checkpoints(folder).prune(keep=1, also=None)
    assert numbers(folder) == [2]
