"""The mask head's shortcuts against upstream's plain form."""

import pytest
import torch
import torch.nn.functional as F

from detr.config import DetrConfig
from detr.models.mask_head import (
    AttentionMaps,
    MaskHead,
    enlarge_convolve,
    one_channel_convolve,
    phase_kernels,
)
from tests.detr import plain

CONFIG = DetrConfig(
    block="basic", widths=(8, 12, 16, 24), hidden_dim=64, nheads=4, mask_groups=4, num_queries=5
)


@pytest.mark.parametrize("size", [(8, 10), (7, 10), (8, 9), (7, 9), (1, 1), (2, 1), (1, 5), (3, 3)])
def test_enlarging_and_convolving_at_once_is_the_plain_pair(size):
    torch.manual_seed(0)
    rows, columns = size
    x = torch.randn(2, 3, (rows + 1) // 2, (columns + 1) // 2, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    assert torch.allclose(enlarge_convolve(x, weight, size), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 10), (1, 1), (1, 7), (5, 1)])
@torch.no_grad()
def test_one_channel_by_nine_taps_is_the_plain_convolution(size):
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(16, 1, 3, padding=1), torch.randn(3, 16, *size)
    assert torch.allclose(one_channel_convolve(x, conv), conv(x)[:, 0], atol=1e-6)


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (11, 13)])  # DC5 keeps the size
def test_other_ratios_take_the_plain_way(size):
    x, weight = torch.randn(1, 2, 4, 5), torch.randn(3, 2, 3, 3)
    expected = F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    assert torch.equal(enlarge_convolve(x, weight, size), expected)


def test_gradients_are_those_of_the_plain_pair():
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    plainly = F.conv2d(F.interpolate(x, size=(5, 8), mode="nearest"), weight, padding=1)
    chosen = torch.randn_like(plainly)
    expected = torch.autograd.grad((plainly * chosen).sum(), (x, weight))
    found = torch.autograd.grad((enlarge_convolve(x, weight, (5, 8)) * chosen).sum(), (x, weight))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@torch.no_grad()
def test_attention_maps_are_upstreams_and_sum_to_one_over_heads_and_cells():
    torch.manual_seed(0)
    maps = AttentionMaps(CONFIG)
    query, memory = torch.randn(2, 5, 64), torch.randn(2, 12, 64)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[1, 9:] = True
    expected = plain.attention_maps(maps, query, memory, padding)
    image_index, query_index = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
    found = maps(query[image_index, query_index], memory, padding, image_index)
    assert torch.allclose(found, expected[image_index, query_index], atol=1e-6)
    assert torch.allclose(found.sum((1, 2)), torch.ones(3))
    assert found[0, :, 9:].abs().max() == 0


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_shares_per_image_and_per_query_add_up_to_the_plain_head(batch):
    torch.manual_seed(0)
    head = MaskHead(CONFIG)
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    projected = torch.randn(batch, 64, 3, 4)
    pyramid = [
        torch.randn(batch, channels, *size)
        for channels, size in ((16, (5, 8)), (12, (10, 15)), (8, (20, 29)))
    ]
    attention = torch.rand(batch, 5, 4, 3, 4)
    expected = plain.mask_head(head, projected, attention, pyramid)
    image_index, query_index = torch.tensor([batch - 1, 0, 0]), torch.tensor([4, 0, 3])
    shares = head.prepare(projected, pyramid)
    found = head(shares, attention[image_index, query_index], image_index)
    assert found.shape == (3, 20, 29)
    wanted = expected[image_index, query_index]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@torch.no_grad()
def test_scaling_attention_leaves_the_image_channels():
    head = MaskHead(CONFIG)
    before = head.convolution("lay1").weight.clone()
    head.scale_attention(200.0)
    after = head.convolution("lay1").weight
    assert torch.equal(after[:, :64], before[:, :64])
    assert torch.equal(after[:, 64:], before[:, 64:] * 200)


@torch.no_grad()
def test_kernels_that_are_kept_change_no_bit():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 5, 3, 3), torch.randn(2, 5, 7, 9)
    for size in ((14, 18), (13, 17)):
        found = enlarge_convolve(x, weight, size, phase_kernels(weight))
        assert torch.equal(found, enlarge_convolve(x, weight, size))
