"""One convolution with what follows it: bias, an addition, ReLU; in one kernel where there is one.

At inference a third of the backbone's time goes into passes that only add or clip, and on a single
thread torch sends 1x1 convolutions of one image to a slow path. oneDNN does the whole in one pass;
torch reaches it through the operator that its own compiler emits, which this file alone touches.
Elsewhere (gradients, GPUs, fp16 on a CPU, --compile) the plain steps run; the results agree up to
rounding. Where a convolution was replaced by its Winograd form, that runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.winograd import WinogradConv2d


def convolve(
    x: Tensor, conv: nn.Conv2d, *, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(conv(x) + add), each of the last two only if asked for.

    x (B, C, h, w), add of the result's shape. Neither is changed.
    """
    if isinstance(conv, WinogradConv2d):
        if add is None:
            return conv(x, relu=relu)
        out = conv(x).add_(add)
        return F.relu_(out) if relu else out
    if _fused(x):
        where = (conv.padding, conv.stride, conv.dilation, conv.groups)
        kernel = torch.ops.mkldnn._convolution_pointwise
        if add is None:
            name = "relu" if relu else "none"
            return kernel(x, conv.weight, conv.bias, *where, name, [], "")
        last = ("relu", [], "") if relu else (None, [], None)
        return kernel.binary(x, add, conv.weight, conv.bias, *where, "add", 1.0, *last)
    out = conv(x)
    if add is not None:
        out = out + add
    return F.relu(out) if relu else out


# Asked once: torch's compiler can't trace the questions.
_HAS_MKLDNN = torch.backends.mkldnn.is_available()
_HAS_BF16 = _HAS_MKLDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fused(x: Tensor) -> bool:
    if torch.is_grad_enabled() or x.device.type != "cpu" or not _HAS_MKLDNN:
        return False
    if torch.compiler.is_compiling():
        return False  # the compiler joins the plain steps in its own way
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _HAS_BF16)
