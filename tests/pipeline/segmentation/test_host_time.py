"""What the thread that drives a GPU computes itself: below a tenth of a millisecond an image.

The device's work is stubbed: pixels go to torch's meta device, which holds no values, and what the
resize, the model and the merge answer is made before. Left is what the host does: hand pixels over,
read which queries are kept, queue masks and maps, wrap the maps. At a thousand images a second this
thread has a millisecond for each, and it launches the kernels, too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detr
from detr.inference import gpu_batch, rounds, steps
from detr.inference.rounds import Merged
from detr.models.backbone import Features
from detr.models.detr import Detection
from detr.panoptic import Panoptic
from pipeline.segmentation import batches
from pipeline.segmentation.batches import Decoding, UnitDecoder
from pipeline.segmentation.model_loop import ModelStream
from tests.random_weights import write_tiny

BATCH, KEPT, UNIT = 32, 15, 128
META = torch.device("meta")
MOST_MS = 0.1  # of an image
BUSY = 2  # times as much may be seen where other processes share the cores and their caches


class Stubbed:
    """A model on a device that takes no time, with 15 queries kept of each image."""

    works_alone = True

    def __init__(self, model: detr.Predictor, patch: pytest.MonkeyPatch) -> None:
        self.model = model
        config = model.card.config
        queries, labels = config.num_queries, [c is not None for c in model._class_ids].index(True)
        keep = torch.zeros(BATCH, queries, dtype=torch.bool)
        keep[:, :KEPT] = True
        scores = torch.full((BATCH, queries), 0.9)
        classes = torch.full((BATCH, queries), labels)
        logits = torch.empty(1, BATCH, queries, config.num_classes + 1, device=META)
        nothing = torch.empty(0)
        numbers = torch.empty(BATCH * 12_000_000, dtype=torch.uint8)  # no page of it is touched
        areas = torch.full((BATCH, KEPT), 1000)

        def detect(pixels: Tensor) -> Detection:
            batch = len(pixels)
            features = [Features(torch.empty(batch, 1, 24, 32, device=META), None)]
            return Detection(logits[:, :batch], nothing, nothing, nothing, nothing, features)

        def choose(logits: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
            return tuple(each[: logits.shape[0]] for each in (scores, classes, keep))

        def mask_logits(found: Detection, image: Tensor, query: Tensor, **_: Any) -> Tensor:
            return torch.empty(len(image), 24, 32, device=META)

        def merge(masks: Tensor, slots: Tensor, heirs: Tensor, *, sizes: Sequence[Any]) -> Merged:
            grid = rounds._grid((24, 32), tuple(sizes), META)  # the host's part of it
            batch = areas[: len(sizes)]
            return Merged(numbers[: grid.pixels], batch > 0, batch)

        def resized(images: Any, size: tuple[int, int]) -> Tensor:
            return torch.empty(len(images), *size, 3, dtype=torch.uint8, device=META)

        for name in ("resize", "resize_mixed"):
            patch.setattr(steps, name, resized)
        patch.setattr(steps, "normalize", lambda images: images)
        patch.setattr(model.model, "detect", detect)
        patch.setattr(model.model, "mask_logits", mask_logits)
        patch.setattr(model, "choose", choose)
        patch.setattr(gpu_batch, "merge_in_rounds", merge)
        patch.setattr(model, "device", META)
        self.start, self.processed_size = model.start, model.processed_size


@pytest.fixture
def stubbed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Stubbed:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tiny(path)
    return Stubbed(detr.load(path, device="cpu", size_quantum=32), monkeypatch)


def thread_ms(model: Any, sizes: Sequence[tuple[int, int]], pool: ThreadPoolExecutor) -> float:
    """CPU milliseconds an image of the thread that drives the model."""
    decoder = UnitDecoder(
        lambda index: str(index).encode(),
        range(len(sizes)),
        model=model,
        decoding=Decoding(exif=True, max_pixels=10**9),
        most=lambda size: BATCH,
        pool=pool,
    )
    count = 0
    started = time.thread_time()
    for _, answers in ModelStream(model, None).run(decoder, Counter()):
        for answer in answers:
            assert isinstance(answer, Panoptic)
            pool.submit(len, answer.segments)
            count += 1
    spent = time.thread_time() - started
    assert count == len(sizes)
    return 1000 * spent / count


def one_size(rng: np.random.Generator) -> list[tuple[int, int]]:
    return [(480, 640)] * UNIT


def cut_by_hand(rng: np.random.Generator) -> list[tuple[int, int]]:
    sides = rng.integers((100, 130), (120, 160), (UNIT, 2)) * 4
    return [(int(height), int(width)) for height, width in sides]


def twelve_megapixels(rng: np.random.Generator) -> list[tuple[int, int]]:
    return [(3000, 4000)] * UNIT


@pytest.mark.parametrize("sizes_of", [one_size, cut_by_hand, twelve_megapixels])
def test_the_thread_of_the_device_computes_little_itself(
    monkeypatch: pytest.MonkeyPatch,
    stubbed: Stubbed,
    sizes_of: Callable[[np.random.Generator], list[tuple[int, int]]],
) -> None:
    """The least of several units, as another process slows some of them; sizes are known then."""
    sizes = sizes_of(np.random.default_rng(0))
    memory = np.empty(12_000_000 * 3, np.uint8)  # as if it were the slot of each image

    def decode(data: bytes, **_: Any) -> np.ndarray:
        height, width = sizes[int(data)]
        return memory[: height * width * 3].reshape(height, width, 3)

    monkeypatch.setattr(batches, "header_size", lambda data, **_: sizes[int(data)])
    monkeypatch.setattr(batches, "decode_image", decode)
    with ThreadPoolExecutor(1) as pool:
        spent = [thread_ms(stubbed, sizes, pool) for _ in range(8)]
    assert min(spent) <= BUSY * MOST_MS, spent
