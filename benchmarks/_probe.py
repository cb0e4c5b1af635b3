"""What a classifier of sequences is held against: a linear model, and the nearest neighbour, on mean-pooled vectors."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, normalize

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of half the squared weights, beside the mean loss
_MAX_STEPS = 300
Frames = Mapping[str, npt.NDArray[np.float32]]


def linear_probe(
    frames: Frames,
    truth: Mapping[str, str],
    *,
    train: Sequence[str],
    validation: Sequence[str],
    test: Sequence[str],
    refit: bool = False,
) -> dict[str, str]:
    """Logistic regression, full-batch by L-BFGS: the labels that it gives to ``test``.

    It learns from ``train`` alone, and ``validation`` chooses the penalty, as it chooses a classifier's epoch. With
    ``refit`` it learns with that penalty once more, from both.
    """
    names = sorted({truth[video_id] for video_id in train})
    fits = {penalty: _fit(frames, truth, train, names, penalty=penalty) for penalty in _PENALTIES}
    expected = _numbers(truth, validation, names)

    def score(penalty: float) -> tuple[float, float]:
        logits = fits[penalty](validation)
        return float((logits.argmax(dim=1) == expected).double().mean()), -float(cross_entropy(logits, expected))

    penalty = max(_PENALTIES, key=score)
    logits_of = _fit(frames, truth, [*train, *validation], names, penalty=penalty) if refit else fits[penalty]
    return {video_id: names[number] for video_id, number in zip(test, logits_of(test).argmax(dim=1), strict=True)}


def nearest_neighbour(
    frames: Frames, truth: Mapping[str, str], *, train: Sequence[str], test: Sequence[str]
) -> dict[str, str]:
    """The label of the training video of the highest cosine."""
    known, asked = (normalize(_means(frames, ids), dim=1) for ids in (train, test))
    nearest = (asked @ known.T).argmax(dim=1).tolist()
    return {video_id: truth[train[at]] for video_id, at in zip(test, nearest, strict=True)}


def _fit(
    frames: Frames, truth: Mapping[str, str], ids: Sequence[str], names: Sequence[str], *, penalty: float
) -> Callable[[Sequence[str]], torch.Tensor]:
    """Learn from some videos; gives what makes logits ``[V, C]`` of others."""
    inputs, targets = _means(frames, ids), _numbers(truth, ids, names)
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-4)
    inputs = (inputs - mean) / std
    layer = torch.nn.Linear(inputs.shape[1], len(names), dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(layer(inputs), targets) + penalty / 2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda others: layer((_means(frames, others) - mean) / std).detach()


def _means(frames: Frames, ids: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(np.stack([frames[video_id].mean(axis=0, dtype=np.float64) for video_id in ids]))


def _numbers(truth: Mapping[str, str], ids: Sequence[str], names: Sequence[str]) -> torch.Tensor:
    return torch.tensor([names.index(truth[video_id]) for video_id in ids])
