"""The dense head: what each cell is to say, by hand."""

import math

import pytest
import torch

from detr.training.criterion import Targets
from detr.training.dense_head import DenseHead, class_shares


def silent_head(classes: int) -> DenseHead:
    """All classes equally likely."""
    head = DenseHead(8, classes)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    return head


def halves() -> Targets:
    """Two images of 4 x 4 mask pixels: left half class 1 and the rest void; nothing at all."""
    masks = torch.zeros(1, 4, 4)
    masks[0, :, :2] = 1
    return Targets(torch.tensor([1]), torch.tensor([[0.25, 0.5, 0.5, 1.0]]), masks, (1, 0))


def test_shares_by_hand() -> None:
    shares = class_shares(torch.Size((2, 3, 2, 2)), halves())
    assert shares[0, 1].tolist() == [[1, 0], [1, 0]]
    assert shares.sum() == 2


def test_two_segments_of_one_class_share_its_cells() -> None:
    masks = torch.zeros(3, 2, 2)
    masks[0, 0, 0] = masks[1, 0, 1] = masks[2, 1, 0] = 1
    targets = Targets(torch.tensor([2, 2, 0]), torch.zeros(3, 4), masks, (3,))
    assert class_shares(torch.Size((1, 3, 1, 1)), targets).flatten().tolist() == [0.25, 0, 0.5]


def test_covered_cells_alone_pay() -> None:
    loss = silent_head(3)(torch.zeros(2, 8, 2, 2), halves())
    assert loss.item() == pytest.approx(math.log(3))  # the mean over the two covered cells


def test_a_shared_cell_is_asked_for_shares() -> None:
    masks = torch.zeros(2, 2, 2)
    masks[0, :, 0], masks[0, 0, 1], masks[1, 1, 1] = 1, 1, 1  # three quarters and one
    targets = Targets(torch.tensor([0, 1]), torch.zeros(2, 4), masks, (2,))
    head = silent_head(2)
    assert head.classes.bias is not None
    with torch.no_grad():
        head.classes.bias[0] = math.log(3.0)  # says 3/4 and 1/4, as it is
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert head(torch.zeros(1, 8, 1, 1), targets).item() == pytest.approx(entropy, rel=1e-5)


def test_batch_without_targets_costs_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = Targets(nothing, torch.zeros(0, 4), torch.zeros(0, 4, 4), (0,))
    assert silent_head(3)(torch.zeros(1, 8, 2, 2), targets).item() == 0
