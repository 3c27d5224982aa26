"""A batch on its way through a device that works while the host waits (a GPU).

Which queries are kept is known on the device long before the host has read it. If each batch waited
for that answer the device would stand still meanwhile; so a batch is three steps, and the caller
puts a step of another batch between them:

    started = InFlight(...)   uploads, resizes, detects, chooses; the choice starts for the host
    started.masks()           waits for the choice only; masks and merge are queued, maps start back
    started.result()          waits for the maps

With the next batch started before `masks` of this one is called, and that before `result` of the
last one, there is always work queued. Nothing else here waits: no shape depends on a value, sizes
and weights of the interpolations are kept on the device, and the merge takes a fixed number of
rounds (rounds.py). On a CPU the same steps run, and give the same answers, without any gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detr.inference.postprocess import merge
from detr.inference.rounds import Rounds, finish, heirs_of, merge_in_rounds
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
        self._found = steps.model.detect(steps.to_input(images, size))
        scores, labels, keep = steps.choose(self._found.logits[-1])
        self._choice = Download([scores, labels, keep])

    @torch.inference_mode()
    def masks(self) -> None:
        """Queue what follows the choice: the masks of the kept queries, and the maps."""
        steps, found = self._steps, self._found
        scores, labels, keep = self._choice.wait()
        image_index, query_index = keep.nonzero(as_tuple=True)
        self._counts = keep.sum(1).tolist()
        classes = labels[keep].tolist()
        self._category_ids = [steps.category_of(label) for label in classes]
        self._scores = scores[keep].tolist()
        self._isthing = [steps.categories.by_id(c).isthing for c in self._category_ids]
        device = found.logits.device
        self._masks = steps.model.mask_logits(
            found,
            upload(image_index, device),
            upload(query_index, device),
            chunk=steps.chunk(found.features[0].tensors),
        )  # (N, h, w)
        heirs = [heirs_of(self._category_ids[part], self._isthing[part]) for part in self._parts()]
        flat = upload(torch.tensor([h for own in heirs for h in own], dtype=torch.int64), device)
        maps: list[Tensor] = []
        for part, original in zip(self._parts(), self._originals, strict=True):
            if part.start < part.stop:
                maps.extend(self._merge(self._masks[part], flat[part], original))
        self._maps = Download(maps)
        del self._found  # features and memory of the batch

    def _parts(self) -> list[slice]:
        """Where each image's queries lie in the flat lists."""
        ends = np.cumsum(self._counts).tolist()
        return [slice(end - n, end) for end, n in zip(ends, self._counts, strict=True)]

    def _merge(self, masks: Tensor, heirs: Tensor, original: tuple[int, int]) -> Rounds:
        processed, final = self._steps.geometry(masks, self._size, original)
        return merge_in_rounds(masks, heirs, processed_size=processed, map_size=final)

    @torch.inference_mode()
    def result(self) -> list[Panoptic]:
        """The answers, in order."""
        arrived = iter(self._maps.wait())
        answers = []
        for part, original in zip(self._parts(), self._originals, strict=True):
            masks = self._masks[part]
            categories, scores = self._category_ids[part], self._scores[part]
            processed, final = self._steps.geometry(masks, self._size, original)
            answer = None
            if categories:
                owner, alive, areas = next(arrived), next(arrived), next(arrived)
                answer = finish(
                    owner,
                    alive.tolist(),
                    areas.tolist(),
                    category_ids=categories,
                    isthing=self._isthing[part],
                    scores=scores,
                )
            if answer is None:  # nothing kept, or a third round is needed: the host drives
                answer = merge(
                    masks,
                    categories,
                    scores,
                    categories=self._steps.categories,
                    processed_size=processed,
                    original_size=final,
                )
            answers.append(answer)
        return answers
