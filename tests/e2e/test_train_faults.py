"""Kill everything that can be killed while train runs: the result is that of an undisturbed training."""

import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raypipe.jobs.train.checkpoints import Checkpoint, Checkpoints
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.folders import keys
from support.memory_disk import memory_disk
from support.processes import Driver, StartDriver, kill_one, pids_of, wait_until
from support.train_runs import Trained, history, train_config

pytestmark = pytest.mark.timeout(600)  # several trainings in a row, each with the full start of Ray Train

_NUM_TRAIN = 72
_WORKER = "ray::RayTrainWorker"
_EVERY_STEP = {"minutes": 1e-6}
_FIRST_KB, _ENOUGH_KB = 400, 100_000  # space for some checkpoints, and for all
_PER_EPOCH = 36 + 1  # checkpoints: one per step and one at the end
_MEASURED = ("epoch", "step", "train_loss", "validation_loss", "accuracy", "macro_f1", "learning_rate")


def newest(output: Folder) -> int:
    """Return the highest checkpoint number, or -1 if there is none."""
    return max((int(key.split("/")[1]) for key in keys(output, "checkpoints/")), default=-1)


def middle(output: Folder) -> Checkpoint:
    """Return the newest checkpoint, and check that it is inside an epoch."""
    found = Checkpoints(output).latest()
    assert found is not None
    assert 0 < found.state["num_videos"] < _NUM_TRAIN
    return found


def wait_for_checkpoint(driver: Driver, output: Folder, number: int) -> None:
    """Wait for a checkpoint with at least this number, while the driver runs."""

    def is_there() -> bool:
        assert driver.process.poll() is None, driver.log.read_text()
        return newest(output) >= number

    wait_until(is_there, timeout_seconds=240, what=f"checkpoint {number}")


def only_error(driver: Driver) -> str:
    """Return the only error line of a driver; its output has no traceback."""
    printed = driver.log.read_text()
    assert "Traceback" not in printed
    said = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def wait_for_no_worker() -> None:
    wait_until(lambda: not pids_of(_WORKER), what="the end of the workers")


def check_as_undisturbed(output: Folder, trained: Trained) -> None:
    """Check that the losses (so each epoch saw each video once) and the model are the same."""
    for epoch, expected in zip(history(output), history(trained.output), strict=True):
        assert {name: epoch[name] for name in _MEASURED} == pytest.approx(
            {name: expected[name] for name in _MEASURED}, abs=1e-6
        )
        assert round(epoch["samples_per_second"] * epoch["seconds"]) == _NUM_TRAIN
    model, expected_model = (
        safetensors.torch.load(folder.read("model/model.safetensors")) for folder in (output, trained.output)
    )
    assert all(torch.allclose(model[name], expected_model[name], atol=1e-5) for name in expected_model)


def tear(output: Folder, number: int) -> None:
    """Cut off the end of a checkpoint's weights."""
    name = f"checkpoints/{number:06d}/model.safetensors"
    replace_object(output, name, output.read(name)[:-100])


@pytest.mark.slow
def test_killed_in_an_epoch_then_torn(trained: Trained, bucket: str, start_driver: StartDriver) -> None:
    output = Folder(f"{bucket}/model")
    config = train_config(trained.embeddings, output, checkpoint=_EVERY_STEP)
    driver = start_driver(config, job="train")
    wait_for_checkpoint(driver, output, 10)
    driver.kill()
    wait_for_no_worker()
    killed = middle(output)
    assert killed.seen.sum() == killed.state["num_videos"]
    tear(output, killed.number)
    driver = start_driver(config, job="train")
    assert driver.wait() == 0, driver.log.read_text()
    assert f"checkpoint {killed.number - 1}, epoch " in driver.log.read_text()
    check_as_undisturbed(output, trained)


