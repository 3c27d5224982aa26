"""One work unit's files as batches of pixels, decoded by threads one batch ahead.

Files are grouped by the size in their headers before anything is decoded, so only two batches of
pixels are in memory at a time, whatever the unit holds. A batch holds images of one processed size:
nothing is padded, and an image's row doesn't depend on its neighbours. What is wrong with a file
becomes its `ImageError`, kept by its index, and costs the others nothing.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from detr.inference.decode import ImageError, Memory, decode_image, header_size, new_memory
from detr.inference.nvjpeg import decode_nvjpeg
from detr.transfer import Slots

if TYPE_CHECKING:
    from pipeline.segmentation.model_spec import PanopticModel

# Decoded pixels of one batch: 300 MB, and 600 MB where batches matter (16 photos of a phone).
BATCH_PIXELS: Final = 100_000_000
BATCH_PIXELS_OF_A_DEVICE: Final = 200_000_000
Pixels = NDArray[np.uint8] | torch.Tensor
Size = tuple[int, int]  # (height, width)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """How bytes become pixels; part of the fingerprint."""

    exif: bool
    max_pixels: int
    method: Literal["pil", "draft", "nvjpeg"] = "pil"


@dataclass
class Batch:
    """Decoded images of one processed size; `indices` say which of the unit's they are."""

    indices: list[int] = field(default_factory=list)
    images: list[Pixels] = field(default_factory=list)  # (H, W, 3) uint8; smaller in draft mode
    sizes: list[Size] = field(default_factory=list)  # of the files, upright

    def part(self, start: int, end: int) -> Batch:
        return Batch(self.indices[start:end], self.images[start:end], self.sizes[start:end])


class CpuSeconds:
    """Calls functions in any thread; `seconds` is the CPU time that the threads spent in them.

    Not the clock's: a thread that waits for a core, which the model holds, does no work.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        started = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent = time.thread_time() - started
            with self._lock:
                self.seconds += spent


def memory_for(model: PanopticModel) -> Memory:
    """Where to decode to for this model: page-locked memory for a GPU. Once for all units."""
    device = getattr(model, "device", None)
    return Slots().take if getattr(device, "type", "cpu") == "cuda" else new_memory


@dataclass(frozen=True)
class _Planned:
    index: int
    size: Size
    processed: Size | None


class UnitDecoder:
    """Iterate it once for the batches of a unit; `errors` and `work` are complete when it ends."""

    def __init__(
        self,
        files: Callable[[int], bytes],
        indices: Iterable[int],
        *,
        model: PanopticModel,
        decoding: Decoding,
        most: Callable[[Size | None], int],
        pool: ThreadPoolExecutor,
        memory: Memory = new_memory,
    ) -> None:
        """`files(index)` gives the bytes of an image; `most(processed size)` images are a batch;
        pixels lie in what `memory` gives.

        Headers are read and the first batch begins to be decoded here, before anybody waits.
        """
        self.errors: dict[int, ImageError] = {}
        self.work = CpuSeconds()
        self._files, self._decoding, self._pool, self._memory = files, decoding, pool, memory
        self._device = getattr(model, "device", None)
        alone = getattr(model, "works_alone", False)
        self._most_pixels = BATCH_PIXELS_OF_A_DEVICE if alone else BATCH_PIXELS
        sizes = getattr(model, "processed_size", None)
        self._batches = iter(self.work(self._plan, indices, sizes, most))
        self._ahead = self._begin()

    def __iter__(self) -> Iterator[Batch]:
        while self._ahead is not None:
            current, self._ahead = self._ahead, self._begin()
            batch = Batch()
            for planned, future in current:
                try:
                    pixels = future.result()
                except ImageError as error:
                    self.errors[planned.index] = error
                    continue
                batch.indices.append(planned.index)
                batch.images.append(pixels)
                batch.sizes.append(planned.size)
            if batch.indices:
                yield batch

    def _plan(
        self,
        indices: Iterable[int],
        processed_size: Callable[[int, int], Size] | None,
        most: Callable[[Size | None], int],
    ) -> list[list[_Planned]]:
        groups: dict[Size, list[_Planned]] = defaultdict(list)
        for index in indices:
            try:
                size = header_size(
                    self._files(index),
                    max_pixels=self._decoding.max_pixels,
                    exif=self._decoding.exif,
                )
                processed = processed_size(*size) if processed_size else None
            except ImageError as error:
                self.errors[index] = error
                continue
            groups[processed or size].append(_Planned(index, size, processed))
        batches: list[list[_Planned]] = []
        for members in groups.values():
            limit, pixels = most(members[0].processed), 0
            batch: list[_Planned] = []
            for planned in members:
                area = planned.size[0] * planned.size[1]
                if batch and (len(batch) == limit or pixels + area > self._most_pixels):
                    batches.append(batch)
                    batch, pixels = [], 0
                batch.append(planned)
                pixels += area
            batches.append(batch)
        return batches

    def _begin(self) -> list[tuple[_Planned, Future[Pixels]]] | None:
        """Start to decode the next batch, if there is one."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        if self._decoding.method == "nvjpeg":
            assert isinstance(self._device, torch.device)
            together = self._pool.submit(self.work, self._decode_on_gpu, batch, self._device)
            return [
                (planned, self._pool.submit(self.work, self._from_gpu, planned, together, place))
                for place, planned in enumerate(batch)
            ]
        return [(planned, self._pool.submit(self.work, self._decode, planned)) for planned in batch]

    def _decode_on_gpu(
        self, batch: list[_Planned], device: torch.device
    ) -> list[torch.Tensor | None]:
        return decode_nvjpeg(
            [self._files(planned.index) for planned in batch],
            device,
            max_pixels=self._decoding.max_pixels,
            exif=self._decoding.exif,
        )

    def _from_gpu(
        self, planned: _Planned, together: Future[list[torch.Tensor | None]], place: int
    ) -> Pixels:
        """What the GPU decoded, or what PIL makes of it. The pool works first in, first out."""
        pixels = together.result()[place]
        return self._decode(planned) if pixels is None else pixels

    def _decode(self, planned: _Planned) -> Pixels:
        return decode_image(
            self._files(planned.index),
            max_pixels=self._decoding.max_pixels,
            exif=self._decoding.exif,
            at_least=planned.processed if self._decoding.method == "draft" else None,
            memory=self._memory,
        )
