"""The workers of one training, as numbers to add up: torch.distributed where there are several."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed


class Team:
    """This worker among its like; every method but the properties is called by all of them together."""

    def __init__(self, *, device: torch.device) -> None:
        self.device = device
        self._alone = not distributed.is_initialized()
        self.rank = 0 if self._alone else distributed.get_rank()
        self.size = 1 if self._alone else distributed.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    def sum(self, numbers: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Add up each worker's numbers, of one shape."""
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def max(self, number: float) -> float:
        """The largest of the workers' numbers."""
        return float(self._reduce([number], distributed.ReduceOp.MAX)[0])

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 - what the first worker says
        """What the first worker says."""
        return bool(self._reduce([float(flag and self.leads)], distributed.ReduceOp.SUM)[0])

    def gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - whatever a worker has, through torch's own pickling
        """Every worker's item, on every worker."""
        if self._alone:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def _reduce(self, numbers: npt.ArrayLike, operation: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401 - torch's own
        array = np.asarray(numbers, dtype=np.float64)
        if self._alone:
            return array
        tensor = torch.from_numpy(array.copy()).to(self.device)
        distributed.all_reduce(tensor, op=operation)
        reduced: npt.NDArray[np.float64] = tensor.cpu().numpy()
        return reduced
