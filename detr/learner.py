"""The model in training: images and targets in, losses out, as one module.

One `forward` holds everything that gradients flow through, since that is what wrappers which
average gradients between workers can see. Masks are computed for matched queries only, where
upstream computes all and throws most away; the matching is found between the two halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from detr.backbone import Backbone
from detr.criterion import Losses, Matching, Targets, Weights, criterion, match
from detr.model import DetrPanoptic, Pairs

Phase = Literal["joint", "boxes", "masks"]


class Learner(nn.Module):
    """`phase`: "boxes" leaves the mask head alone, "masks" everything else (the paper's two steps,
    section 4.4), "joint" trains all at once. Batch norm and dropout rest in what isn't trained."""

    def __init__(
        self, model: DetrPanoptic, *, phase: Phase = "joint", weights: Weights | None = None
    ) -> None:
        super().__init__()
        self.model, self.phase, self.weights = model, phase, weights or Weights()
        for module, trains in self._parts():
            if not trains:
                module.requires_grad_(False)

    def _parts(self) -> Iterator[tuple[nn.Module, bool]]:
        yield self.model.detr, self.phase != "masks"
        yield self.model.bbox_attention, self.phase != "boxes"
        yield self.model.mask_head, self.phase != "boxes"

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        for module, trains in self._parts():
            module.train(mode and trains)
        return self

    def forward(
        self,
        images: Tensor,
        padding: Tensor | None,
        targets: Targets,
        boxes_in_batch: float | None = None,
    ) -> Losses:
        """images (B, 3, H, W), padding (B, H, W) bool or None -> the losses of the batch."""
        found: list[Matching] = []

        def choose(logits: Tensor, boxes: Tensor) -> Pairs:
            found.append(match(logits, boxes, targets, self.weights))
            return found[0].image, found[0].query

        masks = self.phase != "boxes"
        output = self.model(images, padding, masks=masks, choose=choose)
        return criterion(
            output,
            targets,
            matching=found[0]
            if masks
            else match(output.logits, output.boxes, targets, self.weights),
            weights=self.weights,
            boxes_in_batch=boxes_in_batch,
        )


def prepare_from_scratch(model: DetrPanoptic) -> None:
    """What published weights have learnt long ago, set in place before a small model starts.

    The attention channels of the mask head are scaled up (see `scale_attention`), and the
    backbone's convolutions get He's initialisation, which torch's default falls short of.
    """
    model.mask_head.scale_attention(200.0)
    backbone = model.detr.backbone[0]
    assert isinstance(backbone, Backbone)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
