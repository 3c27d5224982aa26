"""A batch on its way through a device that works while the host waits (a GPU).

Which queries are kept is known on the device long before the host has read it. If each batch waited
for that answer the device would stand still meanwhile; so a batch is three steps, and the caller
puts a step of another batch between them:

    started = InFlight(...)   uploads, resizes, detects, chooses; the choice starts for the host
    started.masks()           waits for the choice only; masks and merge are queued, maps start back
    started.result()          waits for the maps

With the next batch started before `masks` of this one is called, and that before `result` of the
last one, there is always work queued. Nothing else here waits: no shape depends on a value, sizes
and weights of the interpolations are kept on the device, and the merge of the batch takes two
rounds (rounds.py). On a CPU the same steps run, and give the same answers, without any gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from detr.inference.postprocess import merge
from detr.inference.rounds import finish_rounds, heirs_of, merge_in_rounds
from detr.inference.steps import Pixels, Steps
from detr.panoptic import Panoptic
from detr.transfer import Download, upload


class InFlight:
    """One batch of equal processed size; call `masks` once, then `result` once."""

    @torch.inference_mode()
    def __init__(
        self,
        steps: Steps,
        images: Sequence[Pixels],
        size: tuple[int, int],
        originals: Sequence[tuple[int, int]],
    ) -> None:
        """images (H, W, 3) uint8, `size` the processed one, `originals` those of the files."""
        self._steps, self._size, self._originals = steps, size, originals
        self._images = images  # kept until they have been copied to the device
        self._found = steps.model.detect(steps.to_input(images, size))
        scores, labels, keep = steps.choose(self._found.logits[-1])
        self._choice = Download([scores, labels, keep])

    @torch.inference_mode()
    def masks(self) -> None:
        """Queue what follows the choice: the masks of the kept queries, and the maps."""
        steps, found = self._steps, self._found
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
        device = found.logits.device
        self._masks = steps.model.mask_logits(
            found,
            upload(image_index, device),
            upload(query_index, device),
            chunk=steps.chunk(found.features[0].tensors),
        )  # (N, h, w)
        self._merge(device)
        del self._found  # features and memory of the batch

    def _merge(self, device: torch.device) -> None:
        """Queue the maps, and their way to the host."""
        most = max(self._counts)
        self._maps = None
        if not most:
            return
        slots: list[int] = []
        heirs = list(range(len(self._counts) * most))
        for image, part in enumerate(self._parts()):
            own = heirs_of(self._category_ids[part], self._isthing[part])
            first = image * most
            slots += range(first, first + len(own))
            heirs[first : first + len(own)] = [first + heir for heir in own]
        merged = merge_in_rounds(
            self._masks,
            upload(torch.tensor(slots), device),
            upload(torch.tensor(heirs), device),
            sizes=self._sizes(),
        )
        self._maps = Download([*merged])

    def _sizes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(processed, map) of each image."""
        return [self._steps.geometry(self._masks, self._size, each) for each in self._originals]

    def _parts(self) -> list[slice]:
        """Where each image's queries lie in the flat lists."""
        ends = accumulate(self._counts)
        return [slice(end - n, end) for end, n in zip(ends, self._counts, strict=True)]

    @torch.inference_mode()
    def result(self) -> list[Panoptic]:
        """The answers, in order."""
        sizes = self._sizes()
        if self._maps is None:
            return [Panoptic(np.zeros(size[::-1], np.uint8).T, ()) for _, size in sizes]
        numbers, alive, areas = self._maps.wait()
        ends = accumulate(height * width for _, (height, width) in sizes)
        known = zip(self._parts(), sizes, ends, alive.tolist(), areas.tolist(), strict=True)
        answers = []
        for part, size, end, stays, pixels in known:
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
            if answer is None:  # a third round is needed: the host drives
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
