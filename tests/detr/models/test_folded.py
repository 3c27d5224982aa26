"""The folded backbone gives the backbone's features, up to rounding."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detr.config import DetrConfig
from detr.models.backbone import BatchNorm, ResNet
from detr.models.folded import FoldedResNet, fold

SMALL = DetrConfig(depths=(1, 2, 1, 2), widths=(16, 16, 24, 32))


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, block="basic"),
        SMALL,
        replace(SMALL, dilation=True),
        replace(SMALL, block="basic", stem_stride=2),
        # the last stage has no convolution on its shortcut, and the features before stay whole
        replace(SMALL, block="basic", widths=(16, 16, 32, 32), dilation=True),
    ],
    ids=["basic", "bottleneck", "dc5", "stem2", "shared"],
)
@torch.no_grad()
def test_features_are_the_same(config):
    torch.manual_seed(1)
    body = ResNet(config).eval()
    for name, tensor in body.state_dict().items():
        if tensor.dim() == 1:
            low, high = (-0.3, 0.3) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            tensor.uniform_(low, high)
    images = torch.randn(2, 3, 65, 80)
    for plain, folded in zip(body(images), FoldedResNet(body)(images), strict=True):
        assert (plain - folded).abs().max() <= 1e-5 * plain.abs().max()


@torch.no_grad()
def test_folding_leaves_its_arguments():
    conv, norm = nn.Conv2d(3, 4, 1, bias=False), BatchNorm(4, frozen=True)
    norm.running_var.fill_(4.0)
    before = conv.weight.clone()
    folded = fold(conv, norm)
    assert torch.equal(conv.weight, before)
    assert torch.allclose(folded.weight, before / 2, atol=1e-5)
