"""How torch computes on a GPU, and why it may not: settings of the process, and of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import torch

_DEVICE_FILES: Final = Path("/dev")


def settle_cuda(dtype: torch.dtype) -> None:
    """For a model of `dtype`, in inference and in training, before it is built.

    Photos of many sizes would leave the device's memory in pieces: it is taken in segments that
    grow (read by torch at the first allocation).

    Attention is left to FlashAttention and its like: on Hopper torch prefers cuDNN's, which plans
    anew (50 to 400 ms) for every shape, and photos have hundreds of shapes. float32 means float32:
    TF32 keeps 10 bits of mantissa. Set by torch's older names, for after the newer ones
    (`fp32_precision`) the older can't be read any more, as torch's compiler does.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def why_no_gpu() -> str | None:
    """A sentence where this machine has an NVIDIA GPU that torch can't use; else None.

    None also where the GPUs are hidden from this process, as Ray hides them from its tasks.
    """
    there = any(_DEVICE_FILES.glob("nvidia[0-9]*"))
    if not there or _hidden() or torch.cuda.is_available():
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
    """What torch says of the driver, without the advice that follows."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
    return "no GPU is found"
