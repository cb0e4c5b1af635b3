"""Train with two workers, each in its own process: ``python -m support.train_team FOLDER``.

Everything in ``train/test_loop.py`` that needs two processes runs here at once, because starting them takes the most
time.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing

import support.train_loops as loops
from raypipe.jobs.train.loop import Loop
from raypipe.jobs.train.ranker.next_video_task import Sampling
from raypipe.models.classifier_files import digests
from support.ranker_loops import network_of, ranker_loop, walks

WALKS = walks(40)
TRAIN, VALIDATION = loops.labelled_videos(29), loops.labelled_videos(11, seed=1)
PROBE = loops.probe_of(TRAIN)
CASES: dict[str, dict[str, Any]] = {
    "cached": {"shares": [range(20), range(20, 29)], "cache_bytes": [10**6, 10**6]},
    "streamed": {"shares": [range(20), range(20, 29)], "cache_bytes": [200, 200]},  # differently many windows
    "mixed": {"shares": [range(9), range(9, 29)], "cache_bytes": [10**6, 300]},
    "idle": {"shares": [range(0), range(29)], "cache_bytes": [10**6, 10**6]},
}


UNEQUAL, EMPTY = (range(8), range(8, 12)), (range(12), range(0))
STEPS = {"unequal": UNEQUAL, "empty": EMPTY, "masked_frame": UNEQUAL, "probe": UNEQUAL}


class Cut(BaseException):
    """Stops both workers."""


def gradients(loop: Loop) -> dict[str, list[float]]:
    """Run an epoch of one step, and return the gradients that the optimizer gets."""
    found: dict[str, list[float]] = {}

    def keep(*_: object) -> None:
        for name, parameter in loop.model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.flatten().tolist()

    loop._optimizer.register_step_pre_hook(keep)
    loop._run_epoch()
    return found


def one_step(folder: Path, share: range, *, case: str) -> dict[str, list[float]]:
    """Return the gradients that a worker's optimizer gets in a step over all 12 samples; float64 except the loss."""
    probe = PROBE if case == "probe" else None
    model = loops.probed_model(probe) if probe else loops.make_model(classifies=case != "masked_frame")
    settings = loops.settings_of(12, 0, batch_size=12, max_grad_norm=1e9, masked_fraction=0.999)
    shaken = loops.shaken(model).double()
    return gradients(loops.make_loop(settings, folder, train=TRAIN, share=share, model=shaken, probe=probe))


def probe_scores(folder: Path, share: range | None) -> dict[str, float]:
    """Return the scores of a GPT-2 next to a probe, as compared with the probe alone."""
    settings = loops.settings_of(len(TRAIN), len(VALIDATION))
    model = loops.probed_model(PROBE)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"validation": VALIDATION, "validation_share": share, "model": model, "probe": PROBE}
    return loops.make_loop(settings, folder, train=TRAIN, **options).evaluate().metrics()


def training(folder: Path, case: dict[str, Any], rank: int, **options: Any) -> Loop:  # noqa: ANN401 - passed on
    """Return a worker's loop."""
    settings = loops.settings_of(
        len(TRAIN), len(VALIDATION), batch_size=3, accumulate=2, frame_dropout=0.2, minutes=options.pop("minutes", 1e9)
    )
    validation = [range(7), range(7, 11)] if case is not CASES["idle"] else [range(11), range(0)]
    return loops.make_loop(
        settings,
        folder,
        train=TRAIN,
        validation=VALIDATION,
        share=case["shares"][rank],
        validation_share=validation[rank],
        model=loops.make_model(dropout=0.1),
        cache_bytes=case["cache_bytes"][rank],
        rows=2,
        **options,
    )


def epochs(folder: Path, case: dict[str, Any], rank: int) -> dict[str, Any]:
    """Train; return the samples that this worker saw in each epoch, its metrics, and a digest of its final weights."""
    loop = training(folder, case, rank)
    seen: list[list[int]] = [[], [], []]
    feed = loop.task.batch

    def batch(window: Any, positions: Any) -> Any:  # noqa: ANN401 - passed through
        if loop.model.training:
            seen[loop.state.epoch] += [window.index[at] for at in positions]
        return feed(window, positions)

    loop.task.batch = batch  # type: ignore[method-assign]
    loop.standardise()
    state = loop.run()
    weights = {name: tensor.numpy().tobytes() for name, tensor in loop.model.state_dict().items()}
    digest = hashlib.sha256(digests(weights)).hexdigest()
    if rank == 0:
        torch.save(loop.model.state_dict(), folder / "weights.pt")
    return {"seen": seen, "measured": loops.untimed(state.history)[-1], "digest": digest}