@pytest.mark.nightly
def test_stopped_then_killed_then_damaged(trained: Trained, bucket: str, start_driver: StartDriver) -> None:
    output = Folder(f"{bucket}/model")
    config = train_config(trained.embeddings, output, checkpoint=_EVERY_STEP)
    driver = start_driver(config, job="train")
    wait_for_checkpoint(driver, output, 10)
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    printed = driver.log.read_text()
    assert printed.splitlines()[-1].startswith("stopped: ")
    assert "Traceback" not in printed
    wait_for_no_worker()
    stopped = middle(output)

    driver = start_driver(config, job="train")
    wait_for_checkpoint(driver, output, max(stopped.number, _PER_EPOCH) + 10)
    driver.kill()
    assert f"resuming from checkpoint {stopped.number}, epoch {stopped.state['epoch'] + 1}" in driver.log.read_text()
    wait_for_no_worker()
    killed = middle(output)
    assert killed.seen.sum() == killed.state["num_videos"]

    replace_object(output, f"checkpoints/{killed.number:06d}/complete.json", None)
    tear(output, killed.number - 1)
    driver = start_driver(config, job="train")
    assert driver.wait() == 0, driver.log.read_text()
    assert f"resuming from checkpoint {killed.number - 2}, epoch " in driver.log.read_text()
    check_as_undisturbed(output, trained)


@pytest.mark.nightly
def test_a_killed_worker_ends_the_run_or_is_restarted(trained: Trained, bucket: str, start_driver: StartDriver) -> None:
    output = Folder(f"{bucket}/model")

    def start(max_failures: int) -> Driver:
        resources = {"use_gpu": False, "max_failures": max_failures}
        config = train_config(trained.embeddings, output, checkpoint=_EVERY_STEP, resources=resources)
        return start_driver(config, job="train")

    driver = start(0)
    wait_for_checkpoint(driver, output, 10)
    assert kill_one(_WORKER)
    assert driver.wait() == 1
    only_error(driver)
    first = middle(output)

    driver = start(1)
    wait_for_checkpoint(driver, output, first.number + _PER_EPOCH)
    assert kill_one(_WORKER)
    assert driver.wait() == 0, driver.log.read_text()
    printed = driver.log.read_text()
    assert "workers were restarted from checkpoint " in printed
    check_as_undisturbed(output, trained)


@pytest.mark.nightly
def test_a_disk_that_is_full_until_there_is_room(trained: Trained, tmp_path: Path, start_driver: StartDriver) -> None:
    with memory_disk(tmp_path / "disk") as disk:
        output = Folder(str(disk.path / "model"))
        resources = {"use_gpu": False, "max_failures": 0}
        config = train_config(trained.embeddings, output, checkpoint=_EVERY_STEP, resources=resources)
        disk.resize(_FIRST_KB)
        driver = start_driver(config, job="train")
        assert driver.wait() == 1
        said = only_error(driver)
        assert "No space left on device" in said
        wait_for_no_worker()
        assert Checkpoints(output).latest() is not None

        disk.resize(_ENOUGH_KB)
        driver = start_driver(config, job="train")
        assert driver.wait() == 0, driver.log.read_text()
        assert "resuming from checkpoint " in driver.log.read_text()
        check_as_undisturbed(output, trained)


@pytest.mark.nightly
def test_one_of_two_workers_is_killed(trained: Trained, bucket: str, start_driver: StartDriver) -> None:
    """Two workers share videos that do not fit into their memory, so they read them again in every epoch."""
    output = Folder(f"{bucket}/model")
    config = train_config(
        trained.embeddings,
        output,
        optimizer={"epochs": 8, "batch_size": 1},
        data={"cache_bytes": 1500},
        checkpoint={"minutes": 1e-6, "keep": 1000},
        resources={"use_gpu": False, "num_workers": 2},
    )
    driver = start_driver(config, job="train")
    wait_for_checkpoint(driver, output, 4)
    assert kill_one(_WORKER)
    assert driver.wait() == 0, driver.log.read_text()
    assert "workers were restarted from checkpoint " in driver.log.read_text()
    epochs = history(output)
    assert [round(epoch["samples_per_second"] * epoch["seconds"]) for epoch in epochs] == [_NUM_TRAIN] * 8
    counts = []
    for number in range(newest(output) + 1):
        if found := Checkpoints(output).read(number):  # None: the worker died while putting it
            counts.append(found.state["num_videos"])
            assert found.seen.sum() == counts[-1]  # no video counts twice
    assert any(0 < count < _NUM_TRAIN for count in counts)
    accuracy, expected = (max(epoch["accuracy"] for epoch in history(folder)) for folder in (output, trained.output))
    assert accuracy == pytest.approx(expected, abs=0.15)
