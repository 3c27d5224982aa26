"""DETR panoptic: images -> class logits and a box for every query, mask logits for chosen queries.

Training and inference share one path. The detector runs backbone, encoder, decoder, class head and
box head; `mask_logits` runs attention maps and mask head for given (image, query) pairs: kept
queries at inference, matched queries in training. Upstream computes the masks of all queries and
drops most, which makes upstream slow.

Parameter names are those of the published files (`detr.*`, `bbox_attention.*`, `mask_head.*`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.config import DetrConfig
from detr.models.backbone import Backbone, Features, ResNet
from detr.models.folded import FoldedResNet
from detr.models.fused_ops import convolve
from detr.models.mask_head import AttentionMaps, MaskHead
from detr.models.position_encoding import sine_position, whole_position
from detr.models.transformer import Transformer
from detr.models.winograd import use_winograd


@dataclass(frozen=True)
class Detection:
    """The detector's output for a batch, and the features that the mask head needs."""

    logits: Tensor  # (layers, B, Q, classes + 1); one layer at inference
    # (layers, B, Q, 4): centre x, centre y, width, height in 0..1 of the batch's size
    boxes: Tensor
    embeddings: Tensor  # (B, Q, d): the last decoder layer's output
    memory: Tensor  # (B, h * w, d): the encoded image
    projected: Tensor  # (B, d, h, w): Res5 through `input_proj`, which the mask head reads
    features: list[Features]  # Res2, Res3, Res4, Res5

    @property
    def padding(self) -> Tensor | None:
        """(B, h * w) bool: True for cells of the encoded image that are padding."""
        mask = self.features[-1].padding
        return None if mask is None else mask.flatten(1)


@dataclass(frozen=True)
class Output:
    """The result of `DetrPanoptic.forward`: Q queries; C class logits, then no-object."""

    logits: Tensor  # (B, Q, C + 1)
    boxes: Tensor  # (B, Q, 4): centre x, centre y, width, height in 0..1
    aux: list[tuple[Tensor, Tensor]]  # (logits, boxes) of every earlier decoder layer
    mask_logits: Tensor | None  # (B, Q, h, w) of all queries, or (N, h, w) of matched pairs


class BoxHead(nn.Module):
    """Three linear layers (upstream's `MLP`), (..., d) -> (..., 4), before the sigmoid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Queries(nn.Module):
    """The learned query embeddings: one parameter `weight` (count, dim), which callers read.

    `nn.Embedding` would name the parameter alike, but draws it from a normal distribution. For
    that, torch imports 900 modules on the meta device, where models are built to check a weight
    file. So the distribution is uniform here, of the same variance (1).
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.uniform_(self.weight, -(3**0.5), 3**0.5)


