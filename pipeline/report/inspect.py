"""DETR on one image, stage by stage: the tensors of backbone, transformer, heads and mask head.

Here the mask head runs as in the paper, one query at a time, so shapes and pictures are those of
the paper. A run computes the same result faster (`detr.models.mask_head`): it splits linear sums,
runs only kept queries and never builds an enlarged map. The panoptic map is that of a run; a test
compares both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detr.inference.decode import ImageError
from detr.inference.postprocess import merge
from detr.inference.predictor import Predictor
from detr.inference.preprocess import normalize, resize
from detr.models.detr import Detection, DetrPanoptic
from detr.panoptic import Panoptic
from pipeline.errors import UserError
from pipeline.report.inspect_stages import Stage, grid, stages


@dataclass(frozen=True)
class KeptQuery:
    """A kept query with its attention and the stages of its mask."""

    query: int
    category_id: int
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in 0..1 of the image
    attention: NDArray[np.float32]  # (heads, h5, w5), sums to 1
    steps: tuple[tuple[str, NDArray[np.float32]], ...]  # mean over channels after each convolution
    logits: NDArray[np.float32]  # (h2, w2)


@dataclass(frozen=True)
class Inspection:
    """The stages of one image in DETR."""

    image: NDArray[np.uint8]  # (H, W, 3)
    processed_size: tuple[int, int]
    stages: tuple[Stage, ...]
    features: tuple[tuple[str, NDArray[np.float32]], ...]  # name, norm over channels (h, w)
    queries: tuple[KeptQuery, ...]  # of the kept ones, those with the highest scores, descending
    kept: int  # number of kept queries
    boxes: NDArray[np.float32]  # (N, 4) of all queries: centre x, y, width, height in 0..1
    owner: NDArray[np.int64]  # (h2, w2): kept query with the largest logit, before `merge`
    owner_categories: tuple[int, ...]  # of the kept queries, indexed by `owner`
    panoptic: Panoptic


@torch.inference_mode()
def inspect_image(predictor: Predictor, image: NDArray[np.uint8], queries: int = 8) -> Inspection:
    """Run DETR on one (H, W, 3) uint8 image and keep all stages.

    queries: how many kept queries, those with the highest scores, get pictures of their mask head.
    Raises UserError for an image that is too thin.
    """
    model, config = predictor.model, predictor.card.config
    try:
        size = predictor.processed_size(*image.shape[:2])
    except ImageError as error:
        raise UserError(f"the image can't be segmented: {error} ({error.code})") from error
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].to(predictor.device)
    inputs = normalize(resize(pixels, size)).to(predictor.dtype)  # (1, 3, h, w)
    detection = model.detect(inputs)
    scores, labels, keep = (choice[0] for choice in predictor.choose(detection.logits[-1]))
    kept, scores = keep.nonzero().squeeze(1), scores[keep]  # (K,) both
    logits = model.mask_logits(detection, torch.zeros_like(kept), kept, chunk=8)  # (K, h2, w2)
    categories = [predictor.category_of(label) for label in labels[keep].tolist()]
    panoptic = merge(
        logits,
        categories,
        scores.tolist(),
        categories=predictor.categories,
        processed_size=size,
        original_size=(image.shape[0], image.shape[1]),
    )
    all_queries = torch.arange(detection.embeddings.shape[1], device=predictor.device)
    attention = _attention(model, detection, all_queries)  # (N, heads, h5, w5)
    order = scores.argsort(descending=True, stable=True)[:queries].tolist()
    followed = []
    steps: list[tuple[str, Tensor]] = []
    for position in order:
        query = int(kept[position])
        steps = list(mask_head_steps(model, detection, attention[query]))
        centre_x, centre_y, width, height = detection.boxes[-1][0, query].float().tolist()
        followed.append(
            KeptQuery(
                query=query,
                category_id=categories[position],
                score=float(scores[position]),
                box=(
                    centre_x - width / 2,
                    centre_y - height / 2,
                    centre_x + width / 2,
                    centre_y + height / 2,
                ),
                attention=_array(attention[query]),
                steps=tuple((name, _array(x[0].mean(0))) for name, x in steps[:-1]),
                logits=_array(steps[-1][1][0, 0]),
            )
        )
    if not steps:  # no query was kept: the table of stages needs the shapes all the same
        steps = list(mask_head_steps(model, detection, attention[0]))
    features = [f.tensors for f in detection.features]
    owner = logits.float().argmax(0) if len(logits) else torch.zeros(logits.shape[1:])
    return Inspection(
        image=image,
        processed_size=size,
        stages=tuple(
            stages(config, image, inputs, detection, attention, steps, len(kept), panoptic)
        ),
        features=(
            *((f"Res{number}", _norm(x)) for number, x in enumerate(features, 2)),
            ("Encoded image", _norm(grid(detection))),
        ),
        queries=tuple(followed),
        kept=len(kept),
        boxes=_array(detection.boxes[-1][0]),
        owner=owner.long().cpu().numpy(),
        owner_categories=tuple(categories),
        panoptic=panoptic,
    )


def mask_head_steps(
    model: DetrPanoptic, found: Detection, attention: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The stages of the mask head for one query: names and (1, C, h, w) tensors.

    attention: (heads, h5, w5) of the query. The last tensor is the mask logits, (1, 1, h2, w2).
    Source: upstream's `MaskHeadSmallConv`.
    """
    head = model.mask_head

    def convolved(x: Tensor, number: int) -> Tensor:
        norm = head.get_submodule(f"gn{number}")
        return F.relu(norm(head.convolution(f"lay{number}")(x)))

    x = torch.cat([found.projected, attention[None].to(found.projected.dtype)], dim=1)
    yield "Res5 + attention", x
    x = convolved(x, 1)
    yield "convolution 1", x
    x = convolved(x, 2)
    yield "convolution 2", x
    for number, name in ((1, "Res4"), (2, "Res3"), (3, "Res2")):
        features = found.features[3 - number].tensors
        adapted = head.convolution(f"adapter{number}")(features)
        x = adapted + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
        yield f"enlarged + {name}", x
        x = convolved(x, number + 2)
        yield f"convolution {number + 2}", x
    yield "mask logits", head.out_lay(x)


def _attention(model: DetrPanoptic, detection: Detection, queries: Tensor) -> Tensor:
    """The attention maps of these queries of one image, (N, heads, h5, w5)."""
    maps = model.bbox_attention(
        detection.embeddings[0, queries], detection.memory, None, torch.zeros_like(queries)
    )
    return maps.unflatten(-1, detection.projected.shape[-2:])


def _norm(x: Tensor) -> NDArray[np.float32]:
    """The norm over channels: (1, C, h, w) -> (h, w)."""
    return _array(x[0].float().norm(dim=0))


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.float().cpu().numpy()
