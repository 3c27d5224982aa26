"""Training batches: choice of images, augmentation, and the tensors of images and targets.

Batch number `step` depends only on dataset, seed and worker, so a killed training continues with
the same batches. Images have the processed size of inference. Images of one size share a batch
where there are enough of them; others are padded to the largest, and the forward pass masks the
padding. Grouping by size costs a little randomness and saves most of the padding.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr.inference.decode import ImageError
from detr.inference.preprocess import normalize, processed_size, resize
from detr.training.criterion import Targets
from pipeline.errors import UserError
from pipeline.train.dataset import Example, PanopticDataset

# Target masks have half the processed size: finer than the mask head's output (a quarter), and a
# quarter of the pixels of upstream's targets (full size).
MASK_STRIDE = 2


@dataclass(frozen=True)
class TrainingBatch:
    images: Tensor  # (B, 3, H, W) float32, normalised, 0 on padding
    padding: Tensor | None  # (B, H, W) bool, True on padding
    targets: Targets

    def to(self, device: torch.device) -> TrainingBatch:
        return self._copied(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TrainingBatch:
        """A copy in page-locked memory, for asynchronous transfer to a GPU."""
        return self._copied(Tensor.pin_memory)

    def _copied(self, copy: Callable[[Tensor], Tensor]) -> TrainingBatch:
        labels, boxes, masks = self.targets.labels, self.targets.boxes, self.targets.masks
        masks = None if masks is None else copy(masks)
        targets = Targets(copy(labels), copy(boxes), masks, self.targets.counts)
        padding = None if self.padding is None else copy(self.padding)
        return TrainingBatch(copy(self.images), padding, targets)


class Batches:
    """The endless series of batches of one worker.

    size, max_size: of the shorter and the longer side in pixels, as in DetrConfig.
    """

    def __init__(
        self,
        dataset: PanopticDataset,
        *,
        size: int,
        max_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world = rank, world
        self.sizes = [
            _processed_size(dataset, example, size, max_size) for example in dataset.examples
        ]
        self.order = lru_cache(maxsize=2)(self._order)
        self._lock = threading.Lock()
        self.lengths: list[int] = []  # batches in each epoch so far

    def _order(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch: images in random order fill one batch per size."""
        rng = np.random.default_rng([self.seed, epoch])
        open_batches: dict[tuple[int, int], list[int]] = defaultdict(list)
        batches = []
        for index in rng.permutation(len(self.sizes)).tolist():
            waiting = open_batches[self.sizes[index]]
            waiting.append(index)
            if len(waiting) == self.batch_size:
                batches.append(list(waiting))
                waiting.clear()
        # Images of incomplete batches are sorted by size, so that they need little padding.
        left = sorted((i for b in open_batches.values() for i in b), key=lambda i: self.sizes[i])
        batches += [left[i : i + self.batch_size] for i in range(0, len(left), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def indices(self, step: int) -> list[int]:
        """The positions in the dataset of the images of batch `step`. Thread-safe."""
        with self._lock:
            return self._indices(step)

    def _indices(self, step: int) -> list[int]:
        number, epoch = step * self.world + self.rank, 0
        while True:  # epochs may differ in length by a batch or two
            if epoch == len(self.lengths):
                self.lengths.append(len(self.order(epoch)))
            if number < self.lengths[epoch]:
                return self.order(epoch)[number]
            number -= self.lengths[epoch]
            epoch += 1

    def make(self, step: int) -> TrainingBatch:
        """Read, augment (mirror, brightness) and stack the images of batch `step`.

        Raises UserError for a file that can't be read.
        """
        rng = np.random.default_rng([self.seed, step, self.rank, 1])
        images, maps, classes = [], [], []
        for index in self.indices(step):
            image, id_map = self.dataset.read(index)
            size = self.sizes[index]
            if image.shape[:2] != size:
                image = resize(torch.tensor(image)[None], size)[0].numpy()
                shown = Image.fromarray(id_map).resize((size[1], size[0]), Image.Resampling.NEAREST)
                id_map = np.asarray(shown)
            image = np.clip(image * np.float32(rng.uniform(0.8, 1.2)), 0, 255).astype(np.uint8)
            flip = -1 if rng.random() < 0.5 else 1
            images.append(image[:, ::flip])
            maps.append(id_map[:, ::flip])
            classes.append(self.dataset.examples[index].segments)
        return stack(images, maps, classes)

    def from_step(self, step: int, steps: int, *, pinned: bool = False) -> Iterator[TrainingBatch]:
        """Batches `step` to `steps - 1`, made in a thread while the training uses the one before.

        pinned: in page-locked memory for a GPU, and two threads instead of one.
        """
        workers = 2 if pinned else 1
        numbers = iter(range(step, steps))
        with ThreadPoolExecutor(workers) as pool:
            begin = lambda count: [  # noqa: E731
                pool.submit(self._made, number, pinned) for number in islice(numbers, count)
            ]
            ahead = deque(begin(workers))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(begin(1))
                yield batch

    def _made(self, step: int, pinned: bool) -> TrainingBatch:
        batch = self.make(step)
        return batch.pinned() if pinned else batch


def _processed_size(
    dataset: PanopticDataset, example: Example, size: int, max_size: int
) -> tuple[int, int]:
    try:
        return processed_size(example.height, example.width, size=size, max_size=max_size)
    except ImageError as error:
        raise UserError(
            f"{dataset.images.join(example.file_name)} can't be learnt from: {error}"
        ) from None


def stack(
    images: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.int32]],
    segments: Sequence[Sequence[tuple[int, int]]],
) -> TrainingBatch:
    """Images (h, w, 3), id maps (h, w) and their (id, class index) pairs as one padded batch."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    pixels = torch.zeros(len(images), 3, height, width).contiguous(
        memory_format=torch.channels_last
    )
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    labels, boxes, masks, counts = [], [], [], []
    for row, (image, id_map, pairs) in enumerate(zip(images, maps, segments, strict=True)):
        h, w = id_map.shape
        pixels[row, :, :h, :w] = normalize(torch.from_numpy(np.ascontiguousarray(image))[None])[0]
        padding[row, :h, :w] = False
        # Resizing may have removed small segments.
        shown = [(i, c) for i, c in pairs if np.any(id_map == i)]
        one_hot = np.zeros((len(shown), height, width), dtype=np.float32)
        for mask, (segment_id, _) in zip(one_hot, shown, strict=True):
            mask[:h, :w] = id_map == segment_id
        labels += [class_index for _, class_index in shown]
        boxes.append(_boxes(one_hot[:, :h, :w]))
        masks.append(
            F.avg_pool2d(torch.from_numpy(one_hot)[:, None], MASK_STRIDE, ceil_mode=True)[:, 0]
        )
        counts.append(len(shown))
    targets = Targets(
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.from_numpy(np.concatenate(boxes)),
        masks=torch.cat(masks),
        counts=tuple(counts),
    )
    return TrainingBatch(pixels, padding if bool(padding.any()) else None, targets)


def _boxes(masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Masks (n, h, w), none empty -> boxes (n, 4): centre x, centre y, width, height in 0..1."""
    _, height, width = masks.shape
    sides = []
    for axis, length in ((1, width), (2, height)):
        hit = np.any(masks, axis=axis)  # (n, length)
        start = hit.argmax(axis=1)
        stop = length - hit[:, ::-1].argmax(axis=1)
        sides.append((start / length, stop / length))
    (left, right), (top, bottom) = sides
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return np.stack(box, axis=1).astype(np.float32)
