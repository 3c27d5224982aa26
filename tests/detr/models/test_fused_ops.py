"""The fused convolution against its three plain steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr.models.fused_ops import _is_matrix_product, apply_linear, convolve


def plain(x, conv, add, relu):
    out = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    out = out if add is None else out + add
    return out.relu() if relu else out


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
    ],
)
def test_it_is_convolution_then_sum_then_relu(conv, grad, added, relu):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 11)
    add = torch.randn_like(conv(x).detach()) if added else None
    x_before, add_before = x.clone(), None if add is None else add.clone()
    with torch.set_grad_enabled(grad):
        found = convolve(x, conv, add=add, relu=relu)
    assert found.requires_grad == grad
    assert torch.allclose(found, plain(x_before, conv, add_before, relu), atol=1e-5)
    assert torch.equal(x, x_before)
    if add is not None and add_before is not None and grad:  # else it may hold the result
        assert torch.equal(add, add_before)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_a_linear_map_then_relu(dtype, grad, relu):
    torch.manual_seed(0)
    x, linear = torch.randn(2, 7, 24, dtype=dtype), nn.Linear(24, 40, dtype=dtype)
    assert linear.bias is not None
    expected = x.double() @ linear.weight.double().T + linear.bias.double()
    with torch.set_grad_enabled(grad):
        found = apply_linear(x, linear, relu=relu)
    assert (found.dtype, found.requires_grad) == (dtype, grad)
    close = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(found.double(), expected.relu() if relu else expected, atol=close)


@torch.no_grad()
def test_bf16():
    x, conv = torch.randn(1, 8, 9, 11).bfloat16(), nn.Conv2d(8, 12, 3, padding=1).bfloat16()
    expected = plain(x.float(), conv.float(), None, True)
    found = convolve(x, conv.bfloat16(), relu=True)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.05)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_1x1_convolution_as_a_matrix_product(monkeypatch, dtype, added, relu):
    """What a GPU runs, here on the CPU."""
    monkeypatch.setattr("detr.models.fused_ops.MATRIX_DEVICES", ("cpu",))
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 1).to(dtype)
    x = torch.randn(2, 8, 9, 11, dtype=dtype).contiguous(memory_format=torch.channels_last)
    add = torch.randn(2, 12, 9, 11, dtype=dtype) if added else None
    add = None if add is None else add.contiguous(memory_format=torch.channels_last)
    expected = plain(x.float(), conv.float(), None if add is None else add.float(), relu)
    conv = conv.to(dtype)
    assert _is_matrix_product(x, conv)
    found = convolve(x, conv, add=add, relu=relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05)
    for other in (
        nn.Conv2d(8, 12, 1, stride=2),
        nn.Conv2d(8, 12, 3),
        nn.Conv2d(8, 12, 1, bias=False),
    ):
        assert not _is_matrix_product(x, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_linear_map_then_relu_as_one_product(monkeypatch, dtype):
    """What a GPU runs, here on the CPU."""
    x, linear = torch.randn(2, 7, 24).to(dtype), nn.Linear(24, 40).to(dtype)
    expected = (x.double() @ linear.weight.double().T + linear.bias.double()).relu()
    monkeypatch.setattr("detr.models.fused_ops.MATRIX_DEVICES", ("cpu",))
    found = apply_linear(x, linear, relu=True)
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(found.double(), expected, atol=close)
