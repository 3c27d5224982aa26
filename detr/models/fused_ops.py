"""One linear step with what follows it: bias, an addition, ReLU; in one kernel where there is one.

At inference a third of the backbone's time goes into passes that only add or clip, and on a single
thread torch sends 1x1 convolutions of one image to a slow path. oneDNN does the whole in one pass,
and multiplies the encoder's large matrices in four fifths of the time that torch's BLAS takes;
torch reaches it through the operator that its own compiler emits, which this file alone touches.
Elsewhere (gradients, GPUs, fp16 on a CPU, --compile) the plain steps run; the results agree up to
rounding. Where a convolution was replaced by its Winograd form, that runs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.models.winograd import WinogradConv2d

# Where a product of matrices adds the bias and clips at no cost, and 1x1 convolutions are products.
MATRIX_DEVICES = ("cuda",)


def convolve(
    x: Tensor, conv: nn.Conv2d, *, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(conv(x) + add), each of the last two only if asked for.

    x (B, C, h, w), add of the result's shape. Outside training `add` is used up: its memory may
    hold the result, which saves a pass over the largest maps.
    """
    if isinstance(conv, WinogradConv2d):
        if add is None:
            return conv(x, relu=relu)
        out = conv(x).add_(add)
        return F.relu_(out) if relu else out
    if _is_matrix_product(x, conv):
        return _multiply(x, conv, add, relu)
    if _fused(x):
        where = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if add is None:
            name = "relu" if relu else "none"
            kernel = torch.ops.mkldnn._convolution_pointwise
            return kernel(x, conv.weight, conv.bias, *where, name, [], "")
        last = ("relu", [], "") if relu else (None, [], None)
        onto = torch.ops.mkldnn._convolution_pointwise_.binary
        return onto(add, x, conv.weight, conv.bias, *where, "add", 1.0, *last)
    out = conv(x)
    if add is not None:
        out = out + add
    return F.relu(out) if relu else out


def _is_matrix_product(x: Tensor, conv: nn.Conv2d) -> bool:
    """A 1x1 convolution on a GPU: cuBLAS adds the bias and clips in the product's own pass, for
    which cuDNN takes two more, and has no plan to make for each new shape."""
    return (
        x.device.type in MATRIX_DEVICES
        and not torch.is_grad_enabled()
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is not None
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _multiply(x: Tensor, conv: nn.Conv2d, add: Tensor | None, relu: bool) -> Tensor:
    """`convolve` of a 1x1 convolution by its matrix; x and the result are dense channels_last."""
    batch, channels, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (B * h * w, C)
    weight = conv.weight.flatten(1)  # (K, C)
    assert conv.bias is not None
    if relu and add is None:
        out = torch._addmm_activation(conv.bias, cells, weight.t())
    else:
        out = F.linear(cells, weight, conv.bias)
    out = out.view(batch, height, width, -1).permute(0, 3, 1, 2)
    if add is not None:
        out = out.add_(add)
        return out.relu_() if relu else out
    return out


def apply_linear(x: Tensor, linear: nn.Linear, *, relu: bool = False) -> Tensor:
    """relu(linear(x)), the last only if asked for. x (..., inputs) -> (..., outputs)."""
    if relu and x.device.type in MATRIX_DEVICES and not torch.is_grad_enabled():
        rows = x.reshape(-1, x.shape[-1])
        out = torch._addmm_activation(linear.bias, rows, linear.weight.t())
        return out.view(*x.shape[:-1], -1)
    if _fused(x):
        name = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, name, [], "")
    out = linear(x)
    return F.relu(out, inplace=True) if relu else out


# Asked once: torch's compiler can't trace the questions.
_HAS_MKLDNN = torch.backends.mkldnn.is_available()
_HAS_BF16 = _HAS_MKLDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fused(x: Tensor) -> bool:
    if torch.is_grad_enabled() or x.device.type != "cpu" or not _HAS_MKLDNN:
        return False
    if torch.compiler.is_compiling():
        return False  # the compiler joins the plain steps in its own way
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _HAS_BF16)
