"""A helper that only training sees: every cell of the encoded image says what it shows, and whose.

A query's loss reaches the backbone through one matched target and an attention that has yet to find
it, which is why DETR learns small things late. Here each cell of the encoder's output answers for
itself: the classes that it shows, and the box of the segment that covers most of it. The features
learn to tell classes, instances and places apart within hundreds of steps, and queries that look at
them have an easier task (after Co-DETR, Zong et al. 2023, which hangs dense detectors on the
encoder). Nothing of it is in the model or its files. Rejected: query groups, which cost a decoder
pass each and taught no more per second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.criterion import Targets, Weights, corners, generalized_iou


class DenseHead(nn.Module):
    """(B, M, d) encoded images -> classes and boxes of every cell, and at once their loss."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden = nn.Linear(dim, dim)
        self.classes = nn.Linear(dim, num_classes)
        self.boxes = nn.Linear(dim, 4)

    def forward(
        self, memory: Tensor, size: tuple[int, int], targets: Targets, weights: Weights
    ) -> Tensor:
        """memory (B, h * w, d) of maps of `size` = (h, w) -> scalar.

        Class: cross-entropy with the shares of a cell that each class covers. Box: L1 and GIoU of
        the segment with the largest share, weighted by it. Uncovered pixels (void, padding) teach
        nothing.
        """
        batch = len(memory)
        x = F.relu(self.hidden(memory))  # (B, M, d)
        log_classes = self.classes(x).float().log_softmax(-1)  # (B, M, C)
        boxes = self.boxes(x).float().sigmoid()  # (B, M, 4)
        covers, owners = self._shares(size, targets, batch)
        total = covers.sum().clamp(min=1.0)
        label = -(covers * log_classes).sum() / total
        share, owner = owners  # (B, M)
        wanted = targets.boxes[owner] if len(targets.boxes) else torch.full_like(boxes, 0.5)
        distance = (boxes - wanted).abs().sum(-1)
        overlap = generalized_iou(corners(boxes), corners(wanted))
        box = (share * (weights.box * distance + weights.giou * (1 - overlap))).sum() / total
        return weights.label * label + box

    def _shares(
        self, size: tuple[int, int], targets: Targets, batch: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, M, C) share of each class in each cell; (B, M) largest share of one target, and
        which target (index into the flat list) has it."""
        assert targets.masks is not None
        masks = F.adaptive_avg_pool2d(targets.masks.float()[None], size)[0].flatten(1)  # (T, M)
        covers = masks.new_zeros(batch, masks.shape[1], self.num_classes)
        share = masks.new_zeros(batch, masks.shape[1])
        owner = torch.zeros(batch, masks.shape[1], dtype=torch.int64, device=masks.device)
        start = 0
        for image, count in enumerate(targets.counts):
            own = masks[start : start + count]  # (n, M)
            if count:
                labels = targets.labels[start : start + count]
                covers[image].index_add_(1, labels, own.T)
                share[image], owner[image] = own.max(0)
                owner[image] += start
            start += count
        return covers, (share, owner)
