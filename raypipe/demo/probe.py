"""What a classifier that knows no order of time can do: a linear model on the mean of a video's frames."""

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def linear_probe(train: Floats, labels: Ints, others: Floats, *, decay: float = 1e-2) -> Ints:
    """Fit a logistic regression to vectors ``[N, D]`` and class numbers ``[N]``; give those of others ``[M, D]``.

    Vectors are standardised by the training ones; ``decay`` weighs the squared weights against the mean loss.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    inputs, targets = torch.from_numpy((train - mean) / std).float(), torch.from_numpy(labels)
    layer = torch.nn.Linear(inputs.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(inputs), targets) + decay * layer.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        found: Ints = layer(torch.from_numpy((others - mean) / std).float()).argmax(dim=1).numpy()
    return found
