"""The model in training: images and targets in, losses out, as one module.

One `forward` holds everything that gradients flow through, since that is what wrappers which
average gradients between workers can see. Masks are computed for matched queries only, where
upstream computes all and throws most away; the matching is found between the two halves. A small
model that starts from nothing gets help from `dense_head`, which leaves no trace in its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from detr.models.backbone import Backbone
from detr.models.detr import DetrPanoptic, Output
from detr.training.criterion import Losses, Targets, Weights, criterion, match_layers
from detr.training.dense_head import DenseHead
from detr.training.phases import TRAINS, Phase


class Learner(nn.Module):
    """What a phase trains: "boxes" all but the masks and "masks" nothing else (the paper's two
    steps, section 4.4), "joint" all at once. Where there are no weights at all, "backbone" comes
    first, its features by the dense head alone, and "detector" second, the transformer on features
    that hold still: small models learn things many times faster so. Batch norm and dropout rest in
    what isn't trained."""

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
        features, _, self.learns_masks = TRAINS[phase]
        self.dense_weight = 1.0 if phase == "backbone" else dense_weight * features
        self.dense_head: DenseHead | None = None
        if self.dense_weight:
            self.dense_head = DenseHead(model.config.hidden_dim, model.config.num_classes)
        for module, trains in self._parts():
            if not trains:
                module.requires_grad_(False)

    def _parts(self) -> Iterator[tuple[nn.Module, bool]]:
        features, detector, masks = TRAINS[self.phase]
        for name, module in self.model.detr.named_children():
            yield module, features if name in ("backbone", "input_proj") else detector
        yield self.model.bbox_attention, masks
        yield self.model.mask_head, masks

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
        boxes_in_batch: float | Tensor | None = None,
        label_weight_in_batch: Tensor | None = None,
    ) -> Losses:
        """images (B, 3, H, W), padding (B, H, W) bool or None -> the losses of the batch.

        The last two are `criterion`'s.
        """
        if self.phase == "backbone":
            detr = self.model.detr
            features = detr.backbone[0](images, padding)
            assert self.dense_head is not None
            dense = self.dense_head(detr.input_proj(features[-1].tensors), targets)
            zero = dense.new_zeros(())
            return Losses(dense, zero, zero, zero, zero, zero, dense)
        found = self.model.detr(images, padding, every_layer=True)
        logits, boxes = found.logits, found.boxes  # (layers, B, Q, ...)
        matchings = match_layers(logits, boxes, targets, self.weights)
        masks = None
        if self.learns_masks:
            masks = self.model.mask_logits(found, matchings[-1].image, matchings[-1].query)
        aux = list(zip(logits[:-1], boxes[:-1], strict=True))
        losses = criterion(
            Output(logits=logits[-1], boxes=boxes[-1], aux=aux, mask_logits=masks),
            targets,
            matchings=matchings,
            weights=self.weights,
            boxes_in_batch=boxes_in_batch,
            label_weight_in_batch=label_weight_in_batch,
        )
        if self.dense_head is None:
            return losses
        dense = self.dense_head(found.projected, targets)
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
