"""A device that is too small for what is under way: how often memory runs out, and what is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detr.inference.decode import ImageError
from detr.panoptic import Panoptic
from pipeline.segmentation.batches import Batch
from pipeline.segmentation.model_loop import ModelStream
from tests.toy_model import Toy

Images = Sequence[NDArray[np.uint8]]
FULL = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"


class Small(Toy):
    """A device with room for so many images in all batches that are under way."""

    works_alone = True

    def __init__(self, room: int) -> None:
        self.room, self.failures, self.flights = room, 0, 0
        self.used = 0

    def take(self, count: int) -> None:
        if self.used + count > self.room:
            self.failures += 1
            self.used = 0  # what was under way is dropped with the error
            raise RuntimeError(FULL)
        self.used += count

    def segment(self, images: Images) -> list[Panoptic]:
        self.take(len(images))
        self.used -= len(images)
        return super().segment(images)

    def start(self, images: Images) -> Flight:
        self.take(len(images))
        self.flights += 1
        return Flight(self, images)


class Flight:
    def __init__(self, device: Small, images: Images) -> None:
        self.device, self.images = device, images

    def masks(self) -> None: ...

    def result(self) -> list[Panoptic]:
        self.device.used -= len(self.images)
        return Toy.segment(self.device, self.images)


def planned(count: int, size: int) -> Iterator[Batch]:
    """Batches of one image size, made before memory ran out and blind to it."""
    for number in range(count):
        image = np.full((2, 3, 3), number % 256, np.uint8)
        indices = list(range(number * size, number * size + size))
        yield Batch(indices, [image] * size, [(2, 3)] * size)


def run(stream: ModelStream, batches: Iterator[Batch]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for batch, answers in stream.run(batches, Counter()):
        assert not found.keys() & set(batch.indices)
        found.update(zip(batch.indices, answers, strict=True))
    return found


# Room for: three batches of 8 in flight; two; one; half a batch; one image; and nothing lower.
@pytest.mark.parametrize(
    ("room", "failures", "flights", "batch_size"),
    [(24, 0, 3, None), (17, 1, 2, None), (9, 2, 1, None), (4, 4, 1, 4), (1, 8, 1, 1)],
)
def test_memory_runs_out_a_few_times_and_then_no_more(
    room: int, failures: int, flights: int, batch_size: int | None
) -> None:
    device = Small(room)
    stream = ModelStream(device, None)
    found = run(stream, planned(30, 8))
    assert list(found) == list(range(240))
    assert all(isinstance(answer, Panoptic) for answer in found.values())
    assert device.failures <= failures
    assert (stream.flights, stream.batch_size) == (flights, batch_size)
    before = device.failures
    run(stream, planned(30, 8))
    assert device.failures == before


def test_an_image_that_does_not_fit_alone_is_an_error_and_the_others_are_not() -> None:
    device = Small(0)
    found = run(ModelStream(device, None), planned(2, 2))
    assert [type(answer) for answer in found.values()] == [ImageError] * 4


def test_what_else_goes_wrong_under_way_is_raised() -> None:
    device = Small(100)
    device.start = lambda images: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        run(ModelStream(device, None), planned(2, 2))


class Plain(Small):
    """Fits alone in the plain way, never in flight."""

    def start(self, images: Images) -> Flight:
        if len(images) > 2:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().start(images)


def test_a_flight_that_needs_more_than_the_plain_way_gets_smaller() -> None:
    device = Plain(100)
    stream = ModelStream(device, None)
    assert len(run(stream, planned(30, 8))) == 240
    assert device.failures <= 4
    assert stream.batch_size == 2
