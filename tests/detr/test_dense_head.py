"""The dense head: what each cell is to say, by hand."""

import math

import pytest
import torch

from detr.criterion import Targets, Weights
from detr.dense_head import DenseHead

LABEL_ONLY = Weights(label=1.0, box=0.0, giou=0.0)
BOX_ONLY = Weights(label=0.0, box=1.0, giou=0.0)


def silent_head(classes: int) -> DenseHead:
    """All classes equally likely, all boxes (0.5, 0.5, 0.5, 0.5)."""
    head = DenseHead(8, classes)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    return head


def halves() -> Targets:
    """Two images of 4 x 4 mask pixels: left half class 1 and the rest void; nothing at all."""
    masks = torch.zeros(1, 4, 4)
    masks[0, :, :2] = 1
    return Targets(torch.tensor([1]), torch.tensor([[0.25, 0.5, 0.5, 1.0]]), masks, (1, 0))


def test_covered_cells_alone_pay_for_their_class() -> None:
    loss = silent_head(3)(torch.zeros(2, 4, 8), (2, 2), halves(), LABEL_ONLY)
    assert loss.item() == pytest.approx(math.log(3))  # the mean over the two covered cells


def test_covered_cells_alone_pay_for_their_box() -> None:
    loss = silent_head(3)(torch.zeros(2, 4, 8), (2, 2), halves(), BOX_ONLY)
    assert loss.item() == pytest.approx(0.25 + 0.5)  # |0.5 - 0.25| of x, |0.5 - 1| of height


def test_a_shared_cell_is_asked_for_shares_and_the_larger_owner() -> None:
    masks = torch.zeros(2, 2, 2)
    masks[0, :, 0], masks[0, 0, 1], masks[1, 1, 1] = 1, 1, 1  # three quarters and one
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5]])
    targets = Targets(torch.tensor([0, 1]), boxes, masks, (2,))
    head = silent_head(2)
    with torch.no_grad():
        head.classes.bias[0] = math.log(3.0)  # says 3/4 and 1/4, as it is
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    loss = head(torch.zeros(1, 1, 8), (1, 1), targets, LABEL_ONLY)
    assert loss.item() == pytest.approx(entropy, rel=1e-5)
    assert head(torch.zeros(1, 1, 8), (1, 1), targets, BOX_ONLY).item() == pytest.approx(0)


def test_batch_without_targets_costs_nothing() -> None:
    targets = Targets(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 4, 4), (0,)
    )
    assert silent_head(3)(torch.zeros(1, 4, 8), (2, 2), targets, Weights()).item() == 0
