"""Collective operations of the workers of one training: torch.distributed if there are several."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed


class Collective:
    """This worker among the others. All workers must call the same method at the same time, properties excepted."""

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        is_initialized = distributed.is_initialized()
        self.rank = distributed.get_rank() if is_initialized else 0
        self.size = distributed.get_world_size() if is_initialized else 1

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0

    def sum(self, numbers: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Add up the numbers of all workers, which have the same shape."""
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def max(self, number: float) -> float:
        """Return the largest number of any worker."""
        return float(self._reduce([number], distributed.ReduceOp.MAX)[0])

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - whatever a worker has, through torch's own pickling
        """Return the items of all workers, on every worker."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def _reduce(self, numbers: npt.ArrayLike, operation: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401 - torch's own
        array = np.asarray(numbers, dtype=np.float64)
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array.copy()).to(self.device)
        distributed.all_reduce(tensor, op=operation)
        reduced: npt.NDArray[np.float64] = tensor.cpu().numpy()
        return reduced
