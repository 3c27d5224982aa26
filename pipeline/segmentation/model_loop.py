"""The model on batch after batch: some ahead on a device that works alone, fewer when it is full.

Where the device computes while the host waits, three batches are under way: the newest is detected,
the one before gets its masks, the oldest is read back (`detr.inference.gpu_batch`), so the device
always has work. When memory runs out, those under way are computed again one after the other. If
each fits alone, one fewer is under way from then on; one that doesn't is computed in halves until
they fit, and the size that fits holds for every later batch, also for those that are planned
already. An image that doesn't fit alone becomes an error. So memory runs out a handful of times in
an actor's life, whatever it has.
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
    """A batch, and how far the model is with it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.flight: Any = None  # what the model's `start` gave
        self.has_masks = False

    def ask_for_masks(self) -> None:
        if not self.has_masks:
            self.flight.masks()
            self.has_masks = True


class ModelStream:
    """Holds the model and how many images fit it at a time."""

    def __init__(self, model: PanopticModel, batch_size: int | None) -> None:
        """`batch_size`: images at a time, at most; None: as many as the model says that fit."""
        self.model = model
        self.batch_size = batch_size  # falls when memory runs out, and so does
        self.flights = MOST_FLIGHTS  # how many batches may be under way

    def most(self, processed: Size | None) -> int:
        """Images of this processed size to take at a time."""
        fit = getattr(self.model, "images_that_fit", None)
        room = fit(*processed) if fit and processed else self.batch_size or USUAL_BATCH
        return min(room, self.batch_size or room)

    def run(self, batches: Iterable[Batch], sizes: Counter[int]) -> Iterator[tuple[Batch, Answers]]:
        """Each batch, or part of one, with its answers, in order; `sizes` counts those that the
        model answered."""
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
        """What may be started of a batch by now, and the rest."""
        count, most = len(batch.images), self.batch_size or len(batch.images)
        return (batch, None) if count <= most else (batch.part(0, most), batch.part(most, count))

    def _step(
        self,
        under_way: deque[_UnderWay],
        stay: int,
        sizes: Counter[int],
        *,
        last: bool = False,
    ) -> Iterator[tuple[Batch, Answers]]:
        """Start the newest, let the one before get its masks, read back all but `stay`.

        `last`: nothing comes after the newest, so it gets its masks, too.
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
        """Drop what is under way and compute it one batch after the other.

        Not while the error is handled: it holds the frames, and so the memory, of what failed.
        """
        batches = [entry.batch for entry in under_way]
        under_way.clear()
        _free_memory()
        before = self.batch_size
        for batch in batches:
            yield batch, self.segment(batch, sizes)
        if self.batch_size == before and len(batches) > 1:  # each fits by itself
            self.flights = min(self.flights, len(batches)) - 1
        elif self.batch_size == before:  # the plain way needs a little less than a flight
            self.batch_size = max(1, len(batches[0].images) // 2)

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
