"""The model on batch after batch: one ahead on a device that works alone, smaller when it is full.

Where the device computes while the host waits, three batches are under way: the newest is detected,
the one before gets its masks, the oldest is read back (`detr.inference.gpu_batch`), so the device
always has work. When memory runs out, those under way are computed again one after the other, in
halves until they fit; the size that fits is kept, and an image that doesn't fit alone becomes an
error.
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
Answers = list[Panoptic | ImageError]


class ModelStream:
    """Holds the model and how many images fit it at a time."""

    def __init__(self, model: PanopticModel, batch_size: int | None) -> None:
        """`batch_size`: images at a time, at most; None: as many as the model says that fit."""
        self.model = model
        self.batch_size = batch_size  # falls when memory runs out

    def most(self, processed: Size | None) -> int:
        """Images of this processed size to take at a time."""
        fit = getattr(self.model, "images_that_fit", None)
        room = fit(*processed) if fit and processed else self.batch_size or USUAL_BATCH
        return min(room, self.batch_size or room)

    def run(self, batches: Iterable[Batch], sizes: Counter[int]) -> Iterator[tuple[Batch, Answers]]:
        """Each batch with its answers, in order; `sizes` counts those that the model answered."""
        if not getattr(self.model, "works_alone", False):
            for batch in batches:
                yield batch, self.segment(batch, sizes)
            return
        under_way: deque[tuple[Batch, Any]] = deque()
        for batch in batches:
            answers, full = None, False
            try:
                under_way.append((batch, None))
                under_way[-1] = (batch, self._call(self.model.start, batch))  # type: ignore[attr-defined]
                if len(under_way) > 1:
                    under_way[-2][1].masks()
                answers = under_way[0][1].result() if len(under_way) > 2 else None
            except (MemoryError, RuntimeError) as error:
                full = _means_full(error)
            if full:
                yield from self._again(under_way, sizes)
            elif answers is not None:
                done = under_way.popleft()[0]
                sizes[len(done.images)] += 1
                yield done, answers
        finished, full = [], False
        try:
            if under_way:
                under_way[-1][1].masks()
            finished = [(batch, flight.result()) for batch, flight in under_way]
        except (MemoryError, RuntimeError) as error:
            full = _means_full(error)
        if full:
            yield from self._again(under_way, sizes)
        else:
            sizes.update(len(batch.images) for batch, _ in finished)
            yield from finished

    def _again(
        self, under_way: deque[tuple[Batch, Any]], sizes: Counter[int]
    ) -> Iterator[tuple[Batch, Answers]]:
        """Drop what is under way and compute it one batch after the other.

        Not while the error is handled: it holds the frames, and so the memory, of what failed.
        """
        batches = [batch for batch, _ in under_way]
        under_way.clear()
        _free_memory()
        for batch in batches:
            yield batch, self.segment(batch, sizes)

    def segment(self, batch: Batch, sizes: Counter[int]) -> Answers:
        """The model on one batch, in halves as long as memory runs out."""
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
        first, rest = batch.part(0, middle), batch.part(middle, count)
        return self.segment(first, sizes) + self.segment(rest, sizes)

    def _call(self, function: Any, batch: Batch) -> Any:
        """Tell the sizes of the files only where they aren't those of the pixels (draft mode)."""
        same = all(
            tuple(image.shape[:2]) == size
            for image, size in zip(batch.images, batch.sizes, strict=True)
        )
        return function(batch.images) if same else function(batch.images, batch.sizes)


def _means_full(error: BaseException) -> bool:
    """True for an out-of-memory error; any other is raised again."""
    if not is_out_of_memory(error):
        raise error
    return True


def _free_memory() -> None:
    """Give back what dropped tensors held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
