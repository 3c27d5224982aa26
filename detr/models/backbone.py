"""ResNet: an image to four feature maps, Res2 to Res5, each with its padding mask.

Not imported from torchvision, so that the config decides depths, widths, block, stem stride and
dilation. Parameter names are torchvision's, as in the published files. As in the published files,
the 3x3 convolutions have the strides (ResNet "v1.5").

Batch norm is frozen in published models: a fixed scale and shift, which folded.py multiplies into
the convolutions for inference. Training from scratch needs running statistics
(`frozen_norm=False`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.config import DetrConfig


class BatchNorm(nn.Module):
    """Batch normalisation (eps 1e-5); if `frozen`, with fixed statistics also in training."""

    def __init__(self, channels: int, *, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=not frozen)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=not frozen)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,): y = x * scale + shift with the stored statistics."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.frozen:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=True
            )
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False
    )


class Block(nn.Module):
    """A residual block: 1x1, 3x3, 1x1 ("bottleneck"), or two 3x3 ("basic")."""

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, config: DetrConfig
    ) -> None:
        super().__init__()
        frozen = config.frozen_norm
        self.bottleneck = config.block == "bottleneck"
        outputs = width * 4 if self.bottleneck else width
        if self.bottleneck:
            self.conv1 = _conv(inputs, width, 1)
            self.conv2 = _conv(width, width, 3, stride, dilation)
            self.conv3 = _conv(width, outputs, 1)
            self.bn3 = BatchNorm(outputs, frozen=frozen)
        else:
            self.conv1 = _conv(inputs, width, 3, stride, dilation)
            self.conv2 = _conv(width, width, 3, dilation=dilation)
        self.bn1 = BatchNorm(width, frozen=frozen)
        self.bn2 = BatchNorm(width, frozen=frozen)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), BatchNorm(outputs, frozen=frozen)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        if self.bottleneck:
            x = self.bn3(self.conv3(F.relu(x, inplace=True)))
        return F.relu(x.add_(shortcut), inplace=True)


class ResNet(nn.Module):
    """(B, 3, H, W) normalised images -> Res2, Res3, Res4, Res5."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.conv1 = _conv(3, config.widths[0], 7, 2)
        self.bn1 = BatchNorm(config.widths[0], frozen=config.frozen_norm)
        self.pool = config.stem_stride == 4
        inputs = config.widths[0]
        stages: list[nn.Sequential] = []
        for index, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            dilate = config.dilation and index == 3
            stride = 1 if index == 0 or dilate else 2
            blocks = []
            for number in range(depth):
                # DC5 drops the stride of the last stage and dilates the blocks after the first, as
                # torchvision does.
                dilation = 2 if dilate and number > 0 else 1
                blocks.append(Block(inputs, width, stride if number == 0 else 1, dilation, config))
                inputs = config.stage_channels[index]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        if self.pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


@dataclass(frozen=True)
class Features:
    """A feature map and its padding mask (None: no cell is padding)."""

    tensors: Tensor  # (B, C, h, w)
    padding: Tensor | None  # (B, h, w) bool


class Backbone(nn.Module):
    """The ResNet (`body`, as in published files), with a padding mask for every map."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.body: nn.Module = ResNet(config)

    def forward(self, images: Tensor, padding: Tensor | None) -> list[Features]:
        """images (B, 3, H, W); padding (B, H, W) bool, True on padding, or None.

        The mask of a feature map is `padding` resized by nearest neighbour, as upstream.
        """
        features = []
        for tensors in self.body(images):
            mask = None
            if padding is not None:
                mask = F.interpolate(padding[:, None].float(), size=tensors.shape[-2:])
                mask = mask[:, 0].to(torch.bool)
            features.append(Features(tensors, mask))
        return features
