"""Images in, panoptic maps out: the model as its users hold it.

Only images of exactly equal processed size share a batch and nothing is ever padded, so an image's
answer doesn't depend on its neighbours. On a CPU images run one by one: the answer is then the same
to the bit in any batch by construction, whatever blocking a BLAS picks for a batch, and a batch of
large images gains nothing there. On a GPU batches do matter; their effect is rounding only.

A batch that doesn't fit raises torch's OutOfMemoryError: the engine halves it, not this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr.card import (
    DTYPES,
    ModelCard,
    Settings,
    describe,
    make_card,
    resolve_device,
    resolve_dtype,
)
from detr.categories import Categories
from detr.checkpoint import open_checkpoint
from detr.memory import keep_freed_memory
from detr.model import DetrPanoptic
from detr.postprocess import Kept, Panoptic, merge, select_batch
from detr.preprocess import decode, normalize, processed_size, resize

AnyImage = Image.Image | NDArray[np.uint8] | str | Path

# Mask logits are computed for so many queries at a time that the widest maps stay within this.
_MASK_BYTES = {"cpu": 256 << 20}
_MASK_BYTES_ELSEWHERE = 8 << 30


class Predictor:
    """A loaded model. Make it with `detr.load`; `segment` is all that most callers need."""

    def __init__(
        self,
        model: DetrPanoptic,
        card: ModelCard,
        *,
        device: torch.device,
        threshold: float,
        size_quantum: int,
        batch_size: int,
    ) -> None:
        """`model` is unfolded, on the CPU in float32, and belongs to the predictor from here on."""
        self.card = card
        self.device = device
        self.dtype = DTYPES[card.dtype]
        self.batch_size = batch_size
        self.threshold = threshold
        self.size_quantum = size_quantum
        if device.type == "cuda" and self.dtype == torch.float32:
            # float32 means float32: TF32 keeps 10 bits of mantissa
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        self.model = model.fold().to(device, self.dtype)
        if device.type == "cpu":
            keep_freed_memory()
            if self.dtype == torch.float32:
                self.model.use_winograd()
        self._class_ids = card.categories.class_ids(card.config.num_classes)
        self._is_category = torch.tensor([c is not None for c in self._class_ids], device=device)

    @property
    def categories(self) -> Categories:
        return self.card.categories

    @property
    def fingerprint(self) -> str:
        return self.card.fingerprint

    def processed_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model sees; ImageError `too_thin` if a side would vanish."""
        config = self.card.config
        return processed_size(
            height, width, size=config.size, max_size=config.max_size, quantum=self.size_quantum
        )

    def segment(self, images: Sequence[AnyImage]) -> list[Panoptic]:
        """The panoptic map of each image, in order, at its own size.

        Images are PIL images, (H, W, 3) uint8 RGB arrays, or paths of files, of any sizes. Raises
        ImageError for a file that can't be decoded or a shape that is too thin, ValueError for an
        array of another shape or type, and torch.OutOfMemoryError for a batch that doesn't fit.
        """
        arrays = [_to_array(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, array in enumerate(arrays):
            groups.setdefault(self.processed_size(*array.shape[:2]), []).append(index)
        batch_size = 1 if self.device.type == "cpu" else self.batch_size
        results: dict[int, Panoptic] = {}
        for size, members in groups.items():
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                answers = self.segment_batch([arrays[index] for index in batch], size)
                results.update(zip(batch, answers, strict=True))
        return [results[index] for index in range(len(arrays))]

    @torch.inference_mode()
    def segment_batch(
        self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int]
    ) -> list[Panoptic]:
        """One batch: (H, W, 3) uint8 arrays whose processed size is `size`, (height, width)."""
        found = self.model.detect(self._to_input(images, size))
        kept = select_batch(found.logits[-1], self.threshold, is_category=self._is_category)
        image_index = torch.cat([torch.full_like(k.queries, b) for b, k in enumerate(kept)])
        query_index = torch.cat([k.queries for k in kept])
        masks = self.model.mask_logits(
            found, image_index, query_index, chunk=self._chunk(found.features[0].tensors)
        )  # (N, h, w)
        masks_of = masks.split([len(k.queries) for k in kept])
        return [
            self._merge(masks, k, size, image.shape[:2])
            for masks, k, image in zip(masks_of, kept, images, strict=True)
        ]

    def _to_input(self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
        """Arrays of any sizes -> (B, 3, h, w) normalised, on the device, channels last."""
        alike = len({image.shape for image in images}) == 1
        stacks = [np.stack(images)] if alike else [np.stack([image]) for image in images]
        resized = [resize(torch.from_numpy(stack).to(self.device), size) for stack in stacks]
        return normalize(torch.cat(resized)).to(self.dtype)

    def _chunk(self, finest: Tensor) -> int:
        """Queries whose mask head fits the bound: about 8 of its maps live at Res2's size."""
        widest = self.card.config.mask_widths[-1]
        bytes_a_query = 8 * widest * finest.shape[-2] * finest.shape[-1] * finest.element_size()
        bound = _MASK_BYTES.get(self.device.type, _MASK_BYTES_ELSEWHERE)
        return max(1, bound // bytes_a_query)

    def _merge(
        self, masks: Tensor, kept: Kept, size: tuple[int, int], original: tuple[int, ...]
    ) -> Panoptic:
        category_ids = [self._class_ids[label] for label in kept.labels.tolist()]
        return merge(
            masks,
            [c for c in category_ids if c is not None],  # `select_batch` kept categories only
            kept.scores.tolist(),
            categories=self.categories,
            processed_size=size,
            original_size=(original[0], original[1]),
        )


def load(
    weights: str | Path,
    *,
    recipe: str | None = None,
    categories: Categories | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threshold: float = 0.85,
    size_quantum: int = 1,
    batch_size: int = 8,
) -> Predictor:
    """Load a local weight file or Hugging Face folder, ready to segment.

    recipe: r50, r50-dc5 or r101 if this is that published file (checked by sha256).
    categories: the label set, for files that carry none. threshold: least class probability of a
    kept query, exclusive. size_quantum: round processed sides to its multiples, so that photos of
    free aspect ratio share batches. batch_size: images at a time on a GPU; changes no result.
    Raises ModelError in one sentence.

        import detr
        model = detr.load("detr-r50-panoptic-00ce5173.pth")
        [panoptic] = model.segment(["photo.jpg"])
    """
    settings = Settings(resolve_dtype(dtype, device), threshold, size_quantum)
    checkpoint = open_checkpoint(weights, recipe=recipe, categories=categories)
    with torch.device("meta"):
        model = DetrPanoptic(checkpoint.config)
    model.load_state_dict(checkpoint.weights(), assign=True)
    return Predictor(
        model,
        make_card(checkpoint, settings),
        device=resolve_device(device),
        threshold=threshold,
        size_quantum=size_quantum,
        batch_size=batch_size,
    )


def _to_array(image: AnyImage) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return decode(Path(image).read_bytes())
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}: convert it to RGB"
        )
    return image


load.describe = describe  # type: ignore[attr-defined]  # the engine asks a loader for its card
