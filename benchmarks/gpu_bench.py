"""What the steps of benchmarks/gpu.py share: the device, the models, the photos, a clock.

A rehearsal has the same steps on a CPU: the tiny model stands for R50 and a tenth of a photo for a
photo.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import detr
from detr.inference.decode import Memory, new_memory
from detr.panoptic import Panoptic
from detr.transfer import Slots
from pipeline.segmentation.batches import Batch
from pipeline.segmentation.model_loop import ModelStream

ROOT = Path(__file__).resolve().parents[1]
DEMO_WEIGHTS = ROOT / "jobs" / "demo_weights" / "demo.safetensors"
DEMO_THRESHOLD = 0.5
Photo = NDArray[np.uint8]


@dataclass(frozen=True)
class Step:
    """`function` says whether the promise holds, and what was found, in about `seconds`."""

    name: str
    promise: str
    seconds: float
    function: Callable[[Bench], tuple[bool, dict[str, Any]]]


class Bench:
    """One run of the script."""

    def __init__(self, folder: Path, *, rehearse: bool, seconds: float) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.kept: dict[str, Any] = {}  # what a later step compares with
        self._ends = time.monotonic() + seconds
        self._models: dict[tuple[Any, ...], detr.Predictor] = {}
        self._r50 = folder / "r50.pth"
        write = "write_tiny" if rehearse else "write_official_r50"
        code = f"from tests.random_weights import {write} as write; write({str(self._r50)!r})"
        if rehearse:
            self._r50 = self._r50.with_suffix(".safetensors")
            code = code.replace("r50.pth", "r50.safetensors")
        self._writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)  # takes a while

    def close(self) -> None:
        self._writer.kill()
        self._writer.wait()

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    @cached_property
    def weights(self) -> Path:
        """R50 with random weights that keep about 15 queries (in a rehearsal the tiny model)."""
        if self._writer.wait() != 0:
            raise RuntimeError("the weights could not be made")
        return self._r50

    def r50(self, dtype: str = "bf16", *, device: str = "", **settings: Any) -> detr.Predictor:
        key = (dtype, device, *sorted(settings.items()))
        if key not in self._models:
            where = device or self.device.type
            self._models[key] = detr.load(self.weights, device=where, dtype=dtype, **settings)
        return self._models[key]

    def demo(self, dtype: str, *, device: str = "") -> detr.Predictor:
        """The trained demo model: random weights are near ties everywhere, these are not."""
        where = device or self.device.type
        return detr.load(DEMO_WEIGHTS, device=where, dtype=dtype, threshold=DEMO_THRESHOLD)

    @cached_property
    def photos(self) -> list[Photo]:
        """16 made photos of 480 x 640 (in a rehearsal 48 x 64)."""
        from tests.random_weights import made_images

        made = made_images(16, 5, 48 if self.rehearse else 480)
        return [self.decoded(photo) for photo in made]

    @cached_property
    def memory(self) -> Memory:
        """Where an actor decodes to."""
        return Slots().take if self.device.type == "cuda" else new_memory

    def decoded(self, photo: Photo) -> Photo:
        """The photo where an actor's threads would have left it."""
        array = self.memory(photo.shape)
        array[:] = photo
        return array

    @cached_property
    def scenes(self) -> list[Photo]:
        """Scenes as the demo model was trained on, none of which it has seen."""
        from pipeline.train.synthetic import scene

        return [np.asarray(scene(77, index).image) for index in range(8)]

    @property
    def side(self) -> int:
        """The height of a photo."""
        return self.photos[0].shape[0]

    def pick(self, usual: int, rehearsal: int) -> int:
        return rehearsal if self.rehearse else usual

    def judge(self, holds: bool) -> bool:
        """A speed is a GPU's to reach; a rehearsal says only that the step runs."""
        return holds or self.rehearse

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rest(self) -> None:
        """Give memory back between steps."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def milliseconds(self, function: Callable[[], object], repetitions: int = 5) -> float:
        """The median of one call's, by the device's clock, after one that warms up."""
        function()
        self.wait()
        times = []
        for _ in range(self.pick(repetitions, 1)):
            if self.device.type == "cuda":
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                function()
                last.record()
                last.synchronize()
                times.append(first.elapsed_time(last))
            else:
                started = time.perf_counter()
                function()
                times.append(1000 * (time.perf_counter() - started))
        return float(np.median(times))


class WorksAlone:
    """A model whose batches are in flight whatever the device, for rehearsals on a CPU."""

    works_alone = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def stream_of(model: Any, batch_size: int | None = None) -> ModelStream:
    return ModelStream(WorksAlone(model), batch_size)  # type: ignore[arg-type]


def batches_of(stream: ModelStream, photos: Sequence[Photo]) -> Iterator[Batch]:
    """Decoded photos in the batches that an actor would make of them as one unit."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, photo in enumerate(photos):
        groups[stream.model.processed_size(*photo.shape[:2])].append(index)  # type: ignore[attr-defined]
    for size, members in groups.items():
        most = stream.most(size)
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            images = [photos[index] for index in chosen]
            yield Batch(chosen, list(images), [photos[i].shape[:2] for i in chosen])


def answers_of(stream: ModelStream, photos: Sequence[Photo]) -> list[Any]:
    """A `Panoptic` (or an ImageError) for each photo, in order."""
    answers: dict[int, Any] = {}
    for batch, found in stream.run(batches_of(stream, photos), Counter()):
        answers.update(zip(batch.indices, found, strict=True))
    return [answers[index] for index in range(len(photos))]


def alike(found: Sequence[Panoptic], wanted: Sequence[Panoptic]) -> float:
    """The share of pixels whose category (and, for things, instance order) is the same, mean."""
    shares = []
    for one, other in zip(found, wanted, strict=True):
        shares.append(float(np.mean(categories_of(one) == categories_of(other))))
    return float(np.mean(shares))


def categories_of(panoptic: Panoptic) -> NDArray[np.int64]:
    """The map with each segment's category in place of its number, which shifts with the others."""
    lookup = np.zeros(max([0, *(s.id for s in panoptic.segments)]) + 1, np.int64)
    for segment in panoptic.segments:
        lookup[segment.id] = segment.category_id + 1
    return lookup[panoptic.segment_map]
