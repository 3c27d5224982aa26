"""The architecture (`DetrConfig`) from the shapes of weights under the published names.

Official and Hugging Face files have no reliable description of their model, but the shapes show
the backbone's depth (R50 or R101), the number of queries, of classes and so on. Dilation, input
size, groups and stem have no trace in the shapes and get the published values; the caller corrects
dilation. So a file fine-tuned on another label set loads without options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from detr.config import DetrConfig, ModelError

_BODY = "detr.backbone.0.body."


def infer_config(name: str, shapes: Mapping[str, Sequence[int]]) -> DetrConfig:
    """The config of weights with these names and shapes; `name` is for the error message.

    Raises ModelError if the file is no DETR, or a DETR without a mask head.
    """
    if "detr.class_embed.weight" not in shapes:
        plain = "class_embed.weight" in shapes or "class_labels_classifier.weight" in shapes
        what = "a DETR detector without a mask head" if plain else "not a DETR panoptic model"
        raise ModelError(
            f"{name} is {what}: expected names such as detr.class_embed.weight and "
            f"mask_head.lay1.weight, found {', '.join(list(shapes)[:3])}, ..."
        )
    try:
        return _infer(shapes)
    except (KeyError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{name} is not a whole DETR panoptic model: {len(shapes)} tensors found, "
            f"and no usable {error.args[0]} among them"
        ) from None


def _infer(shapes: Mapping[str, Sequence[int]]) -> DetrConfig:
    depths = tuple(_count(shapes, rf"{_BODY}layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottleneck = f"{_BODY}layer1.0.conv3.weight" in shapes
    widths = tuple(shapes[f"{_BODY}layer{stage}.0.conv1.weight"][0] for stage in (1, 2, 3, 4))
    num_queries, hidden_dim = shapes["detr.query_embed.weight"]
    return DetrConfig(
        block="bottleneck" if bottleneck else "basic",
        depths=depths,
        widths=widths,
        hidden_dim=hidden_dim,
        nheads=shapes["mask_head.lay1.weight"][0] - hidden_dim,
        enc_layers=_count(shapes, r"detr\.transformer\.encoder\.layers\.(\d+)\."),
        dec_layers=_count(shapes, r"detr\.transformer\.decoder\.layers\.(\d+)\."),
        dim_feedforward=shapes["detr.transformer.encoder.layers.0.linear1.weight"][0],
        num_queries=num_queries,
        num_classes=shapes["detr.class_embed.weight"][0] - 1,
    )


def _count(shapes: Mapping[str, Sequence[int]], pattern: str) -> int:
    """One more than the largest index that the pattern finds; KeyError if it finds none."""
    matches = (re.match(pattern, name) for name in shapes)
    numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "N"))
    return max(numbers) + 1
