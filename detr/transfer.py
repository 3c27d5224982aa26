"""Asynchronous copies of tensors between host and device, and page-locked memory for images."""

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

# Page-locked memory at most: images of the batches in progress and of those decoded ahead.
MOST_LOCKED_BYTES: Final = 4 << 30


def _locked(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def upload(host: Tensor, device: torch.device) -> Tensor:
    """`host` on `device`; the host does not wait. CUDA needs page-locked memory for that."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class Slots:
    """A bounded pool of page-locked buffers ("slots") for images.

    Slots are used again, because locking memory takes as long as decoding an image. An image that
    is decoded into a slot is copied to a GPU without another copy on the host. A slot becomes free
    when its array is garbage: keep a reference to the array until the copy is over. Unlike torch's
    cache of page-locked memory, this pool has a bound, and a large slot also serves a small image.
    """

    def __init__(
        self, most_bytes: int = MOST_LOCKED_BYTES, lock: Callable[[int], Tensor] = _locked
    ) -> None:
        """`lock(size)` makes a buffer of `size` bytes; all buffers have `most_bytes` at most."""
        self._most, self._lock_pages = most_bytes, lock
        self._free: list[Tensor] = []  # by size
        self._returned: deque[Tensor] = deque()  # by a finaliser, which may interrupt any line
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An uninitialised array, page-locked while the bound allows it. Thread-safe."""
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
            index = bisect_left(self._free, count, key=len)
            return self._free.pop(index) if index < len(self._free) else None

    def _make(self, count: int) -> Tensor | None:
        size = 1 << (count - 1).bit_length()  # torch locks powers of two only
        with self._lock:
            if size > self._most:
                return None
            self._most -= size
        try:
            return self._lock_pages(size)
        except RuntimeError:  # no more memory can be locked; another CUDA error shows later
            self._most = 0
            return None


def use_here(tensor: Tensor) -> Tensor:
    """Let the current CUDA stream read a tensor of another stream; returns the tensor.

    The tensor's memory is kept until the work queued on the current stream is done. The work that
    writes the tensor must be done before (as after `decode_nvjpeg`).
    """
    if tensor.device.type == "cuda":
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


class Download:
    """An asynchronous copy of tensors to the host; `wait` returns the host tensors."""

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
