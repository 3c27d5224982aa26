"""What a batch may cost in quality: batches of equal sizes against padded ones, as PQ and pixels.

The claim: only images of equal processed size share a batch here, so PQ is the same at batch 8 as
at batch 1. Upstream and transformers pad a batch to its largest image: the padding is computed too,
enters group norm's statistics, and the masks, padding included, are then stretched over each image.
Four ways on the same scenes of three sizes, with the same weights:

    batch 1            each image alone
    equal sizes        batches of 8 of one size
    padded, stretched  batches of 8 of any sizes, as upstream and transformers do it
    padded, cropped    the same with the padding cut off before the masks are stretched

    python benchmarks/batching.py [--images 240] [--weights FILE]

A table first; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import detr
from benchmarks.demo_scenes import DEMO_THRESHOLD, DEMO_WEIGHTS, made_scenes, panoptic_quality
from benchmarks.gpu_bench import categories_of
from benchmarks.measure import print_result
from detr.inference.postprocess import merge
from detr.inference.preprocess import normalize, resize
from detr.panoptic import Panoptic

import torch  # isort: skip  # after detr, which tells its threads how to wait

BATCH = 8
Images = Sequence[np.ndarray]


def alone(model: detr.Predictor, images: Images) -> list[Panoptic]:
    return [model.segment([image])[0] for image in images]


def equal_sizes(model: detr.Predictor, images: Images) -> list[Panoptic]:
    """True batches, which `segment` itself makes on a GPU only."""
    answers: dict[int, Panoptic] = {}
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(model.processed_size(*image.shape[:2]), []).append(index)
    for size, members in groups.items():
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            pixels = [images[index] for index in batch]
            shapes = [(image.shape[0], image.shape[1]) for image in pixels]
            answers.update(zip(batch, model._segment_batch(pixels, size, shapes), strict=True))
    return [answers[index] for index in range(len(images))]


@torch.inference_mode()
def padded(model: detr.Predictor, images: Images, *, crop: bool) -> list[Panoptic]:
    answers: list[Panoptic] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        sizes = [model.processed_size(*image.shape[:2]) for image in batch]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        inputs = torch.zeros(len(batch), 3, height, width)
        padding = torch.ones(len(batch), height, width, dtype=torch.bool)
        for index, (image, (h, w)) in enumerate(zip(batch, sizes, strict=True)):
            pixels = normalize(resize(torch.from_numpy(image.copy())[None], (h, w)))
            inputs[index, :, :h, :w] = pixels[0]
            padding[index, :h, :w] = False
        inputs = inputs.to(model.dtype).to(memory_format=torch.channels_last)
        found = model.model.detr(inputs, padding, every_layer=False)
        scores, labels, keep = model.choose(found.logits[-1])
        image_index, query_index = keep.nonzero(as_tuple=True)
        masks = model.model.mask_logits(found, image_index, query_index)
        for index, (image, (h, w)) in enumerate(zip(batch, sizes, strict=True)):
            own = masks[image_index == index]
            processed = (h, w)
            if crop:  # to the cells that hold some of the image
                rows, columns = -(-own.shape[1] * h // height), -(-own.shape[2] * w // width)
                own = own[:, :rows, :columns]
            answers.append(
                merge(
                    own,
                    [model.category_of(int(label)) for label in labels[index, keep[index]]],
                    scores[index, keep[index]].tolist(),
                    categories=model.categories,
                    processed_size=processed,
                    original_size=(image.shape[0], image.shape[1]),
                )
            )
    return answers


def padding_share(model: detr.Predictor, images: Images) -> float:
    """Pixels of padding per pixel of image in padded batches."""
    real = total = 0
    for start in range(0, len(images), BATCH):
        sizes = np.array(
            [model.processed_size(*image.shape[:2]) for image in images[start : start + BATCH]]
        )
        real += int(sizes.prod(1).sum())
        total += int(sizes.max(0).prod() * len(sizes))
    return total / real - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--weights", default=str(DEMO_WEIGHTS))
    arguments = parser.parse_args()
    model = detr.load(arguments.weights, device="cpu", threshold=DEMO_THRESHOLD)
    scenes = made_scenes(arguments.images)
    images = [scene.image for scene in scenes]
    truth = [(scene.segment_map, scene.segments) for scene in scenes]
    ways: dict[str, Callable[[], list[Panoptic]]] = {
        "batch 1": lambda: alone(model, images),
        "equal sizes": lambda: equal_sizes(model, images),
        "padded, stretched": lambda: padded(model, images, crop=False),
        "padded, cropped": lambda: padded(model, images, crop=True),
    }
    results: dict[str, dict[str, Any]] = {}
    plain: list[Panoptic] = []
    for name, way in ways.items():
        started = time.process_time()
        answers = way()
        seconds = time.process_time() - started
        plain = plain or answers
        changed = [
            float((categories_of(one) != categories_of(other)).mean())
            for one, other in zip(answers, plain, strict=True)
        ]
        results[name] = {
            **panoptic_quality(answers, truth),
            "category_changed": round(float(np.mean(changed)), 6),
            "extra_pixels": round(padding_share(model, images) if "padded" in name else 0.0, 4),
            "cpu_ms": round(1000 * seconds / len(images), 2),
        }
    print(f"{len(images)} scenes of 3 sizes, {Path(arguments.weights).name}; PQ in points")
    print(f"{'':20}{'PQ':>8}{'things':>8}{'stuff':>8}{'other category':>16}{'extra pixels':>14}")
    for name, found in results.items():
        print(
            f"{name:20}{found['All']:8.2f}{found['Things']:8.2f}{found['Stuff']:8.2f}"
            f"{found['category_changed']:16.3%}{found['extra_pixels']:14.1%}"
        )
    weights = Path(arguments.weights).name
    print_result("batching", images=len(images), batch=BATCH, weights=weights, results=results)


if __name__ == "__main__":
    main()
