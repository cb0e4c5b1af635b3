"""Batches of frames to a GPU: the next one arrives while one is computed."""

import numpy as np
import numpy.typing as npt
import torch


class _Slot:
    """Room for one batch on both sides: pinned, so that a copy of it needs no processor, and on the device."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.pinned = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self.frames = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Staging:
    """Two slots filled in turn over a stream of their own; frames uint8, ``shape`` is that of a whole batch."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(shape, device) for _ in range(2)]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which fills the slots with zeros

    def put(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The batch on the device: whole, behind it what an earlier batch left there.

        What is queued on the current stream from here to the next call is all that may read it.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._slots[0].read.record(current)  # everything queued so far, the pass over the last batch with it
        self._slots.reverse()
        slot = self._slots[0]
        slot.arrived.synchronize()  # the batch before the last has left the pinned side
        slot.pinned.numpy()[: len(batch)] = batch
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.read)
            slot.frames[: len(batch)].copy_(slot.pinned[: len(batch)], non_blocking=True)
            slot.arrived.record(self._stream)
        current.wait_event(slot.arrived)
        return slot.frames
