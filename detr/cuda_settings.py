"""Torch's CUDA settings for this process, and the reason where torch can't use the GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

_DEVICE_FILES: Final = Path("/dev")


def settle_cuda(dtype: torch.dtype) -> None:
    """Set torch's CUDA options for a model of `dtype`, for inference and training alike.

    Call this before the model is built: torch reads the allocator's setting at the first
    allocation. Images of many sizes would fragment device memory, so segments are expandable.

    cuDNN attention is off: on Hopper torch prefers it, but cuDNN plans again (50 to 400 ms) for
    every new shape, and photos have hundreds of shapes. TF32 is off for float32, because TF32
    keeps 10 bits of mantissa. The older names of the TF32 switches are used on purpose: torch's
    compiler reads them, and they can't be read after the newer ones (`fp32_precision`) are set.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def why_no_gpu() -> str | None:
    """An error message if this machine has an NVIDIA GPU that torch can't use; else None.

    Also None if `CUDA_VISIBLE_DEVICES` hides all GPUs, as Ray sets it for tasks without a GPU.
    """
    has_gpu = any(_DEVICE_FILES.glob("nvidia[0-9]*"))
    if not has_gpu or _hidden() or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        cause = f"torch {torch.__version__} is a build for CPUs: install one for CUDA"
    else:
        cause = (
            f"torch {torch.__version__} needs CUDA {torch.version.cuda}, and says: {_complaint()}: "
            "update the driver, or install torch for an older CUDA"
        )
    return f"this machine has an NVIDIA GPU, but {cause}; --device cpu works without"


def _hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.split(",")[0].strip() in ("", "-1", "NoDevFiles")


def _complaint() -> str:
    """The first sentence of torch's error about the driver."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
    return "no GPU is found"
