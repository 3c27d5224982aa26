"""Tensors between host and device, without either waiting for the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it: only page-locked memory is copied in passing."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


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
