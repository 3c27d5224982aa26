"""The backbone for inference: batch norm folded into convolutions, fused with ReLU and addition.

A frozen batch norm is a scale and a shift per channel, so a convolution with other weights and a
bias does the same, up to rounding (about 1e-7 of a value).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.models.backbone import BatchNorm, Block, ResNet
from detr.models.fused_ops import convolve


class FoldedBlock(nn.Module):
    """A residual block of two or three folded convolutions, and one on the shortcut if needed."""

    def __init__(self, block: Block, *, shared: bool) -> None:
        """`shared`: the input is also an output of the backbone and must not be overwritten."""
        super().__init__()
        self.shared = shared
        names = ("1", "2", "3") if block.bottleneck else ("1", "2")
        *inner, last = (
            fold(block.get_submodule("conv" + name), block.get_submodule("bn" + name))
            for name in names
        )
        self.inner, self.last = nn.ModuleList(inner), last
        self.shortcut = None if block.downsample is None else fold(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w'). Overwrites x if x is the shortcut and not `shared`."""
        if self.shortcut is not None:
            shortcut = convolve(x, self.shortcut)
        else:
            shortcut = x.clone() if self.shared else x
        for conv in self.inner:
            assert isinstance(conv, nn.Conv2d)
            x = convolve(x, conv, relu=True)
        return convolve(x, self.last, add=shortcut, relu=True)


class FoldedResNet(nn.Module):
    """A folded copy of a ResNet, with the features of the ResNet in eval mode."""

    def __init__(self, body: ResNet) -> None:
        super().__init__()
        self.stem, self.pool = fold(body.conv1, body.bn1), body.pool
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[
                    FoldedBlock(block, shared=number > 0 and position == 0)
                    for position, block in enumerate(stage)
                    if isinstance(block, Block)
                ]
            )
            for number, stage in enumerate((body.layer1, body.layer2, body.layer3, body.layer4))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> Res2, Res3, Res4, Res5."""
        x = convolve(images, self.stem, relu=True)
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


@torch.no_grad()
def fold(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """A new convolution with bias that computes `norm(conv(x))`."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, BatchNorm)
    scale, shift = norm.affine()
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        device="meta",  # weights follow
    )
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    folded.bias = nn.Parameter(shift.clone(), requires_grad=False)
    return folded
