"""Matcher and losses of the paper, for training only (Carion et al. 2020, sections 3.1 and A.2).

The matcher assigns every target to one query of the same image, by the least total cost over class,
box distance and box overlap. The matched query learns the target's class, box and mask; every other
query learns "no object". Invariant: matching and each loss term are equal to those of upstream's
`SetCriterion`.

Targets of a batch are one flat list with a count per image, since only the assignment needs a loop
over images. Masks may have any resolution: mask logits are resized to the masks', as upstream
resizes logits to the full image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr.models.detr import Output
from detr.transfer import upload


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch of B images: T segments, those of the first image first."""

    labels: Tensor  # (T,) int64, class indices
    boxes: Tensor  # (T, 4) float: centre x, centre y, width, height in 0..1
    masks: Tensor | None  # (T, h, w) float in 0..1 or bool; None in the boxes-only phase
    counts: tuple[int, ...]  # how many of the T belong to each of the B images


@dataclass(frozen=True)
class Matching:
    """N matched triples; N = min(queries, targets) of every image, summed."""

    image: Tensor  # (N,) int64
    query: Tensor  # (N,) int64
    target: Tensor  # (N,) int64, index into the flat targets


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms; `label`, `box`, `giou` also weigh the matcher's costs.

    The defaults are upstream's.
    """

    label: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    focal: float = 1.0
    dice: float = 1.0
    no_object: float = 0.1  # of a query without target, in the class term


@dataclass(frozen=True)
class Losses:
    """Scalars: unweighted terms of the last decoder layer; `total` is weighted, of all layers."""

    total: Tensor
    label: Tensor
    box: Tensor
    giou: Tensor
    focal: Tensor
    dice: Tensor
    dense: Tensor | None = None  # of the dense head, where there is one

    def terms(self) -> dict[str, Tensor]:
        """Each term by its name, detached: a float64 scalar on its device, to sum over steps."""
        terms = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value.detach().double() for name, value in terms.items()}


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> (..., 4) left, top, right, bottom."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU (Rezatofighi et al. 2019) of boxes as corners; (..., 4) and (..., 4) broadcast."""
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    both = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = both.clamp(min=0).prod(-1)
    union = area_a + area_b - intersection
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return intersection / union - (hull - union) / hull


@torch.no_grad()
def match_layers(
    logits: Tensor, boxes: Tensor, targets: Targets, weights: Weights | None = None
) -> list[Matching]:
    """The one-to-one assignment of least cost of targets to queries, per image and layer.

    logits (L, B, Q, C + 1), boxes (L, B, Q, 4); waits for the device once. The cost of a pair is
    minus the class probability, plus the L1 distance, minus the GIoU of the boxes, each weighted
    (paper, section 3.1). Of an image with more than Q targets, Q targets are matched.
    """
    weights = weights or Weights()
    layers, batch, queries = logits.shape[:3]
    boxes = boxes.flatten(0, 2).float()[:, None]  # (L * B * Q, 1, 4)
    wanted = targets.boxes[None]  # (1, T, 4)
    cost = (
        -weights.label * logits.float().flatten(0, 2).softmax(-1)[:, targets.labels]
        + weights.box * (boxes - wanted).abs().sum(-1)
        - weights.giou * generalized_iou(corners(boxes), corners(wanted))
    )  # (L * B * Q, T)
    # A diverging model gives NaN, on which SciPy raises: such pairs get the largest cost.
    tables = cost.nan_to_num(nan=1e9, posinf=1e9).view(layers, batch, queries, -1).cpu().numpy()
    return [_assign(table, targets, logits.device) for table in tables]


def _assign(table: NDArray[np.float32], targets: Targets, device: torch.device) -> Matching:
    """The matching of one layer from its costs (B, Q, T)."""
    image, query, target, start = [], [], [], 0
    for index, count in enumerate(targets.counts):
        rows, columns = linear_sum_assignment(table[index, :, start : start + count])
        image += [index] * len(rows)
        query += rows.tolist()
        target += (columns + start).tolist()
        start += count
    return Matching(
        *(upload(torch.tensor(x, dtype=torch.int64), device) for x in (image, query, target))
    )


def label_weight(counts: Sequence[int], queries: int, no_object: float) -> float:
    """The sum of all queries' class weights in a batch, by which the class term is divided.

    `counts` are the targets of each image, `queries` is per image.
    """
    matched = sum(min(count, queries) for count in counts)
    return matched + (len(counts) * queries - matched) * no_object


