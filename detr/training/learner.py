"""The model in training: images and targets in, losses out, as one module.

One `forward` contains everything that gradients flow through, as wrappers that average gradients
between workers (DistributedDataParallel) need. Masks are computed for matched queries only
(upstream computes the masks of all queries and drops most), so the matching happens between the
detector and the mask head.
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
    """The model with the losses of one phase.

    "boxes" trains all but the mask head and "masks" only the mask head (the paper's two steps,
    section 4.4); "joint" trains all. From random weights, "backbone" trains the features by the
    dense head alone, then "detector" the transformer on fixed features: small models learn many
    times faster so. Parts that a phase does not train are in eval mode (batch norm, dropout).
    """

    def __init__(
        self,
        model: DetrPanoptic,
        *,
        phase: Phase = "joint",
        weights: Weights | None = None,
        dense_weight: float = 0.0,
    ) -> None:
        """`dense_weight`: weight of the dense head's loss in the total; 0 leaves the head out.

        The phase "backbone" always has the dense head, with weight 1.
        """
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

        `boxes_in_batch` and `label_weight_in_batch` are those of `criterion`.
        """
        if self.phase == "backbone":
            detr = self.model.detr
            features = detr.backbone[0](images, padding)
            assert self.dense_head is not None
            dense = self.dense_head(detr.input_proj(features[-1].tensors), targets)
            zero = dense.new_zeros(())
            return Losses(dense, zero, zero, zero, zero, zero, dense)
        detections = self.model.detr(images, padding, every_layer=True)
        logits, boxes = detections.logits, detections.boxes  # (layers, B, Q, ...)
        matchings = match_layers(logits, boxes, targets, self.weights)
        masks = None
        if self.learns_masks:
            masks = self.model.mask_logits(detections, matchings[-1].image, matchings[-1].query)
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
        dense = self.dense_head(detections.projected, targets)
        return replace(losses, total=losses.total + self.dense_weight * dense, dense=dense)


def prepare_from_scratch(model: DetrPanoptic) -> None:
    """Change the initial weights of a model that is trained from random weights, in place.

    The attention channels of the mask head are scaled up (see `scale_attention`); the backbone's
    convolutions get He's initialisation, whose variance torch's default falls short of.
    """
    model.mask_head.scale_attention(200.0)
    backbone = model.detr.backbone[0]
    assert isinstance(backbone, Backbone)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
