"""The steps of inference on a batch (`Steps`): one method per step; callers order the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detr.categories import Categories
from detr.cuda_settings import settle_cuda
from detr.inference.malloc import keep_freed_memory
from detr.inference.postprocess import choose
from detr.inference.preprocess import normalize, resize, resize_mixed
from detr.models.detr import DetrPanoptic
from detr.transfer import upload, use_here
from detr.weights.fingerprint import DTYPES, ModelCard, Settings

Pixels = NDArray[np.uint8] | Tensor

# Bound in bytes on the mask head's widest maps; see `Steps.chunk`.
_MASK_BYTES = {"cpu": 256 << 20}
MASK_BYTES_ELSEWHERE = 8 << 30


class Steps:
    """A folded model on its device, with the settings that each step needs."""

    def __init__(
        self,
        model: DetrPanoptic,
        card: ModelCard,
        *,
        device: torch.device,
        settings: Settings,
    ) -> None:
        """`model` is unfolded, on the CPU in float32; `Steps` folds and moves the model."""
        self.card = card
        self.device = device
        self.dtype = DTYPES[card.dtype]
        self.threshold = settings.threshold
        self.output_size = settings.output_size
        if device.type == "cuda":
            settle_cuda(self.dtype)
        self.model = model.fold(self.dtype).to(device)
        if device.type == "cpu":
            keep_freed_memory()
            if self.dtype == torch.float32 and not settings.compile:
                self.model.use_winograd()  # which torch's compiler can't trace
        if settings.compile:
            self.model.compile_detector()
        self._class_ids = card.categories.class_ids(card.config.num_classes)
        self._is_category = torch.tensor([c is not None for c in self._class_ids], device=device)

    @property
    def categories(self) -> Categories:
        return self.card.categories

    def to_input(self, images: Sequence[Pixels], size: tuple[int, int]) -> Tensor:
        """(H, W, 3) uint8 images of any sizes -> (B, 3, h, w) normalised, `size` = (h, w).

        The result is on the device, of the model's dtype, channels last.
        """
        pixels = [self._on_device(image) for image in images]
        if len({image.shape for image in pixels}) == 1:
            resized = resize(pixels[0][None] if len(pixels) == 1 else torch.stack(pixels), size)
        elif self.device.type == "cpu":
            resized = torch.cat([resize(image[None], size) for image in pixels])
        else:
            resized = resize_mixed(pixels, size)
        return normalize(resized).to(self.dtype)

    def _on_device(self, image: Pixels) -> Tensor:
        """(H, W, 3); from a slot (`detr.transfer.Slots`) without a copy on the host."""
        if isinstance(image, np.ndarray):
            return upload(torch.from_numpy(np.require(image, requirements=["C", "W"])), self.device)
        return use_here(image.to(self.device))

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the queries that become segments, by the last layer's logits (B, Q, C + 1).

        Returns (B, Q) tensors: scores (the largest probability, no-object's among them), labels
        (its class) and keep (True if that class has a category, as no-object has none, and the
        score is above the threshold).
        """
        return choose(logits, self.threshold, is_category=self._is_category)

    def category_of(self, label: int) -> int:
        """The category id of a kept query's class."""
        category_id = self._class_ids[label]
        assert category_id is not None, "queries without a category are not kept"
        return category_id

    def geometry(
        self, masks: Tensor, size: tuple[int, int], original: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(processed, final) sizes by `output_size`, each (height, width).

        masks (K, h, w) are interpolated to the processed size, and sampled at the final size.
        `size` is the processed, `original` the image's (height, width).
        """
        if self.output_size == "quarter":
            cells = (int(masks.shape[-2]), int(masks.shape[-1]))
            return cells, cells
        return size, original if self.output_size == "original" else size

    def chunk(self, finest: Tensor) -> int:
        """Queries per pass of the mask head, so that its maps stay within the bound in bytes.

        `finest` is Res2's map (B, C, h, w); about 8 maps of a query exist at that size at a time.
        """
        widest = self.card.config.mask_widths[-1]
        bytes_a_query = 8 * widest * finest.shape[-2] * finest.shape[-1] * finest.element_size()
        bound = _MASK_BYTES.get(self.device.type, MASK_BYTES_ELSEWHERE)
        return max(1, bound // bytes_a_query)
