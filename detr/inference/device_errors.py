"""The kind of a device's RuntimeError: out of memory, device lost, or neither (a bug).

torch raises OutOfMemoryError only if its own allocator fails. cuBLAS, cuDNN, nvJPEG and the driver
also allocate, and raise RuntimeErrors with their own messages; the messages are matched here. After
a "sticky" CUDA error the device is lost: every later call of the process fails with the same error,
and only a new process can use the device.
"""

from __future__ import annotations

import re
from typing import Final

import torch

# Without free memory cuBLAS and cuDNN can't create a handle (NOT_INITIALIZED), and cuDNN can't
# allocate a workspace ("unable to find an engine").
_MEMORY: Final = re.compile(
    r"out of memory|can't allocate memory|memoryallocation|alloc(ation)? ?fail"
    r"|allocator failure|unable to find an engine|nvjpeg\w* failed: 5\b"
    r"|(cublas|cudnn|cusolver|cusparse) status not initialized",
    re.IGNORECASE,
)
_LOST: Final = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|invalid address space"
    r"|invalid program counter|device-side assert|unspecified launch failure|launch timed out"
    r"|launch failure|hardware stack error|uncorrectable|nvlink error|fallen off the bus"
    r"|(cublas|cudnn|cusolver|nvjpeg) status execution failed|busy or unavailable"
    r"|cuda (driver )?error: unknown error|context is destroyed",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or the host ran out, so that a smaller batch may fit."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(_words(error)))


def is_lost_device(error: BaseException) -> bool:
    """Whether every later call of this process to the device will also fail."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return bool(_LOST.search(_words(error)))


def _words(error: BaseException) -> str:
    """The message, with spaces in the libraries' CONSTANT_NAMES."""
    return str(error).replace("_", " ")
