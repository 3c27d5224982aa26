"""An auxiliary loss for training: the class of every cell of the backbone's last feature map.

DETR's losses reach the backbone through one matched query per target, and through an attention that
is still untrained. Published models start from ImageNet backbones; a small model from random
weights needs thousands of steps before its features separate the classes. With this loss the model
needs hundreds, at a fifth of the time per step. The head is no part of the model or its files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.training.criterion import Targets
from detr.transfer import upload


class DenseHead(nn.Module):
    """A 1x1 convolution from (B, d, h, w) projected features to classes, and its loss."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(dim, num_classes, 1)

    def forward(self, projected: Tensor, targets: Targets) -> Tensor:
        """Cross-entropy (scalar) with the share of each cell that each class covers.

        The mean is over covered area only: uncovered pixels (void, padding) don't count.
        """
        scores = self.classes(F.relu(projected)).float().log_softmax(1)  # (B, C, h, w)
        covers = class_shares(scores.shape, targets)
        return -(covers * scores).sum() / covers.sum().clamp(min=1.0)


def class_shares(shape: torch.Size, targets: Targets) -> Tensor:
    """The share of each cell (0 to 1) that each class covers, (B, C, h, w), which is `shape`.

    `targets` must have masks; segments of one class are added.
    """
    assert targets.masks is not None
    size = (shape[-2], shape[-1])
    masks = F.adaptive_avg_pool2d(targets.masks.float()[None], size)[0]  # (T, h, w)
    counts = upload(torch.tensor(targets.counts), masks.device)
    image = torch.arange(shape[0], device=masks.device)
    image = image.repeat_interleave(counts, output_size=sum(targets.counts))  # (T,)
    covers = masks.new_zeros(shape).flatten(0, 1)  # (B * C, h, w)
    covers.index_add_(0, image * shape[1] + targets.labels, masks)
    return covers.view(shape)
