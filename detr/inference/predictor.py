"""The public model (`load`, `Predictor`): images in, panoptic maps out.

Only images of equal processed size share a batch, and nothing is padded, so the result of an image
does not depend on the other images of the batch. On a CPU images run one by one: results are then
bit-identical in any batch, and batches of large images are no faster there. On a GPU batches are
faster, and change results by rounding only.

A batch that doesn't fit in memory raises torch.OutOfMemoryError; callers may retry with half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detr.categories import Categories
from detr.inference.decode import decode_image
from detr.inference.gpu_batch import InFlight, parts_of
from detr.inference.postprocess import merge
from detr.inference.preprocess import processed_size
from detr.inference.steps import MASK_BYTES_ELSEWHERE, Pixels, Steps
from detr.models.detr import DetrPanoptic
from detr.panoptic import Panoptic
from detr.weights.checkpoint import open_checkpoint
from detr.weights.fingerprint import (
    ModelCard,
    Settings,
    describe,
    make_card,
    make_settings,
    resolve_device,
    with_threshold,
)

AnyImage = Image.Image | Pixels | str | Path

MOST_IMAGES = 32  # in a batch; larger batches are no faster on a GPU
BATCHES_IN_FLIGHT = 3  # at most, see gpu_batch.py
# Peak activations, in values per input pixel: all four feature maps (30), the three widest of Res2
# (48), the stem (16), and the input.
VALUES_PER_PIXEL = 100


class Predictor(Steps):
    """A loaded model. Make it with `detr.load`; `segment` is all that most callers need."""

    def __init__(
        self,
        model: DetrPanoptic,
        card: ModelCard,
        *,
        device: torch.device,
        settings: Settings,
        batch_size: int | None,
    ) -> None:
        """`model` is unfolded, on the CPU in float32; the predictor folds and moves the model."""
        super().__init__(model, card, device=device, settings=settings)
        self.batch_size = batch_size
        self.size_quantum = settings.size_quantum

    def __repr__(self) -> str:
        config, recommended = self.card.config, self.card.recommended_threshold
        whose = ", as the weights recommend" if self.threshold == recommended else ""
        return (
            f"<Predictor: {config.backbone}, {len(self.categories)} categories, "
            f"{self.device.type} {self.card.dtype}, threshold {self.threshold:g}{whose}>"
        )

    @property
    def fingerprint(self) -> str:
        return self.card.fingerprint

    @property
    def weights_sha256(self) -> str:
        """SHA-256 (hex) of the weight file as it would be without a recommended threshold in it.

        Two files that differ in the recommended threshold alone have the same value.
        """
        return self.card.weights_sha256

    def processed_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the model's input. Raises ImageError `too_thin`."""
        config = self.card.config
        return processed_size(
            height, width, size=config.size, max_size=config.max_size, quantum=self.size_quantum
        )

    @property
    def works_alone(self) -> bool:
        """Whether the device computes asynchronously (a GPU), so that `start` gains time."""
        return self.device.type != "cpu"

    def segment(
        self, images: Sequence[AnyImage], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Panoptic]:
        """The panoptic map of each image, in order, at the size that `output_size` says.

        `images`: PIL images, (H, W, 3) uint8 RGB arrays, or paths of files, of any sizes. `sizes`:
        the original (height, width) of each image, where arrays were decoded at a smaller size.
        Raises ImageError for a file that can't be decoded or a shape that is too thin, ValueError
        for an array of another shape or dtype, and torch.OutOfMemoryError.
        """
        pixels = [_to_pixels(image) for image in images]
        originals = sizes or [(int(image.shape[0]), int(image.shape[1])) for image in pixels]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(originals):
            groups.setdefault(self.processed_size(*size), []).append(index)
        results: dict[int, Panoptic] = {}
        for size, members in groups.items():
            batch_size = 1 if self.device.type == "cpu" else self._images_at_a_time(*size)
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                answers = self._segment_batch(
                    [pixels[index] for index in batch], size, [originals[index] for index in batch]
                )
                results.update(zip(batch, answers, strict=True))
        return [results[index] for index in range(len(pixels))]

    def start(
        self, images: Sequence[Pixels], sizes: Sequence[tuple[int, int]] | None = None
    ) -> InFlight:
        """Begin a batch of images of one processed size; see `InFlight` for the next steps.

        Arguments as for `segment`, arrays only. Raises ValueError for several processed sizes.
        """
        originals = sizes or [(int(image.shape[0]), int(image.shape[1])) for image in images]
        [size] = {self.processed_size(*original) for original in originals}
        return InFlight(self, images, size, originals)

    @torch.inference_mode()
    def _segment_batch(
        self,
        images: Sequence[Pixels],
        size: tuple[int, int],
        originals: Sequence[tuple[int, int]],
    ) -> list[Panoptic]:
        """One batch: `size` is the processed (height, width), `originals` are the images'."""
        detections = self.model.detect(self.to_input(images, size))
        scores, labels, keep = self.choose(detections.logits[-1])
        image_index, query_index = keep.nonzero(as_tuple=True)
        masks = self.model.mask_logits(
            detections, image_index, query_index, chunk=self.chunk(detections.features[0].tensors)
        )  # (N, h, w)
        category_ids = [self.category_of(label) for label in labels[keep].tolist()]
        score_list = scores[keep].tolist()
        answers = []
        for part, original in zip(parts_of(keep.sum(1).tolist()), originals, strict=True):
            processed, final = self.geometry(masks, size, original)
            answer = merge(
                masks[part],
                category_ids[part],
                score_list[part],
                categories=self.categories,
                processed_size=processed,
                original_size=final,
            )
            answers.append(answer)
        return answers

    def _images_at_a_time(self, height: int, width: int) -> int:
        """Images of a batch if it is the only one in flight; at most `batch_size`."""
        capacity = BATCHES_IN_FLIGHT * self.images_that_fit(height, width)
        return min(self.batch_size or MOST_IMAGES, capacity, MOST_IMAGES)

    def images_that_fit(self, height: int, width: int) -> int:
        """Images of this processed size in a batch, by free memory, with all batches in flight."""
        if self.device.type != "cuda":
            return MOST_IMAGES  # on a CPU images run one by one
        free, _ = torch.cuda.mem_get_info(self.device)
        idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        room = (free + idle) * 0.8 - min(MASK_BYTES_ELSEWHERE, free // 4)
        image = VALUES_PER_PIXEL * height * width * self.dtype.itemsize
        return max(1, min(MOST_IMAGES, int(room / (BATCHES_IN_FLIGHT * image))))


def load(
    weights: str | Path,
    *,
    recipe: str | None = None,
    categories: Categories | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threshold: float | None = None,
    size_quantum: int = 1,
    compile: bool = False,
    output_size: str = "original",
    batch_size: int | None = None,
) -> Predictor:
    """Load a local weight file or Hugging Face folder, ready to segment.

    recipe: r50, r50-dc5 or r101 for a published file (checked by sha256). categories: the label
    set, for files without one. device: auto, cpu, cuda or cuda:N. dtype: auto, fp32, bf16 or fp16.
    threshold: least class probability of a kept query, exclusive; None means the weight file's
    recommendation, else the published 0.85 (see `Predictor.threshold`). size_quantum: round
    processed sides to multiples of this many pixels, so that photos of many aspect ratios share
    batches. compile: torch compiles backbone and transformer (a minute at the first image; other
    rounding). output_size: original, processed (the model input's), or quarter (the mask head's).
    batch_size: most images in a batch on a GPU (by default what fits); changes results by rounding
    only. Raises ModelError.

        import detr
        model = detr.load("detr-r50-panoptic-00ce5173.pth")
        [panoptic] = model.segment(["photo.jpg"])
    """
    settings = make_settings(
        device=device,
        dtype=dtype,
        threshold=threshold,
        size_quantum=size_quantum,
        compile=compile,
        output_size=output_size,
    )
    checkpoint = open_checkpoint(weights, recipe=recipe, categories=categories)
    settings = with_threshold(settings, threshold, checkpoint)
    with torch.device("meta"):
        model = DetrPanoptic(checkpoint.config)
    model.load_state_dict(checkpoint.weights(), assign=True)
    return Predictor(
        model,
        make_card(checkpoint, settings),
        device=resolve_device(device),
        settings=settings,
        batch_size=batch_size,
    )


def _to_pixels(image: AnyImage) -> Pixels:
    if isinstance(image, str | Path):
        return decode_image(Path(image).read_bytes())
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if image.dtype not in (np.uint8, torch.uint8) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}: convert it to RGB"
        )
    return image


load.describe = describe  # type: ignore[attr-defined]  # a loader's way to a card without a model
