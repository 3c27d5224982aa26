"""The Winograd form against the direct convolution in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr.config import DetrConfig
from detr.models.detr import DetrPanoptic
from detr.models.fused_ops import convolve
from detr.models.winograd import WinogradConv2d, use_winograd


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 1), (25, 34), (5, 4), (2, 131)])
@pytest.mark.parametrize("relu", [False, True])
@torch.no_grad()
def test_it_is_the_direct_convolution(size, relu):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 3, padding=1)
    x = torch.randn(2, 24, *size).to(memory_format=torch.channels_last)
    assert conv.bias is not None
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    expected = expected.relu() if relu else expected
    found = convolve(x, WinogradConv2d(conv), relu=relu)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_an_addition_and_a_missing_bias():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    x, add = torch.randn(1, 8, 6, 7), torch.randn(1, 8, 6, 7)
    expected = F.relu(conv(x) + add)
    assert torch.allclose(
        convolve(x, WinogradConv2d(conv), add=add, relu=True), expected, atol=1e-5
    )


def test_only_wide_plain_3x3_convolutions_are_replaced():
    layers = nn.Sequential(
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(256, 128, 3, padding=1),
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(256, 256, 3, padding=1, stride=2),
        nn.Conv2d(256, 256, 3, padding=2, dilation=2),
    )
    use_winograd(layers)
    assert [isinstance(layer, WinogradConv2d) for layer in layers] == [True] + [False] * 4


@torch.no_grad()
def test_the_published_model_uses_it_and_answers_alike():
    torch.manual_seed(0)
    model = DetrPanoptic(DetrConfig(depths=(1, 2, 2, 2), enc_layers=1, dec_layers=1)).fold()
    images = torch.randn(1, 3, 97, 131).to(memory_format=torch.channels_last)
    image_index, query_index = torch.tensor([0, 0]), torch.tensor([3, 50])
    plain = model.detect(images)
    expected = plain.logits, model.mask_logits(plain, image_index, query_index)
    model.use_winograd()
    # the second block of stages 3 and 4
    assert sum(isinstance(module, WinogradConv2d) for module in model.modules()) == 2
    found = model.detect(images)
    answers = found.logits, model.mask_logits(found, image_index, query_index)
    for one, other in zip(answers, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@torch.no_grad()
def test_no_query_kept_is_an_empty_batch():
    conv = WinogradConv2d(nn.Conv2d(128, 96, 3, padding=1))
    assert convolve(torch.empty(0, 128, 5, 7), conv).shape == (0, 96, 5, 7)
