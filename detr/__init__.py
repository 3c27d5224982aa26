"""DETR panoptic segmentation: one import for a notebook, no Ray and no storage.

import detr

model = detr.load("detr-r50-panoptic-00ce5173.pth")
[panoptic] = model.segment(["photo.jpg"])
for segment in panoptic.segments:
    print(model.categories.by_id(segment.category_id).name, segment.score)
"""

from detr.card import ModelCard, describe
from detr.categories import COCO_PANOPTIC, Categories, Category
from detr.checkpoint import save
from detr.config import RECIPES, DetrConfig, ModelError, Recipe
from detr.model import DetrPanoptic
from detr.postprocess import Panoptic, Segment
from detr.predictor import Predictor, load
from detr.preprocess import ImageError

load.describe = describe  # type: ignore[attr-defined]  # the engine asks a loader for its card

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
