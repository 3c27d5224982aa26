"""Tensors between host and device, without either waiting for the other."""

from __future__ import annotations

import math
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Pixels of the batches under way, and of those decoded ahead: photos of a phone take the most.
MOST_LOCKED_BYTES: Final = 4 << 30


def _locked(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def upload(host: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it: only page-locked memory is copied in passing."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class Slots:
    """Page-locked memory for images, which is used again: locking takes as long as decoding.

    What is decoded into a slot needs no copy on the host before it goes to a GPU. A slot is free
    again when nothing refers to its array any more, so whoever begins a copy keeps the array until
    the copy is over. Unlike torch's cache of such memory it has a bound, and a large slot also
    serves a small image.
    """

    def __init__(
        self, most_bytes: int = MOST_LOCKED_BYTES, lock: Callable[[int], Tensor] = _locked
    ) -> None:
        """`lock(size)` makes a buffer of `size` bytes; all of them have `most_bytes` at most."""
        self._most, self._lock_pages = most_bytes, lock
        self._free: list[Tensor] = []  # by size
        self._returned: deque[Tensor] = deque()  # by a finaliser, which may interrupt any line
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape with any content; plain memory where no more may be locked.

        Safe in threads.
        """
        count = max(1, math.prod(shape))
        buffer = self._take_free(count)
        if buffer is None:
            buffer = self._make(count)
        if buffer is None:
            return np.empty(shape, np.uint8)
        array = buffer[: math.prod(shape)].view(shape).numpy()  # its views have it as their base
        weakref.finalize(array, self._returned.append, buffer).atexit = False
        return array

    def _take_free(self, count: int) -> Tensor | None:
        """The smallest buffer that is large enough."""
        with self._lock:
            while self._returned:
                insort(self._free, self._returned.popleft(), key=len)
            place = bisect_left(self._free, count, key=len)
            return self._free.pop(place) if place < len(self._free) else None

    def _make(self, count: int) -> Tensor | None:
        size = 1 << (count - 1).bit_length()  # torch locks no other sizes
        with self._lock:
            if size > self._most:
                return None
            self._most -= size
        try:
            return self._lock_pages(size)
        except RuntimeError:  # the machine locks no more, or the next call tells what it is
            self._most = 0
            return None


def use_here(tensor: Tensor) -> Tensor:
    """A tensor made under another stream: its memory stays until what is queued here has read it.

    What wrote the tensor must be over (as after `decode_nvjpeg`).
    """
    if tensor.device.type == "cuda":
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


class Download:
    """Tensors on their way to the host; `wait` gives them once they are there."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # page-locked
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
