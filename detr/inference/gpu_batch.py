"""A batch on a GPU (`InFlight`) in three steps, so that several batches keep the GPU busy.

The host must know the kept queries before it can queue the masks. While the host waits for the
kept queries, the GPU would be idle. So the caller runs steps of other batches between the three
steps of a batch:

    started = InFlight(...)   queues upload, resize, detection and choice of queries
    started.masks()           waits for the choice; queues masks, merge and the maps' download
    started.result()          waits for the maps

The GPU always has queued work if the next batch is started before `masks` of this batch, and
`masks` of this batch is called before `result` of the previous batch. No other call waits: the host
knows every shape by then, interpolation tables are cached on the device, and `merge_in_rounds`
draws a fixed number of maps. The exception is rare: an image that needs one more map is merged
again in `result`, by `postprocess.merge`. The steps also run on a CPU; its results are the same as
those of the plain path, without a gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from detr.inference.postprocess import heirs_of, merge
from detr.inference.rounds import finish_rounds, merge_in_rounds
from detr.inference.steps import Pixels, Steps
from detr.panoptic import Panoptic
from detr.transfer import Download, upload


def parts_of(counts: Sequence[int]) -> list[slice]:
    """Each image's part of a flat list, which has `counts` entries of each image."""
    return [slice(end - n, end) for end, n in zip(accumulate(counts), counts, strict=True)]


class InFlight:
    """One batch of images with one processed size; call `masks` once, then `result` once."""

    @torch.inference_mode()
    def __init__(
        self,
        steps: Steps,
        images: Sequence[Pixels],
        size: tuple[int, int],
        originals: Sequence[tuple[int, int]],
    ) -> None:
        """images (H, W, 3) uint8; `size` (h, w) is the processed, `originals` are the files'."""
        self._steps, self._size, self._originals = steps, size, originals
        self._images = images  # referenced until the copy to the device is over
        self._found = steps.model.detect(steps.to_input(images, size))
        scores, labels, keep = steps.choose(self._found.logits[-1])
        self._choice = Download([scores, labels, keep])

    @torch.inference_mode()
    def masks(self) -> None:
        """Wait for the choice of queries; queue their masks, and the maps."""
        steps, detections = self._steps, self._found
        scores, labels, keep = self._choice.wait()
        self._images = ()
        image_index, query_index = keep.nonzero(as_tuple=True)
        self._counts = keep.sum(1).tolist()
        classes = labels[keep].tolist()
        category_of = {label: steps.category_of(label) for label in {*classes}}
        categories = steps.categories
        is_thing = {c: categories.by_id(c).isthing for c in category_of.values()}
        self._category_ids = [category_of[label] for label in classes]
        self._scores = scores[keep].tolist()
        self._isthing = [is_thing[c] for c in self._category_ids]
        device = detections.logits.device
        self._masks = steps.model.mask_logits(
            detections,
            upload(image_index, device),
            upload(query_index, device),
            chunk=steps.chunk(detections.features[0].tensors),
        )  # (N, h, w)
        self._merge(device)
        del self._found  # frees the feature maps

    def _merge(self, device: torch.device) -> None:
        """Queue the maps and their download; no maps if no query is kept."""
        queries = max(self._counts)
        self._maps = None
        if not queries:
            return
        slots: list[int] = []
        heirs = list(range(len(self._counts) * queries))
        for image, part in enumerate(parts_of(self._counts)):
            image_heirs = heirs_of(self._category_ids[part], self._isthing[part])
            first = image * queries
            slots += range(first, first + len(image_heirs))
            heirs[first : first + len(image_heirs)] = [first + heir for heir in image_heirs]
        merged = merge_in_rounds(
            self._masks,
            upload(torch.tensor(slots), device),
            upload(torch.tensor(heirs), device),
            sizes=self._sizes(),
        )
        self._maps = Download([*merged])

    def _sizes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(processed, map) of each image."""
        return [
            self._steps.geometry(self._masks, self._size, original) for original in self._originals
        ]

    @torch.inference_mode()
    def result(self) -> list[Panoptic]:
        """Wait for the maps; one `Panoptic` per image, in order."""
        sizes = self._sizes()
        if self._maps is None:
            return [Panoptic(np.zeros(size[::-1], np.uint8).T, ()) for _, size in sizes]
        numbers, alive, areas = self._maps.wait()
        ends = accumulate(height * width for _, (height, width) in sizes)
        parts = parts_of(self._counts)
        images = zip(parts, sizes, ends, alive.tolist(), areas.tolist(), strict=True)
        answers = []
        for part, size, end, stays, pixels in images:
            categories, scores = self._category_ids[part], self._scores[part]
            processed, final = size
            answer = finish_rounds(
                numbers[end - final[0] * final[1] : end],
                stays,
                pixels,
                map_size=final,
                category_ids=categories,
                isthing=self._isthing[part],
                scores=scores,
            )
            if answer is None:  # a third map is needed
                answer = merge(
                    self._masks[part],
                    categories,
                    scores,
                    categories=self._steps.categories,
                    processed_size=processed,
                    original_size=final,
                )
            answers.append(answer)
        return answers
