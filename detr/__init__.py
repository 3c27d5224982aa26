"""DETR panoptic segmentation: one import for a notebook, no Ray and no storage.

import detr

model = detr.load("detr-r50-panoptic-00ce5173.pth")
[panoptic] = model.segment(["photo.jpg"])
for segment in panoptic.segments:
    print(model.categories.by_id(segment.category_id).name, segment.score)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads sleep instead of spinning: as fast on a quiet machine (1.11 against 1.13 s an
# image), and half the CPU time on a shared one (2.0 against 4.2 CPU seconds). OpenMP reads the
# variable once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from detr.categories import COCO_PANOPTIC, Categories, Category
    from detr.config import RECIPES, DetrConfig, ModelError, Recipe
    from detr.inference.decode import ImageError
    from detr.inference.predictor import Predictor, load
    from detr.models.detr import DetrPanoptic
    from detr.panoptic import Panoptic, Segment
    from detr.weights.checkpoint import save
    from detr.weights.fingerprint import ModelCard, describe

__all__ = [
    "COCO_PANOPTIC",
    "RECIPES",
    "Categories",
    "Category",
    "DetrConfig",
    "DetrPanoptic",
    "ImageError",
    "ModelCard",
    "ModelError",
    "Panoptic",
    "Predictor",
    "Recipe",
    "Segment",
    "describe",
    "load",
    "save",
]

_HOME = {
    "COCO_PANOPTIC": "categories",
    "Categories": "categories",
    "Category": "categories",
    "DetrConfig": "config",
    "DetrPanoptic": "models.detr",
    "ImageError": "inference.decode",
    "ModelCard": "weights.fingerprint",
    "ModelError": "config",
    "Panoptic": "panoptic",
    "Predictor": "inference.predictor",
    "RECIPES": "config",
    "Recipe": "config",
    "Segment": "panoptic",
    "describe": "weights.fingerprint",
    "load": "inference.predictor",
    "save": "weights.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `detr.categories` alone does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"detr.{_HOME[name]}"), name)
