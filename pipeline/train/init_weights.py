"""What a training starts from: an architecture and new weights, or a file's and its weights."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Final

from torch import Tensor

from detr.categories import Categories
from detr.config import RECIPES, THRESHOLD, DetrConfig
from detr.weights.checkpoint import Checkpoint, open_checkpoint
from detr.weights.own_format import recommended_threshold
from pipeline.errors import UserError
from pipeline.segmentation.model_spec import local_weights, read_categories

FROM_SCRATCH: Final = 0.5  # threshold of a model that nothing was learnt by before
HEAD = "detr.class_embed."  # what a new label set makes anew


def start(
    weights: str | None,
    architecture: str,
    size: int | None,
    categories: Categories,
    phase: str,
    *,
    known: str | None = None,
) -> tuple[DetrConfig, dict[str, Tensor] | None]:
    """The architecture, and the tensors to start from (None: from scratch).

    Weights of another label set keep every tensor but the class head. known: a JSON of the label
    set of the weights. Raises UserError, ModelError.
    """
    if weights is None:
        if phase == "masks":
            raise UserError("--phase masks learns masks alone: give --weights of a boxes phase")
        config, initial = read_architecture(architecture), None
        config = replace(config, num_classes=len(categories), frozen_norm=False)
    else:
        path, recipe = local_weights(weights, {})
        checkpoint = open_checkpoint(
            path, recipe=recipe, categories=read_categories(known) if known else None
        )
        config, initial = checkpoint.config, checkpoint.weights()
        head = _head_rows(checkpoint, categories)
        if head is not None:
            initial |= {n: tensor[head] for n, tensor in initial.items() if n.startswith(HEAD)}
        elif phase == "masks":
            raise UserError(f"--phase masks keeps the classes, but {weights} has others")
        else:
            initial = {n: tensor for n, tensor in initial.items() if not n.startswith(HEAD)}
        config = replace(config, num_classes=len(categories))
    if size is not None:
        config = replace(
            config, size=size, max_size=max(size, config.max_size * size // config.size)
        )
    return config, initial


def usual_threshold(weights: str | None) -> float:
    """The least class probability of a segment where nobody names one: a young model is less sure
    than the published ones, and weights of our own say what they were kept under."""
    if weights is None:
        return FROM_SCRATCH
    recommended = recommended_threshold(local_weights(weights, {})[0])
    return THRESHOLD if recommended is None else recommended


def _head_rows(checkpoint: Checkpoint, categories: Categories) -> list[int] | None:
    """The rows of the class head that are these categories', and no-object's; None if it has
    others.

    The published head is indexed by COCO id; a label set that is learnt by position in its file.
    """
    if set(checkpoint.categories) != set(categories):
        return None
    classes = checkpoint.config.num_classes
    meaning = checkpoint.categories.class_ids(classes)
    return [*(meaning.index(category.id) for category in categories), classes]


def read_architecture(name: str) -> DetrConfig:
    """`small` (small.toml beside this), a published recipe's, or a TOML file of the fields."""
    if name in RECIPES:
        return RECIPES[name].config
    file = resources.files("pipeline.train") / "small.toml" if name == "small" else Path(name)
    try:
        return DetrConfig.from_dict(tomllib.loads(file.read_text("utf-8-sig")))
    except FileNotFoundError:
        raise UserError(
            f"--architecture {name!r} is neither small, {', '.join(RECIPES)} nor a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"--architecture {name}: {error}") from None


def digest(tensors: dict[str, Tensor] | None) -> str:
    """What tells one start from another; empty for a start from scratch."""
    if tensors is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
