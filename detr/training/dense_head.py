"""A helper that only training sees: every cell of the backbone's last map says what it shows.

A query's loss reaches the backbone through one matched target and an attention that has yet to find
it. Published models don't mind, since their backbones come from ImageNet; a small one that starts
from nothing spends thousands of steps before its features tell one thing from another. Asked cell
by cell, it learns that in hundreds, at a fifth of the price of a step. Nothing of the head is in
the model or its files. Rejected: the same question to the encoder's output, where the answer is
drowned by everything else that the encoder learns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.training.criterion import Targets
from detr.transfer import upload


class DenseHead(nn.Module):
    """(B, d, h, w) projected features -> the classes of every cell, and at once their loss."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(dim, num_classes, 1)

    def forward(self, projected: Tensor, targets: Targets) -> Tensor:
        """Cross-entropy (scalar) with the share of each cell that each class covers.

        Uncovered pixels (void, padding) teach nothing: the mean is over what is covered.
        """
        scores = self.classes(F.relu(projected)).float().log_softmax(1)  # (B, C, h, w)
        covers = class_shares(scores.shape, targets)
        return -(covers * scores).sum() / covers.sum().clamp(min=1.0)


def class_shares(shape: torch.Size, targets: Targets) -> Tensor:
    """The share of each cell that each class covers, of `shape` (B, C, h, w)."""
    assert targets.masks is not None
    size = (shape[-2], shape[-1])
    masks = F.adaptive_avg_pool2d(targets.masks.float()[None], size)[0]  # (T, h, w)
    counts = upload(torch.tensor(targets.counts), masks.device)
    image = torch.arange(shape[0], device=masks.device)
    image = image.repeat_interleave(counts, output_size=sum(targets.counts))  # (T,)
    covers = masks.new_zeros(shape).flatten(0, 1)  # (B * C, h, w)
    covers.index_add_(0, image * shape[1] + targets.labels, masks)
    return covers.view(shape)