class Detr(nn.Module):
    """The detector: everything but the masks."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.backbone = nn.ModuleList([Backbone(config)])  # upstream's index 1 is the positions
        self.input_proj = nn.Conv2d(config.stage_channels[-1], dim, 1)
        self.transformer = Transformer(config)
        self.query_embed = Queries(config.num_queries, dim)
        self.class_embed = nn.Linear(dim, config.num_classes + 1)
        self.bbox_embed = BoxHead(dim)

    def forward(self, images: Tensor, padding: Tensor | None, *, every_layer: bool) -> Detection:
        """images (B, 3, H, W) normalised; padding (B, H, W) bool, True on padding, or None."""
        features: list[Features] = self.backbone[0](images, padding)
        projected = convolve(features[-1].tensors, self.input_proj)  # (B, d, h, w)
        channels, height, width = projected.shape[1:]
        cells = features[-1].padding  # (B, h, w) or None
        if cells is None:
            position = whole_position(height, width, channels, images.device, projected.dtype)
        else:
            position = sine_position(cells, channels).flatten(2).transpose(1, 2)
            position = position.to(projected.dtype)
        embeddings, memory = self.transformer(
            projected.flatten(2).transpose(1, 2),
            None if cells is None else cells.flatten(1),
            self.query_embed.weight,
            position,
            every_layer=every_layer,
        )
        return Detection(
            logits=self.class_embed(embeddings.to(self.class_embed.weight.dtype)),
            boxes=self.bbox_embed(embeddings).sigmoid(),
            embeddings=embeddings[-1],
            memory=memory,
            projected=projected,
            features=features,
        )


class DetrPanoptic(nn.Module):
    """The whole model, upstream's `DETRsegm`: detector, attention maps, mask head."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        self.detr = Detr(config)
        self.bbox_attention = AttentionMaps(config)
        self.mask_head = MaskHead(config)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Output:
        """All decoder layers' logits and boxes, and all queries' mask logits, with gradients.

        images (B, 3, H, W) float, normalised, 0 on padding; padding (B, H, W) bool, True on
        padding, or None.
        """
        detection = self.detr(images, padding, every_layer=True)
        every = torch.ones(detection.logits.shape[1:3], dtype=torch.bool, device=images.device)
        flat = self.mask_logits(detection, *every.nonzero(as_tuple=True))
        return Output(
            logits=detection.logits[-1],
            boxes=detection.boxes[-1],
            aux=list(zip(detection.logits[:-1], detection.boxes[:-1], strict=True)),
            mask_logits=flat.unflatten(0, every.shape),
        )

    def detect(self, images: Tensor) -> Detection:
        """(B, 3, H, W) unpadded, normalised images -> last layer's detection, for inference."""
        return self.detr(images, None, every_layer=False)

    def mask_logits(
        self, found: Detection, image_index: Tensor, query_index: Tensor, *, chunk: int = 0
    ) -> Tensor:
        """(N, h, w) mask logits at Res2's size for N (image, query) pairs of a detection.

        image_index and query_index (N,) int64. `chunk`: most pairs at a time, to bound memory (0:
        all at once).
        """
        pyramid = [features.tensors for features in found.features[2::-1]]  # Res4, Res3, Res2
        shares = self.mask_head.prepare(found.projected, pyramid)
        size = chunk or max(len(image_index), 1)
        parts = [
            self._masks_of(found, shares, images, queries)
            for images, queries in zip(
                image_index.split(size), query_index.split(size), strict=True
            )
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _masks_of(
        self, detection: Detection, shares: list[Tensor], image_index: Tensor, query_index: Tensor
    ) -> Tensor:
        queries = detection.embeddings[image_index, query_index]  # (N, d)
        maps = self.bbox_attention(queries, detection.memory, detection.padding, image_index)
        maps = maps.unflatten(-1, detection.projected.shape[-2:])  # (N, heads, h5, w5)
        return self.mask_head(shares, maps, image_index)

    def fold(self, dtype: torch.dtype = torch.float32) -> DetrPanoptic:
        """Make the model ready for inference, in place: batch norm folded, channels last, eval.

        All weights but the class head's are cast to `dtype`. In bfloat16 neighbouring logits near 8
        are 0.03 to 0.06 apart, so the batch size could decide about a query near the threshold.
        """
        backbone = self.detr.backbone[0]
        assert isinstance(backbone, Backbone)
        assert isinstance(backbone.body, ResNet), "folded already"
        backbone.body = FoldedResNet(backbone.body)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        head = copy.deepcopy(self.detr.class_embed)
        self.to(dtype)
        self.detr.class_embed = head
        self.mask_head.keep_phases()
        return self

    def compile_detector(self, backend: str = "inductor") -> None:
        """Let torch compile backbone and transformer for any image size; rounding changes.

        The mask head is not compiled: its enlarging depends on the parity of six sides, and torch
        would compile each combination. `fullgraph`: a graph per convolution would exceed torch's
        limit of recompilations, and results would then depend on the order of image sizes.
        """
        backbone = self.detr.backbone[0]
        assert isinstance(backbone, Backbone)
        backbone.body.compile(fullgraph=True, dynamic=True, backend=backend)
        self.detr.transformer.compile(fullgraph=True, dynamic=True, backend=backend)

    def use_winograd(self) -> None:
        """Use the faster form (winograd.py) of wide 3x3 convolutions in the backbone.

        For a folded float32 model on a CPU. The mask head's convolutions are too narrow.
        """
        use_winograd(self.detr.backbone)
