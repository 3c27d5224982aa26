"""The decoder of a work unit: encoded images in, batches of pixels out, one batch ahead.

Images are grouped by the size in their headers before any is decoded, so the pixels of only two
batches are in memory at a time. A batch holds images of one processed size: no image is padded, and
a row does not depend on the other images of its batch. A file that can't be decoded becomes an
`ImageError` under its index; the other images are not affected.
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

# Pixels of one batch at 3 bytes: 300 MB, and 600 MB (16 photos of 12 megapixels) for a GPU.
BATCH_PIXELS: Final = 100_000_000
BATCH_PIXELS_OF_A_DEVICE: Final = 200_000_000
Pixels = NDArray[np.uint8] | torch.Tensor
Size = tuple[int, int]  # (height, width)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """The settings of the image decoder; they are part of the fingerprint."""

    exif: bool
    max_pixels: int
    method: Literal["pil", "draft", "nvjpeg"] = "pil"


@dataclass
class Batch:
    """Decoded images of one processed size; `indices` are their rows in the unit."""

    indices: list[int] = field(default_factory=list)
    images: list[Pixels] = field(default_factory=list)  # (H, W, 3) uint8; smaller in draft mode
    sizes: list[Size] = field(default_factory=list)  # of the files, after EXIF rotation

    def part(self, start: int, end: int) -> Batch:
        return Batch(self.indices[start:end], self.images[start:end], self.sizes[start:end])


class CpuSeconds:
    """Calls functions in any thread; `seconds` is the CPU time that they took.

    Wall time would count threads that wait for a core while the model uses all cores.
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
    """The memory to decode into: page-locked for a GPU. Call it once per actor, not per unit."""
    device = getattr(model, "device", None)
    return Slots().take if getattr(device, "type", "cpu") == "cuda" else new_memory


@dataclass(frozen=True)
class _Planned:
    index: int
    size: Size
    processed: Size | None


class UnitDecoder:
    """Iterates once over the batches of a unit.

    Afterwards `errors` holds an ImageError for each index in the unit that can't be decoded, or
    whose size the model refuses. `work.seconds` is the CPU time of reading headers and decoding.
    """

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
        """Read all headers and start to decode the first batch.

        `files(index)` returns the bytes of an image, `most(processed size)` the largest batch,
        `memory` the array to decode into.
        """
        self.errors: dict[int, ImageError] = {}
        self.work = CpuSeconds()
        self._files, self._decoding, self._pool, self._memory = files, decoding, pool, memory
        self._device = getattr(model, "device", None)
        works_alone = getattr(model, "works_alone", False)
        self._most_pixels = BATCH_PIXELS_OF_A_DEVICE if works_alone else BATCH_PIXELS
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
            decoded = self._pool.submit(self.work, self._decode_on_gpu, batch, self._device)
            return [
                (planned, self._pool.submit(self.work, self._from_gpu, planned, decoded, position))
                for position, planned in enumerate(batch)
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
        self, planned: _Planned, decoded: Future[list[torch.Tensor | None]], position: int
    ) -> Pixels:
        """The pixels from the GPU, or from PIL where nvJPEG gave none.

        Waits in the pool for `decoded` without a deadlock: the pool starts work in order.
        """
        pixels = decoded.result()[position]
        return self._decode(planned) if pixels is None else pixels

    def _decode(self, planned: _Planned) -> Pixels:
        return decode_image(
            self._files(planned.index),
            max_pixels=self._decoding.max_pixels,
            exif=self._decoding.exif,
            at_least=planned.processed if self._decoding.method == "draft" else None,
            memory=self._memory,
        )
