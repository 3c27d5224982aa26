"""The model in training: images and targets in, losses out, as one module.

One `forward` holds everything that gradients flow through, since that is what wrappers which
average gradients between workers can see. Masks are computed for matched queries only, where
upstream computes all and throws most away; the matching is found between the two halves. A small
model that starts from nothing gets help from `dense_head`, which leaves no trace in its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from detr.backbone import Backbone
from detr.criterion import Losses, Targets, Weights, criterion, match
from detr.dense_head import DenseHead
from detr.model import DetrPanoptic, Output

Phase = Literal["joint", "boxes", "masks"]


class Learner(nn.Module):
    """`phase`: "boxes" leaves the mask head alone, "masks" everything else (the paper's two steps,
    section 4.4), "joint" trains all at once. Batch norm and dropout rest in what isn't trained."""

    def __init__(
        self,
        model: DetrPanoptic,
        *,
        phase: Phase = "joint",
        weights: Weights | None = None,
        dense_weight: float = 0.0,
    ) -> None:
        """`dense_weight` of the dense head's loss in the total; 0 leaves the head out."""
        super().__init__()
        self.model, self.phase, self.weights = model, phase, weights or Weights()
        self.dense_weight = dense_weight if phase != "masks" else 0.0
        self.dense_head: DenseHead | None = None
        if self.dense_weight:
            config = model.config
            self.dense_head = DenseHead(config.hidden_dim, config.num_classes)
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
        model = self.model
        found = model.detr(images, padding, every_layer=True)
        logits, boxes = found.logits, found.boxes  # (layers, B, Q, ...)
        matching = match(logits[-1], boxes[-1], targets, self.weights)
        masks = None
        if self.phase != "boxes":
            masks = model.mask_logits(found, matching.image, matching.query)
        aux = list(zip(logits[:-1], boxes[:-1], strict=True))
        losses = criterion(
            Output(logits=logits[-1], boxes=boxes[-1], aux=aux, mask_logits=masks),
            targets,
            matching=matching,
            weights=self.weights,
            boxes_in_batch=boxes_in_batch,
        )
        if self.dense_head is None:
            return losses
        height, width = found.projected.shape[-2:]
        dense = self.dense_head(found.memory, (height, width), targets, self.weights)
        return replace(losses, total=losses.total + self.dense_weight * dense, dense=dense)


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
