"""DETR panoptic: images -> a class, a box and a mask logit map for every query.

One path serves training and inference. `detect` runs backbone, encoder, decoder and the two heads;
`mask_logits` runs attention maps and mask head for the (image, query) pairs that it is asked for:
the kept ones at inference, the matched ones in training. `forward` joins both, so that gradients
are synchronised between workers as usual. Computing the masks of all queries and throwing most
away, as upstream does, is what makes it slow; nothing here can do so by accident.

Parameter names are those of the published files (`detr.*`, `bbox_attention.*`, `mask_head.*`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
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
    """What is known of a batch before its masks."""

    logits: Tensor  # (layers, B, Q, classes + 1); one layer at inference
    boxes: (
        Tensor  # (layers, B, Q, 4): centre x, centre y, width, height in 0..1 of the batch's size
    )
    embeddings: Tensor  # (B, Q, d): the last decoder layer's output
    memory: Tensor  # (B, h * w, d): the encoded image
    projected: Tensor  # (B, d, h, w): Res5 through `input_proj`, which the mask head reads
    features: list[Features]  # Res2, Res3, Res4, Res5

    @property
    def padding(self) -> Tensor | None:
        """(B, h * w) bool: which cells of the encoded image are padding."""
        mask = self.features[-1].padding
        return None if mask is None else mask.flatten(1)


@dataclass(frozen=True)
class Output:
    """The training forward's answer; Q queries, C classes and one no-object logit after them."""

    logits: Tensor  # (B, Q, C + 1)
    boxes: Tensor  # (B, Q, 4): centre x, centre y, width, height in 0..1
    aux: list[tuple[Tensor, Tensor]]  # (logits, boxes) of every earlier decoder layer
    mask_logits: Tensor | None  # (B, Q, h, w) of all queries, or (N, h, w) of the chosen pairs


Pairs = tuple[Tensor, Tensor]  # image index (N,), query index (N,), both int64


class BoxHead(nn.Module):
    """Three linear layers; the sigmoid is taken by the caller, as upstream's `MLP`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Queries(nn.Module):
    """The learned query embeddings. An `nn.Embedding`, but initialised by a uniform distribution
    (of the same variance): torch imports 900 modules to draw a normal one for a model without
    storage, which is how a weight file is checked."""

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
        features: list[Features] = self.backbone[0](images, padding)
        projected = convolve(features[-1].tensors, self.input_proj)  # (B, d, h, w)
        channels, height, width = projected.shape[1:]
        cells = features[-1].padding  # (B, h, w) or None
        if cells is None:
            place = whole_position(height, width, channels, images.device, projected.dtype)
        else:
            place = sine_position(cells, channels).flatten(2).transpose(1, 2).to(projected.dtype)
        embeddings, memory = self.transformer(
            projected.flatten(2).transpose(1, 2),
            None if cells is None else cells.flatten(1),
            self.query_embed.weight,
            place,
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
    """`DETRsegm` of the paper's code: the detector, attention maps, mask head."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        self.detr = Detr(config)
        self.bbox_attention = AttentionMaps(config)
        self.mask_head = MaskHead(config)

    def forward(
        self,
        images: Tensor,
        padding: Tensor | None = None,
        *,
        masks: bool = True,
        choose: Callable[[Tensor, Tensor], Pairs] | None = None,
    ) -> Output:
        """The training forward: every decoder layer's answer, and masks.

        images (B, 3, H, W) float, normalised, 0 on padding; padding (B, H, W) bool, True on
        padding, None where there is none. `masks=False` leaves them out (the paper's first phase).
        `choose(logits, boxes)` gets the last layer's and returns the (image, query) pairs whose
        masks are wanted, as the matcher finds them; without it all queries' masks are computed.
        """
        found = self.detr(images, padding, every_layer=True)
        logits, boxes = found.logits[-1], found.boxes[-1]
        mask_logits = None
        if masks and choose is not None:
            mask_logits = self.mask_logits(found, *choose(logits.detach(), boxes.detach()))
        elif masks:
            batch, queries = logits.shape[:2]
            pairs = torch.cartesian_prod(
                torch.arange(batch, device=logits.device),
                torch.arange(queries, device=logits.device),
            )
            flat = self.mask_logits(found, pairs[:, 0], pairs[:, 1])
            mask_logits = flat.unflatten(0, (batch, queries))
        aux = list(zip(found.logits[:-1], found.boxes[:-1], strict=True))
        return Output(logits=logits, boxes=boxes, aux=aux, mask_logits=mask_logits)

    def detect(self, images: Tensor) -> Detection:
        """The inference forward up to the masks: unpadded images, heads on the last layer only."""
        return self.detr(images, None, every_layer=False)

    def mask_logits(
        self, found: Detection, image_index: Tensor, query_index: Tensor, *, chunk: int = 0
    ) -> Tensor:
        """(N, h, w) mask logits at Res2's size for N (image, query) pairs of a detection.

        `chunk` bounds memory: at most so many pairs at a time (0: all at once).
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
        self, found: Detection, shares: list[Tensor], image_index: Tensor, query_index: Tensor
    ) -> Tensor:
        queries = found.embeddings[image_index, query_index]  # (N, d)
        maps = self.bbox_attention(queries, found.memory, found.padding, image_index)
        maps = maps.unflatten(-1, found.projected.shape[-2:])  # (N, heads, h5, w5)
        return self.mask_head(shares, maps, image_index)

    def fold(self, dtype: torch.dtype = torch.float32) -> DetrPanoptic:
        """Make the model ready for inference, in place: batch norm folded, channels last, eval.

        All but the class head is cast to `dtype`. Its logits lie 0.03 to 0.06 apart near 8 in
        bfloat16, so that a query near the threshold would come and go with the batch's size.
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
        """Let torch compile backbone and transformer for any size; they then round differently.

        Not the mask head: how it enlarges depends on the parity of six sides, and each combination
        would be compiled anew. As one graph for all sizes: a graph for each convolution would pass
        torch's limit of recompilations, and then results would depend on the order of sizes.
        """
        backbone = self.detr.backbone[0]
        assert isinstance(backbone, Backbone)
        backbone.body.compile(fullgraph=True, dynamic=True, backend=backend)
        self.detr.transformer.compile(fullgraph=True, dynamic=True, backend=backend)

    def use_winograd(self) -> None:
        """Choose the faster form of the wide 3x3 convolutions, for a folded float32 model on a CPU.

        The mask head's are not wide: 264 to 128 channels.
        """
        use_winograd(self.detr.backbone)
