"""The model in training: images and targets in, losses out, as one module.

One `forward` holds everything that gradients flow through, since that is what wrappers which
average gradients between workers can see. Masks are computed for matched queries only.

Training from scratch on few images adds two things that published weights don't need, and which
leave no trace in the model: `prepare_from_scratch`, an initialisation, and query groups (Chen et
al. 2022, "Group DETR"): further sets of queries that decode the same image apart from the first
and are matched apart, so that a target teaches several queries per step at the decoder's small
price. Only the first set is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from detr.backbone import Backbone
from detr.criterion import Losses, Targets, Weights, criterion, match
from detr.model import Detection, DetrPanoptic, Output
from detr.position import sine_position, whole_position

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
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.model, self.phase, self.weights = model, phase, weights or Weights()
        embedding = model.detr.query_embed.weight
        self.more_queries: nn.Parameter | None = None
        if groups > 1 and phase != "masks":
            self.more_queries = nn.Parameter(torch.randn(groups - 1, *embedding.shape))
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
        self, images: Tensor, padding: Tensor | None, targets: Targets, boxes_in_batch: float
    ) -> Losses:
        """images (B, 3, H, W), padding (B, H, W) bool or None -> the losses of the batch."""
        model, weights = self.model, self.weights
        found = model.detr(images, padding, every_layer=True)
        matching = match(found.logits[-1], found.boxes[-1], targets, weights)
        masks = None
        if self.phase != "boxes":
            masks = model.mask_logits(found, matching.image, matching.query)
        losses = criterion(
            _output(found.logits, found.boxes, masks),
            targets,
            matching=matching,
            weights=weights,
            boxes_in_batch=boxes_in_batch,
        )
        if self.more_queries is None:
            return losses
        return losses.plus(self._more_groups(found, targets, boxes_in_batch))

    def _more_groups(self, found: Detection, targets: Targets, boxes_in_batch: float) -> Tensor:
        """The mean loss of the further query sets, each an image of its own to the decoder."""
        assert self.more_queries is not None
        detr, groups, batch = self.model.detr, len(self.more_queries), len(found.memory)
        height, width = found.projected.shape[-2:]
        cells = found.features[-1].padding
        if cells is None:
            device, dtype = found.memory.device, found.memory.dtype
            place = whole_position(height, width, found.memory.shape[-1], device, dtype)
        else:
            place = sine_position(cells, found.memory.shape[-1]).flatten(2).transpose(1, 2)
            place = place.repeat(groups, 1, 1)
        embeddings = detr.transformer.decoder(
            self.more_queries.repeat_interleave(batch, dim=0),  # (groups * B, Q, d)
            found.memory.repeat(groups, 1, 1),
            place,
            None if found.padding is None else found.padding.repeat(groups, 1),
            every_layer=True,
        )
        logits, boxes = detr.class_embed(embeddings), detr.bbox_embed(embeddings).sigmoid()
        repeated = targets.repeat(groups)
        matching = match(logits[-1], boxes[-1], repeated, self.weights)
        return criterion(
            _output(logits, boxes, None),
            repeated,
            matching=matching,
            weights=self.weights,
            boxes_in_batch=boxes_in_batch * groups,
        ).total


def _output(logits: Tensor, boxes: Tensor, masks: Tensor | None) -> Output:
    """(layers, B, Q, ...) logits and boxes as the criterion takes them."""
    aux = list(zip(logits[:-1], boxes[:-1], strict=True))
    return Output(logits=logits[-1], boxes=boxes[-1], aux=aux, mask_logits=masks)


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
