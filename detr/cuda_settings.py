"""How torch computes on a GPU: settings of the process, made once before a model runs there."""

from __future__ import annotations

import torch


def settle_cuda(dtype: torch.dtype) -> None:
    """For a model of `dtype`, in inference and in training.

    Attention is left to FlashAttention and its like: on Hopper torch prefers cuDNN's, which plans
    anew (50 to 400 ms) for every shape, and photos have hundreds of shapes. float32 means float32:
    TF32 keeps 10 bits of mantissa. Set by torch's older names, for after the newer ones
    (`fp32_precision`) the older can't be read any more, as torch's compiler does.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
