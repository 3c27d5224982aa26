"""A convolution or linear layer with bias, addition and ReLU, in one kernel where there is one.

At inference a third of the backbone's time goes into passes that only add or clip, and on a single
thread torch has a slow path for 1x1 convolutions of one image. oneDNN does all in one pass, and
multiplies the encoder's large matrices in four fifths of the time of torch's BLAS. This file alone
calls torch's private operators for oneDNN, those that torch's compiler emits. Elsewhere (gradients,
GPUs, fp16 on a CPU, --compile) separate operations run; results agree up to rounding. A convolution
in Winograd form (winograd.py) runs as such.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.models.winograd import WinogradConv2d

# Devices on which a matrix product adds the bias and clips at no cost, so that a 1x1 convolution
# runs as a matrix product.
MATRIX_DEVICES = ("cuda",)


def convolve(
    x: Tensor, conv: nn.Conv2d, *, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(conv(x) + add); addition and ReLU are optional.

    x (B, C, h, w), `add` of the result's shape. Without gradients `add` may be overwritten with the
    result, which saves a pass over the largest maps.
    """
    if isinstance(conv, WinogradConv2d):
        if add is None:
            return conv(x, relu=relu)
        out = conv(x).add_(add)
        return F.relu_(out) if relu else out
    if _is_matrix_product(x, conv):
        return _multiply(x, conv, add, relu)
    if _fused(x):
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if add is None:
            name = "relu" if relu else "none"
            kernel = torch.ops.mkldnn._convolution_pointwise
            return kernel(x, conv.weight, conv.bias, *geometry, name, [], "")
        last = ("relu", [], "") if relu else (None, [], None)
        kernel = torch.ops.mkldnn._convolution_pointwise_.binary
        return kernel(add, x, conv.weight, conv.bias, *geometry, "add", 1.0, *last)
    out = conv(x)
    if add is not None:
        out = out + add
    return F.relu(out) if relu else out


def _is_matrix_product(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether x and conv are a 1x1 convolution on a GPU, without gradients.

    cuBLAS adds the bias and clips in the product's kernel, where cuDNN needs two more kernels and a
    new plan for every shape.
    """
    return (
        x.device.type in MATRIX_DEVICES
        and not torch.is_grad_enabled()
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.groups == 1
        and conv.bias is not None
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _multiply(x: Tensor, conv: nn.Conv2d, add: Tensor | None, relu: bool) -> Tensor:
    """A 1x1 `convolve` as a matrix product; x and the result are dense channels_last."""
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
    """relu(linear(x)), ReLU optional: (..., inputs) -> (..., outputs)."""
    if relu and x.device.type in MATRIX_DEVICES and not torch.is_grad_enabled():
        rows = x.reshape(-1, x.shape[-1])
        out = torch._addmm_activation(linear.bias, rows, linear.weight.t())
        return out.view(*x.shape[:-1], -1)
    if _fused(x):
        name = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, name, [], "")
    out = linear(x)
    return F.relu(out, inplace=True) if relu else out


# Constants, because torch's compiler can't trace these calls.
_HAS_MKLDNN = torch.backends.mkldnn.is_available()
_HAS_BF16 = _HAS_MKLDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fused(x: Tensor) -> bool:
    if torch.is_grad_enabled() or x.device.type != "cpu" or not _HAS_MKLDNN:
        return False
    if torch.compiler.is_compiling():
        return False  # the compiler fuses the plain operations itself
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _HAS_BF16)