def label_loss(
    logits: Tensor,
    targets: Targets,
    matching: Matching,
    no_object: float,
    weight_in_batch: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy (scalar) of (B, Q, C + 1) logits; unmatched queries are no-object.

    `weight_in_batch` divides the sum; the default is the weight of the queries of `logits`
    (`label_weight`).
    """
    classes = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], classes, dtype=torch.int64, device=logits.device)
    wanted[matching.image, matching.query] = targets.labels[matching.target]
    weight = torch.ones(classes + 1, device=logits.device)
    weight[-1] = no_object
    logits, wanted = logits.float().flatten(0, 1), wanted.flatten()
    if weight_in_batch is None:
        return F.cross_entropy(logits, wanted, weight)
    return F.cross_entropy(logits, wanted, weight, reduction="sum") / weight_in_batch


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017; alpha 0.25, gamma 2): (N, pixels) -> means (N,)."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    probability = logits.sigmoid()
    missed = probability * (1 - masks) + (1 - probability) * masks
    alpha = 0.25 * masks + 0.75 * (1 - masks)
    return (alpha * entropy * missed.square()).mean(1)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss (N,) of logits and masks, both (N, pixels), as upstream computes it.

    1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) with p = sigmoid(logits), m = masks and sums over
    pixels. (Milletari et al. 2016 square p and m in the denominator.)
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * masks).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + masks.sum(1) + 1)


def detection_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    matching: Matching,
    *,
    weights: Weights,
    boxes_in_batch: float | Tensor,
    label_weight_in_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, L1 and GIoU terms (scalars) of one decoder layer.

    logits (B, Q, C + 1), boxes (B, Q, 4). `boxes_in_batch` divides the L1 and GIoU sums,
    `label_weight_in_batch` the class sum (see `label_loss`).
    """
    matched, wanted = boxes[matching.image, matching.query].float(), targets.boxes[matching.target]
    return (
        label_loss(logits, targets, matching, weights.no_object, label_weight_in_batch),
        (matched - wanted).abs().sum() / boxes_in_batch,
        (1 - generalized_iou(corners(matched), corners(wanted))).sum() / boxes_in_batch,
    )


def mask_losses(
    mask_logits: Tensor, targets: Targets, matching: Matching, *, boxes_in_batch: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Focal and dice terms (scalars) of the matched pairs' (N, h, w) mask logits.

    `boxes_in_batch` divides both sums.
    """
    assert targets.masks is not None
    masks = targets.masks[matching.target].float()
    resized = F.interpolate(
        mask_logits[:, None].float(), masks.shape[-2:], mode="bilinear", align_corners=False
    )
    logits, masks = resized[:, 0].flatten(1), masks.flatten(1)
    focal, dice = focal_loss(logits, masks), dice_loss(logits, masks)
    return focal.sum() / boxes_in_batch, dice.sum() / boxes_in_batch


def criterion(
    output: Output,
    targets: Targets,
    *,
    matchings: Sequence[Matching],
    weights: Weights | None = None,
    boxes_in_batch: float | Tensor | None = None,
    label_weight_in_batch: Tensor | None = None,
) -> Losses:
    """All the losses of one batch (paper, sections 3.1 and A.2).

    `matchings` are those of `match_layers`, one per decoder layer; `output.mask_logits` (N, h, w)
    belong to the last layer's pairs. `boxes_in_batch` divides the box and mask terms and is at
    least 1: the number of targets (the default), or its mean over the workers of a distributed
    training. `label_weight_in_batch` divides the class term: the mean of `label_weight` over the
    workers. With both means, the workers' mean loss is the loss of one worker with all the images.
    """
    weights = weights or Weights()
    boxes = sum(targets.counts) if boxes_in_batch is None else boxes_in_batch
    count = boxes.clamp(min=1.0) if isinstance(boxes, Tensor) else max(1.0, boxes)
    *earlier, matching = matchings
    layers: list[tuple[Tensor, Tensor, Matching]] = [(output.logits, output.boxes, matching)]
    layers += [(*layer, matched) for layer, matched in zip(output.aux, earlier, strict=True)]
    terms = [
        detection_losses(
            logits,
            boxes,
            targets,
            matched,
            weights=weights,
            boxes_in_batch=count,
            label_weight_in_batch=label_weight_in_batch,
        )
        for logits, boxes, matched in layers
    ]
    total = sum(
        (
            weights.label * label + weights.box * box + weights.giou * giou
            for label, box, giou in terms
        ),
        start=output.logits.new_zeros((), dtype=torch.float32),
    )
    focal = dice = total.new_zeros(())
    if output.mask_logits is not None:
        focal, dice = mask_losses(output.mask_logits, targets, matching, boxes_in_batch=count)
        total = total + weights.focal * focal + weights.dice * dice
    label, box, giou = terms[0]
    return Losses(total=total, label=label, box=box, giou=giou, focal=focal, dice=dice)
