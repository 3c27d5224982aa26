"""What a device's RuntimeError means: memory ran out, the device is lost, or the code is wrong.

torch raises OutOfMemoryError only where its own allocator was refused. cuBLAS, cuDNN, nvJPEG and
the driver allocate, too, and say so in words of theirs; those words are collected here. A lost
device (a "sticky" error) answers every later call of its process with the same error: nothing
helps but another process.
"""

from __future__ import annotations

import re
from typing import Final

import torch

# Where memory is full cuBLAS and cuDNN can't make their handle (NOT_INITIALIZED), and cuDNN finds
# no plan whose workspace it gets ("unable to find an engine").
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
    """Whether memory of the device or of the host ran out: fewer images may fit."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(_words(error)))


def is_lost_device(error: BaseException) -> bool:
    """Whether every later call of this process to the device will fail, too."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return bool(_LOST.search(_words(error)))


def _words(error: BaseException) -> str:
    """Its text with the libraries' CONSTANT_NAMES as words."""
    return str(error).replace("_", " ")
