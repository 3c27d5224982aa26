"""The table of `panoptic inspect`: name, shape and meaning of each stage of DETR on one image.

Shapes are those of the tensors, not computed from the config. Beside them are the paper's letters:
H and W of the model's input, d channels, N queries, M attention heads, K kept queries, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from detr.config import DetrConfig
from detr.models.detr import Detection
from detr.models.position_encoding import sine_position
from detr.panoptic import Panoptic


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    part: str  # group of stages
    name: str
    shape: tuple[int, ...]
    letters: str  # the shape in the paper's letters
    what: str  # explanation


def grid(found: Detection) -> Tensor:
    """The encoder's output as a map, (1, d, h5, w5)."""
    return found.memory.transpose(1, 2).unflatten(-1, found.projected.shape[-2:])


def stages(
    config: DetrConfig,
    image: NDArray,
    inputs: Tensor,
    found: Detection,
    attention: Tensor,
    steps: Sequence[tuple[str, Tensor]],
    kept: int,
    panoptic: Panoptic,
) -> Iterator[Stage]:
    """All stages of one image, from the photo to the panoptic map.

    image: (H, W, 3); inputs: (1, 3, h, w); attention: (N, heads, h5, w5); steps: of one query, as
    `mask_head_steps` gives them; kept: number of kept queries.
    """
    at = [f"H/{stride} × W/{stride}" for stride in config.stage_strides]
    yield Stage("Image", "photo", image.shape, "H₀ × W₀ × 3", "as decoded, 8 bits a channel")
    what = f"resized (shorter side {config.size}, longer at most {config.max_size}), normalised"
    yield Stage("Image", "input", tuple(inputs.shape), "1 × 3 × H × W", what)
    yield from _backbone(found, at)
    what = "Res5 through a 1x1 convolution (input_proj) to d channels"
    shape = tuple(found.projected.shape)
    yield Stage("Transformer", "projected Res5", shape, f"1 × d × {at[3]}", what)
    what = "its cells as a sequence, which the encoder lets look at each other"
    yield Stage("Transformer", "tokens", tuple(found.memory.shape), "1 × cells × d", what)
    what = "the encoder's output, back in rows and columns: the figure's encoded image"
    yield Stage("Transformer", "encoded image", tuple(grid(found).shape), f"1 × d × {at[3]}", what)
    what = "the decoder's output: what each of the N learned queries found"
    shape = tuple(found.embeddings.shape)
    yield Stage("Transformer", "box embeddings", shape, "1 × N × d", what)
    what = "one linear layer; the last class is no-object"
    yield Stage("Heads", "class logits", tuple(found.logits.shape[1:]), "1 × N × (C + 1)", what)
    what = "three linear layers and a sigmoid: centre x, centre y, width, height in 0..1"
    yield Stage("Heads", "boxes", tuple(found.boxes.shape[1:]), "1 × N × 4", what)
    what = "queries whose best class is not no-object and surer than the threshold"
    yield Stage("Heads", "kept queries", (kept,), "K of N", what)
    what = (
        "box embeddings times encoded image per head; one softmax over heads and cells, no values"
    )
    yield Stage("Masks", "attention maps", tuple(attention.shape), f"N × M × {at[3]}", what)
    for (name, x), (channels, level, what) in zip(steps, _STEPS, strict=True):
        letters = f"K × {channels} × {at[level]}"
        yield Stage("Masks", name, (kept, *x.shape[1:]), letters, what)
    what = "each cell to the kept query with the largest logit"
    quarter = tuple(steps[-1][1].shape[-2:])
    yield Stage("Merge", "map of the logits", quarter, at[0], what)
    what = "the same at the photo's own size; segments of 4 pixels or less are dropped"
    yield Stage("Merge", "panoptic map", panoptic.segment_map.shape, "H₀ × W₀", what)
    what = "with category, thing or stuff, score"
    yield Stage("Merge", "segments", (len(panoptic.segments),), "S", what)


def _backbone(found: Detection, at: Sequence[str]) -> Iterator[Stage]:
    """The stages of four feature maps, each with its padding mask and its position encoding."""
    channels = found.projected.shape[1]
    for level, features in enumerate(found.features):
        last, name = level == 3, f"Res{level + 2}"
        shape = tuple(features.tensors.shape)
        padding = torch.zeros(1, *shape[-2:], dtype=torch.bool)
        position = sine_position(padding, channels)
        what = "goes to the transformer and, projected, to the mask head"
        what = what if last else "set aside for the mask head"
        yield Stage("Backbone", name, shape, f"1 × C{level + 2} × {at[level]}", what)
        what = "which cells are padding: none, for images are never padded here"
        yield Stage("Backbone", f"{name} mask", tuple(padding.shape), f"1 × {at[level]}", what)
        what = "sines and cosines of row and column; "
        what += "added to queries and keys in every encoder layer" if last else "not used"
        yield Stage(
            "Backbone", f"{name} position", tuple(position.shape), f"1 × d × {at[level]}", what
        )


# Channels, level (0: Res2's size, 3: Res5's) and meaning of each step of the mask head.
_STEPS = (
    ("(d + M)", 3, "projected Res5, the same for every query, and the query's own M maps"),
    ("(d + M)", 3, "3x3 convolution, group norm, ReLU"),
    ("d/2", 3, "3x3 convolution, group norm, ReLU"),
    ("d/2", 2, "enlarged by nearest neighbour, plus Res4 through a 1x1 convolution"),
    ("d/4", 2, "3x3 convolution, group norm, ReLU"),
    ("d/4", 1, "enlarged, plus Res3 through a 1x1 convolution"),
    ("d/8", 1, "3x3 convolution, group norm, ReLU"),
    ("d/8", 0, "enlarged, plus Res2 through a 1x1 convolution"),
    ("d/16", 0, "3x3 convolution, group norm, ReLU"),
    ("1", 0, "the last 3x3 convolution: one logit a cell"),
)
