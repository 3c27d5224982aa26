"""The start of a training: architecture and initial tensors, from scratch or from a weight file."""

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

FROM_SCRATCH: Final = 0.5  # threshold of a model trained from scratch
HEAD = "detr.class_embed."  # class head, which is initialised anew for a new label set


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

    Weights of another label set give all tensors but the class head. size: the shorter side in
    pixels, in place of the architecture's. known: a JSON of the label set of the weights. Raises
    UserError, ModelError.
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
    """The default threshold (smallest class probability of a segment) of a training.

    It is what the weights recommend, else THRESHOLD of the published models; from scratch it is
    lower, since a new model gives lower probabilities.
    """
    if weights is None:
        return FROM_SCRATCH
    recommended = recommended_threshold(local_weights(weights, {})[0])
    return THRESHOLD if recommended is None else recommended


def _head_rows(checkpoint: Checkpoint, categories: Categories) -> list[int] | None:
    """The rows of the class head for `categories` and no-object; None for another label set.

    The rows of the published head are COCO ids; those of a trained head are positions in the file.
    """
    if set(checkpoint.categories) != set(categories):
        return None
    classes = checkpoint.config.num_classes
    meaning = checkpoint.categories.class_ids(classes)
    return [*(meaning.index(category.id) for category in categories), classes]


def read_architecture(name: str) -> DetrConfig:
    """The config of `small` (small.toml), of a published recipe, or of a TOML file of DetrConfig.

    Raises UserError.
    """
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
    """SHA-256 (hex) of the names and values of the tensors; empty for None."""
    if tensors is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
