"""The model loop: batches of decoded images in, panoptic maps out, in order.

On a GPU three batches are under way, so the GPU always has work: the newest is detected, the one
before gets its masks, the oldest is copied to the host (`detr.inference.gpu_batch`). When memory
runs out, the batches under way are computed again, one after the other. If each of them fits alone,
one batch fewer is under way from then on. A batch that does not fit alone is computed in halves
until they fit, and the size that fits is the limit for all later batches. An image that does not
fit alone becomes an error. So memory runs out only a few times in the life of an actor.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch

from detr.inference.decode import ImageError
from detr.inference.device_errors import is_out_of_memory
from detr.panoptic import Panoptic
from pipeline.segmentation.batches import Batch, Size

if TYPE_CHECKING:
    from pipeline.segmentation.model_spec import PanopticModel

USUAL_BATCH: Final = 8  # of a model that doesn't say how many images fit
MOST_FLIGHTS: Final = 3
Answers = list[Panoptic | ImageError]


class _UnderWay:
    """A batch that the model has not finished."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.flight: Any = None  # what the model's `start` gave
        self.has_masks = False

    def ask_for_masks(self) -> None:
        if not self.has_masks:
            self.flight.masks()
            self.has_masks = True


class ModelStream:
    """The model, and how many images and batches its memory holds, as learned so far."""

    def __init__(self, model: PanopticModel, batch_size: int | None) -> None:
        """`batch_size`: most images in a batch; None: the model's `images_that_fit`."""
        self.model = model
        self.batch_size = batch_size  # falls when memory runs out
        self.flights = MOST_FLIGHTS  # batches under way at most; falls when memory runs out

    def most(self, processed: Size | None) -> int:
        """The largest batch of images of this processed size."""
        fit = getattr(self.model, "images_that_fit", None)
        room = fit(*processed) if fit and processed else self.batch_size or USUAL_BATCH
        return min(room, self.batch_size or room)

    def run(self, batches: Iterable[Batch], sizes: Counter[int]) -> Iterator[tuple[Batch, Answers]]:
        """Each batch, or part of one, with its results, in order; `sizes` counts the computed
        batches by size."""
        if not getattr(self.model, "works_alone", False):
            for batch in batches:
                yield batch, self.segment(batch, sizes)
            return
        under_way: deque[_UnderWay] = deque()
        for batch in batches:
            left: Batch | None = batch
            while left is not None:
                part, left = self._split(left)
                under_way.append(_UnderWay(part))
                yield from self._step(under_way, self.flights - 1, sizes)
        while under_way:
            yield from self._step(under_way, len(under_way) - 1, sizes, last=True)

    def _split(self, batch: Batch) -> tuple[Batch, Batch | None]:
        """The part of a batch that is within the present limit, and the remaining images."""
        count, limit = len(batch.images), self.batch_size or len(batch.images)
        return (batch, None) if count <= limit else (batch.part(0, limit), batch.part(limit, count))

    def _step(
        self,
        under_way: deque[_UnderWay],
        stay: int,
        sizes: Counter[int],
        *,
        last: bool = False,
    ) -> Iterator[tuple[Batch, Answers]]:
        """Start the newest batch, compute the masks of the one before, return all but `stay`.

        `last`: no batch follows, so the masks of the newest are computed, too.
        """
        finished, full = [], False
        try:
            for entry in under_way:
                if entry.flight is None:
                    entry.flight = self._call(self.model.start, entry.batch)  # type: ignore[attr-defined]
            waiting = 0 if last or stay == 0 else 1
            for entry in list(under_way)[: len(under_way) - waiting]:
                entry.ask_for_masks()
            while len(under_way) > stay:
                finished.append((under_way[0].batch, under_way[0].flight.result()))
                under_way.popleft()
        except (MemoryError, RuntimeError) as error:
            full = _means_full(error)
        sizes.update(len(batch.images) for batch, _ in finished)
        yield from finished
        if full:
            yield from self._again(under_way, sizes)

    def _again(
        self, under_way: deque[_UnderWay], sizes: Counter[int]
    ) -> Iterator[tuple[Batch, Answers]]:
        """Drop the batches under way and compute them one after the other.

        Call it outside the `except` block: the exception holds the frames, and so the tensors.
        """
        batches = [entry.batch for entry in under_way]
        under_way.clear()
        _free_memory()
        before = self.batch_size
        for batch in batches:
            yield batch, self.segment(batch, sizes)
        if self.batch_size == before and len(batches) > 1:  # each fits alone
            self.flights = min(self.flights, len(batches)) - 1
        elif self.batch_size == before:  # `segment` needs a little less memory than `start`
            self.batch_size = max(1, len(batches[0].images) // 2)

    def segment(self, batch: Batch, sizes: Counter[int]) -> Answers:
        """The results of one batch, computed in halves as long as memory runs out."""
        count = len(batch.images)
        middle, full = max(1, count // 2), False
        if self.batch_size is not None and count > self.batch_size:
            middle = self.batch_size
        else:
            try:
                answers = list(self._call(self.model.segment, batch))
                sizes[count] += 1
                return answers
            except ImageError as error:
                if count == 1:
                    return [error]
            except (MemoryError, RuntimeError) as error:
                full = _means_full(error)
        if full:
            _free_memory()
            if count == 1:
                height, width = batch.sizes[0]
                message = f"{height} x {width} does not fit the device's memory even alone"
                return [ImageError("out_of_memory", message)]
            self.batch_size = middle
        first, second = batch.part(0, middle), batch.part(middle, count)
        return self.segment(first, sizes) + self.segment(second, sizes)

    def _call(self, function: Any, batch: Batch) -> Any:
        """Pass the sizes of the files only where the pixels have other sizes (draft mode)."""
        same = all(
            tuple(image.shape[:2]) == size
            for image, size in zip(batch.images, batch.sizes, strict=True)
        )
        return function(batch.images) if same else function(batch.images, batch.sizes)


def _means_full(error: BaseException) -> bool:
    """True for an out-of-memory error. Raises any other error again."""
    if not is_out_of_memory(error):
        raise error
    return True


def _free_memory() -> None:
    """Return the GPU memory of dropped tensors to the driver."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
