"""How many kernels a piece of the model launches on a GPU, and how many bytes they move.

Counted by what torch dispatches: a call that is no view and makes a tensor is one launch, also
where it only takes memory. It moves its tensor arguments and its results once, and what is known of
hidden passes (`_hidden_bytes`). A reduction in two kernels counts as one: the figures are for
comparing one form of the code with another, under FakeTensorMode as on a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

# Calls that make a tensor and move nothing.
_NO_KERNEL = ("empty", "detach", "_unsafe_view", "new_empty", "lift_fresh", "_reshape_alias")


class Launches(TorchDispatchMode):
    """Use as a context; `device_type` names the device whose calls count."""

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.calls: Counter[str] = Counter()  # by operator
        self.bytes_of: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.calls.values())

    @property
    def bytes(self) -> int:
        return sum(self.bytes_of.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._opname if hasattr(func, "_opname") else str(func)
        if name in ("conv2d", "convolution") and isinstance(out, FakeTensor):
            # As cuDNN leaves it, of which a FakeTensorMode without CUDA doesn't know.
            out = torch.empty_like(out, memory_format=torch.channels_last)
        made = [tensor for tensor in tensors_of(out) if tensor.device.type == self.device_type]
        if made and not func.is_view:
            self.calls[name] += 1
        if made and not func.is_view and not name.startswith(_NO_KERNEL):
            taken = [t for t in tensors_of((args, kwargs)) if t.device.type == self.device_type]
            moved = sum(t.numel() * t.element_size() for t in [*taken, *made])
            self.bytes_of[name] += moved + _hidden_bytes(name, args, made[0])
        return out


def _hidden_bytes(name: str, args: Any, out: Tensor) -> int:
    """What CUDA moves beside: the bias of a convolution is added in a pass of its own, and
    GroupNorm takes its input, and leaves its output, in the other memory layout."""
    size = out.numel() * out.element_size()
    if name in ("conv2d", "convolution") and len(args) > 2 and args[2] is not None:
        return 2 * size
    if name in ("group_norm", "native_group_norm"):
        return 4 * size
    return 0


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


def measured(function: Any, device: torch.device) -> tuple[int, int]:
    """(launches, bytes) of one call."""
    with Launches(device.type) as launches:
        function()
    return launches.count, launches.bytes
