"""Matcher and losses: by hand, and against transformers' DETR loss on identical inputs."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from detr.models.detr import Output
from detr.training.criterion import (
    Matching,
    Targets,
    Weights,
    corners,
    criterion,
    dice_loss,
    focal_loss,
    generalized_iou,
    label_loss,
    label_weight,
    match_layers,
)


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    center = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
    return torch.cat((center, 0.05 + 0.3 * torch.rand(count, 2, generator=generator)), dim=1)


def random_case(
    counts: tuple[int, ...], *, queries: int = 7, classes: int = 5, layers: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Targets]:
    """Logits (layers, B, Q, C + 1), boxes (layers, B, Q, 4), mask logits (B, Q, 6, 9), targets."""
    generator = torch.Generator().manual_seed(seed)
    batch, total = len(counts), sum(counts)
    logits = 2 * torch.randn(layers, batch, queries, classes + 1, generator=generator)
    boxes = random_boxes(layers * batch * queries, generator).view(layers, batch, queries, 4)
    masks = torch.randn(batch, queries, 6, 9, generator=generator)
    targets = Targets(
        labels=torch.randint(classes, (total,), generator=generator),
        boxes=random_boxes(total, generator),
        masks=(torch.rand(total, 12, 18, generator=generator) > 0.5).float(),
        counts=counts,
    )
    return logits, boxes, masks, targets


def output_of(logits: Tensor, boxes: Tensor, mask_logits: Tensor | None) -> Output:
    aux = [(logits[i], boxes[i]) for i in range(len(logits) - 1)]
    return Output(logits=logits[-1], boxes=boxes[-1], aux=aux, mask_logits=mask_logits)


def match(logits: Tensor, boxes: Tensor, targets: Targets) -> Matching:
    """Of one layer."""
    [matching] = match_layers(logits[None], boxes[None], targets)
    return matching


def targets_of(labels: list[int], boxes: list[list[float]], counts: tuple[int, ...]) -> Targets:
    return Targets(torch.tensor(labels), torch.tensor(boxes).view(-1, 4), None, counts)


@pytest.mark.parametrize("counts", [(3, 1, 2), (7, 7, 1), (4,)])
def test_every_term_equals_transformers(counts: tuple[int, ...]) -> None:
    from transformers.loss.loss_for_object_detection import ForSegmentationLoss  # takes seconds

    logits, boxes, masks, targets = random_case(counts)
    assert targets.masks is not None
    config = SimpleNamespace(
        class_cost=1, bbox_cost=5, giou_cost=2, num_labels=5, eos_coefficient=0.1,
        bbox_loss_coefficient=5, giou_loss_coefficient=2, mask_loss_coefficient=1,
        dice_loss_coefficient=1, auxiliary_loss=True, decoder_layers=3,
    )  # fmt: skip
    split = [part.split(counts) for part in (targets.labels, targets.boxes, targets.masks)]
    labels = [
        {"class_labels": label, "boxes": box, "masks": mask}
        for label, box, mask in zip(*split, strict=True)
    ]
    total, terms, _ = ForSegmentationLoss(
        logits[-1], labels, torch.device("cpu"), boxes[-1], masks, config, logits, boxes
    )
    matching = match(logits[-1], boxes[-1], targets)
    chosen = masks[matching.image, matching.query]
    losses = criterion(
        output_of(logits, boxes, chosen), targets, matchings=match_layers(logits, boxes, targets)
    )
    for own, theirs in (
        (losses.total, total),
        (losses.label, terms["loss_ce"]),
        (losses.box, terms["loss_bbox"]),
        (losses.giou, terms["loss_giou"]),
        (losses.focal, terms["loss_mask"]),
        (losses.dice, terms["loss_dice"]),
    ):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


def test_matching_takes_the_cheapest_whole_assignment() -> None:
    """Both targets like query 0 best; query 1 is a fair second for the first target only."""
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3], [0.1, 0.1, 0.1, 0.1]]])
    targets = targets_of([0, 0], [[0.5, 0.5, 0.22, 0.22], [0.5, 0.5, 0.1, 0.1]], (2,))
    matching = match(torch.zeros(1, 3, 2), boxes, targets)
    pairs = dict(zip(matching.target.tolist(), matching.query.tolist(), strict=True))
    assert pairs == {0: 1, 1: 0}


def test_matching_heeds_the_class() -> None:
    box = [0.5, 0.5, 0.2, 0.2]
    logits = torch.tensor([[[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])  # query 0 says 1, query 1 says 0
    matching = match(logits, torch.tensor([[box, box]]), targets_of([0, 1], [box, box], (2,)))
    assert matching.query[matching.target.argsort()].tolist() == [1, 0]


def test_targets_beyond_the_queries_stay_unmatched_and_images_do_not_mix() -> None:
    logits, boxes, _, targets = random_case((9, 0, 2), queries=3)
    matching = match(logits[-1], boxes[-1], targets)
    assert matching.image.tolist() == [0, 0, 0, 2, 2]
    assert max(matching.target[:3].tolist()) < 9 <= min(matching.target[3:].tolist())
    assert len(set(zip(matching.image.tolist(), matching.query.tolist(), strict=True))) == 5


def test_boxes_that_are_not_numbers_do_not_stop_the_matcher() -> None:
    logits, boxes, _, targets = random_case((2,), queries=4)
    boxes[-1, 0, 1] = float("nan")
    assert 1 not in match(logits[-1], boxes[-1], targets).query.tolist()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # overlap 2 of 6; the hull is the union
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),  # apart: 0 - (3 - 2) / 3
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),  # nested
    ],
)
def test_generalized_iou_by_hand(
    a: tuple[float, ...], b: tuple[float, ...], expected: float
) -> None:
    value = generalized_iou(torch.tensor(a, dtype=torch.float), torch.tensor(b, dtype=torch.float))
    assert value.item() == pytest.approx(expected)


def test_corners_by_hand() -> None:
    assert corners(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx(
        [0.4, 0.1, 0.6, 0.7]
    )


def test_label_loss_by_hand() -> None:
    """Uniform logits of 3 outputs cost log 3 each; the weights cancel in the weighted mean."""
    targets = targets_of([1], [[0.5, 0.5, 0.1, 0.1]], (1,))
    logits = torch.zeros(1, 2, 3)
    matching = match(logits, torch.full((1, 2, 4), 0.5), targets)
    assert label_loss(logits, targets, matching, 0.1).item() == pytest.approx(1.0986123)
    # Sure and right where matched; the other query, at a tenth of the weight, is sure and wrong.
    logits[0, matching.query[0], 1] = 50.0
    logits[0, 1 - matching.query[0], 0] = 11.0
    assert label_loss(logits, targets, matching, 0.1).item() == pytest.approx(1.1 / 1.1, rel=1e-3)


def test_focal_loss_by_hand() -> None:
    """p = 1/2 everywhere: alpha_t * 1/4 * log 2, alpha 0.25 on the mask and 0.75 off it."""
    loss = focal_loss(torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert loss.item() == pytest.approx((0.25 + 3 * 0.75) / 4 * 0.25 * 0.6931472)


def test_dice_loss_by_hand() -> None:
    """p = 1/2 on 4 pixels, 1 in the mask: 1 - (2 * 0.5 + 1) / (2 + 1 + 1)."""
    loss = dice_loss(torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert loss.item() == pytest.approx(0.5)
    sure = torch.tensor([[50.0, -50.0]])
    assert dice_loss(sure, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)


def test_batch_without_targets_teaches_no_object_only() -> None:
    logits, boxes, _, targets = random_case((0, 0))
    logits.requires_grad_()
    losses = criterion(
        output_of(logits, boxes, None), targets, matchings=match_layers(logits, boxes, targets)
    )
    losses.total.backward()
    assert losses.box.item() == losses.giou.item() == losses.dice.item() == 0
    assert logits.grad is not None
    assert logits.grad[..., -1].lt(0).all()  # every query is pushed towards no-object


def test_weights_scale_their_terms() -> None:
    logits, boxes, masks, targets = random_case((2, 3), layers=1)
    matching = match(logits[-1], boxes[-1], targets)
    output = output_of(logits, boxes, masks[matching.image, matching.query])
    once = criterion(output, targets, matchings=match_layers(logits, boxes, targets))
    more = criterion(
        output,
        targets,
        matchings=match_layers(logits, boxes, targets),
        weights=Weights(focal=3.0, dice=4.0),
    )
    expected = once.total + 2 * once.focal + 3 * once.dice
    torch.testing.assert_close(more.total, expected)


def test_workers_share_one_count_of_targets() -> None:
    logits, boxes, _, targets = random_case((2, 3), layers=1)
    output = output_of(logits, boxes, None)
    own = criterion(output, targets, matchings=match_layers(logits, boxes, targets))
    shared = criterion(
        output, targets, matchings=match_layers(logits, boxes, targets), boxes_in_batch=10.0
    )
    torch.testing.assert_close(shared.box * 2, own.box)
    torch.testing.assert_close(shared.label, own.label)


def test_the_mean_of_two_workers_is_the_loss_of_one() -> None:
    """Of images with different numbers of targets, which the class term weighs, too."""
    logits, boxes, masks, targets = random_case((1, 4), layers=2)
    [*_, matching] = matchings = match_layers(logits, boxes, targets)
    chosen = masks[matching.image, matching.query]
    whole = criterion(output_of(logits, boxes, chosen), targets, matchings=matchings)
    queries = logits.shape[2]
    label = label_weight((1, 4), queries, Weights().no_object) / 2
    halves = []
    for image, part in enumerate((slice(0, 1), slice(1, 5))):
        assert targets.masks is not None
        count = part.stop - part.start
        own = Targets(targets.labels[part], targets.boxes[part], targets.masks[part], (count,))
        one = slice(image, image + 1)
        [*_, matching] = matchings = match_layers(logits[:, one], boxes[:, one], own)
        chosen = masks[one][matching.image, matching.query]
        halves.append(
            criterion(
                output_of(logits[:, one], boxes[:, one], chosen),
                own,
                matchings=matchings,
                boxes_in_batch=torch.tensor(2.5),
                label_weight_in_batch=torch.tensor(label),
            )
        )
    for name, wanted in whole.terms().items():
        mean = sum(half.terms()[name] for half in halves) / 2
        torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)
