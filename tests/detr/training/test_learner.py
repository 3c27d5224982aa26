"""The learner: it learns, in whichever phase, and touches only what its phase trains."""

import pytest
import torch
from torch import Tensor

from detr.config import DetrConfig
from detr.models.detr import DetrPanoptic
from detr.training.criterion import Targets, match_layers
from detr.training.learner import Learner, Phase, prepare_from_scratch

TINY = DetrConfig(
    block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), dilation=True, frozen_norm=False,
    hidden_dim=32, nheads=4, enc_layers=1, dec_layers=2, dim_feedforward=32, dropout=0.0,
    num_queries=6, num_classes=3, mask_groups=2, size=64, max_size=64,
)  # fmt: skip


def two_squares() -> tuple[Tensor, Targets]:
    """One image: a bright square of class 0 upper left, a dark one of class 2 lower right."""
    images = torch.zeros(1, 3, 64, 64)
    masks = torch.zeros(2, 32, 32)
    images[:, :, 4:28, 4:28], masks[0, 2:14, 2:14] = 2.0, 1.0
    images[:, :, 36:60, 36:60], masks[1, 18:30, 18:30] = -2.0, 1.0
    boxes = torch.tensor([[0.25, 0.25, 0.375, 0.375], [0.75, 0.75, 0.375, 0.375]])
    return images, Targets(torch.tensor([0, 2]), boxes, masks, (2,))


def train(learner: Learner, steps: int) -> list[float]:
    images, targets = two_squares()
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    learner.train()
    totals = []
    for _ in range(steps):
        losses = learner(images, None, targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    return totals


def make(phase: Phase) -> Learner:
    torch.manual_seed(0)
    model = DetrPanoptic(TINY)
    prepare_from_scratch(model)
    return Learner(model, phase=phase)


FEATURES = {"detr.backbone", "detr.input_proj"}
DETECTOR = {"detr.transformer", "detr.query_embed", "detr.class_embed", "detr.bbox_embed"}
MASKS = {"bbox_attention", "mask_head"}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts of the model that have any tensor that differs."""
    names = [name.split(".")[1:3] for name in before if not torch.equal(before[name], after[name])]
    return {".".join(name) if name[0] == "detr" else name[0] for name in names}


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("backbone", FEATURES),
        ("detector", DETECTOR),
        ("boxes", FEATURES | DETECTOR),
        ("masks", MASKS),
        ("joint", FEATURES | DETECTOR | MASKS),
    ],
)
def test_phase_changes_its_own_parts_only(phase: Phase, expected: set[str]) -> None:
    learner = make(phase)
    before = {f"model.{n}": t.clone() for n, t in learner.model.state_dict().items()}
    train(learner, 2)
    after = {f"model.{name}": tensor for name, tensor in learner.model.state_dict().items()}
    assert changed(before, after) == expected  # statistics of batch norm included


def test_one_image_is_learnt_by_heart() -> None:
    learner = make("joint")
    totals = train(learner, 200)
    assert totals[-1] < totals[0] / 4
    images, targets = two_squares()
    with torch.no_grad():
        output = learner.eval().model(images)
    [matching] = match_layers(output.logits[None], output.boxes[None], targets)
    said = output.logits[0, matching.query].argmax(-1)
    assert said.tolist() == targets.labels[matching.target].tolist()
    boxes = output.boxes[0, matching.query]
    torch.testing.assert_close(boxes, targets.boxes[matching.target], atol=0.1, rtol=0)


def test_dense_head_helps_to_learn_and_is_not_in_the_model() -> None:
    torch.manual_seed(0)
    plain = DetrPanoptic(TINY)
    learner = Learner(plain, dense_weight=1.0)
    assert learner.model.state_dict().keys() == DetrPanoptic(TINY).state_dict().keys()
    images, targets = two_squares()
    before = learner(images, None, targets).dense
    train(learner, 40)
    after = learner(images, None, targets).dense
    assert before is not None
    assert after is not None
    assert after.item() < before.item() / 2


def test_boxes_phase_leaves_masks_out_of_the_loss() -> None:
    images, targets = two_squares()
    losses = make("boxes").train()(images, None, targets)
    assert losses.focal.item() == losses.dice.item() == 0


def test_padding_changes_no_loss_term_of_boxes() -> None:
    """An image padded to a larger batch costs what it costs alone, up to what borders see."""
    images, targets = two_squares()
    learner = make("boxes").eval()
    padded = torch.zeros(1, 3, 96, 128)
    padded[:, :, :64, :64] = images
    padding = torch.ones(1, 96, 128, dtype=torch.bool)
    padding[:, :64, :64] = False
    with torch.no_grad():
        alone, among = learner(images, None, targets), learner(padded, padding, targets)
    assert among.total.item() == pytest.approx(alone.total.item(), rel=0.05)