def cut_off(folder: Path, case: dict[str, Any], rank: int) -> list[list[dict[str, Any]]]:
    """Return the history of a training, and of one that was interrupted in the middle of its second epoch."""
    whole = training(folder / "whole", case, rank)
    whole.standardise()
    history = loops.untimed(whole.run().history)
    first = training(folder / "cut", case, rank)
    step, last = first._step, history[0]["step"] + 2

    def step_or_cut(*given: Any) -> bool:  # noqa: ANN401 - passed through
        if first.state.step == last:
            first._checkpoint(is_best=False)
            raise Cut
        return step(*given)

    first._step = step_or_cut  # type: ignore[method-assign]
    first.standardise()
    try:
        first.run()
    except Cut:
        distributed.barrier()
    again = training(folder / "cut", case, rank)
    found = again._checkpoints.latest()
    assert found is not None
    assert found.state["step"] == last
    again.resume(found)
    return [history, loops.untimed(again.run().history)]


def ranker_step(folder: Path, share: range | None) -> dict[str, list[float]]:
    """Return the gradients of a ranker's first step over all samples, which is compared with every watched video."""
    sampling = Sampling(num_negatives=1, full_softmax_below=1000, mean_targets=3.0)
    network = network_of(WALKS, sampling=sampling, dropout=0.0, id_dropout=0.0)
    options: dict[str, Any] = {"batch_size": 64, "max_grad_norm": 1e9}
    loop = ranker_loop(folder, WALKS, network=network, shares=(share, None), **options)
    return gradients(loop)


def ranker_scores(folder: Path, share: range | None) -> dict[str, float]:
    """Return the scores of a ranker with its first weights, which are the same everywhere."""
    loop = ranker_loop(folder, WALKS, shares=(None, share))
    return loop.evaluate().metrics()


def work(rank: int, folder: Path) -> None:
    """Run one of the two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {
        f"gradient {case}": one_step(folder, shares[rank], case=case) for case, shares in STEPS.items()
    }
    found["scores probe"] = probe_scores(folder, [range(7), range(7, 11)][rank])
    found["gradient next_video"] = ranker_step(folder, [range(20), range(20, 40)][rank])
    found["scores next_video"] = ranker_scores(folder, [range(30), range(30, 40)][rank])
    for name, case in CASES.items():
        (folder / name).mkdir(exist_ok=True)
        found[name] = epochs(folder / name, case, rank)
    found["resumed"] = cut_off(folder / "resumed", CASES["cached"], rank)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def main(folder: Path) -> None:
    """Run both workers, then pair their results with those of a single process."""
    torch.set_num_threads(1)
    multiprocessing.start_processes(work, args=(folder,), nprocs=2, start_method="fork")
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2))
    found: dict[str, Any] = {"resumed": first["resumed"]}
    for case in STEPS:
        alone = one_step(folder, range(12), case=case)
        found[f"gradient {case}"] = [alone, first[f"gradient {case}"], second[f"gradient {case}"]]
    found["gradient next_video"] = [
        ranker_step(folder, None),
        first["gradient next_video"],
        second["gradient next_video"],
    ]
    found["scores probe"] = [first["scores probe"], second["scores probe"], probe_scores(folder, None)]
    found["scores next_video"] = [first["scores next_video"], second["scores next_video"], ranker_scores(folder, None)]
    for name in CASES:
        found[f"seen {name}"] = [a + b for a, b in zip(first[name]["seen"], second[name]["seen"], strict=True)]
        found[f"digest {name}"] = [first[name]["digest"], second[name]["digest"]]
        settings = loops.settings_of(len(TRAIN), len(VALIDATION), batch_size=3)
        alone_loop = loops.make_loop(settings, folder, train=TRAIN, validation=VALIDATION)
        alone_loop.model.load_state_dict(torch.load(folder / name / "weights.pt"))
        scores = alone_loop.evaluate()
        expected = scores.metrics()
        found[f"measured {name}"] = [{key: first[name]["measured"][key] for key in expected}, expected]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main(Path(sys.argv[1]))
