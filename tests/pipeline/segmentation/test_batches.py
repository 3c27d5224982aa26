"""Where an actor's time goes: what threads did beside the model is told, waited for or not."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detr.inference.decode import decode
from detr.panoptic import Panoptic
from pipeline.segmentation.segmenter import segment_row
from tests.factories import jpeg, segmenter, unit_of
from tests.toy_model import Toy

IMAGES = 6
REPETITIONS = 5


class Slow(Toy):
    """Takes so long over an image that the next one is decoded, and the last encoded, meanwhile."""

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        answers = super().segment(images)
        time.sleep(0.1)
        return answers


def load_slow(weights: str, **settings: Any) -> Slow:
    return Slow()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds that this thread spends on it."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def test_work_that_nobody_waited_for_is_counted(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    model = "tests.pipeline.segmentation.test_batches:load_slow"
    actor = segmenter(tmp_path / "none", model=model, batch_size=1)
    files = [jpeg(600, 800, seed) for seed in range(IMAGES)]
    unit = unit_of({f"{number}.jpg": data for number, data in enumerate(files)})
    actor(unit)  # compiles what encodes
    images = [decode(data) for data in files]
    answers = [Toy().segment([image])[0] for image in images]
    told: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    for _ in range(REPETITIONS):  # in turn: a busy core makes the same work slower for both
        seconds: dict[str, float] = defaultdict(float)
        actor._rows(unit, seconds, Counter())
        assert set(seconds) == {"decode", "encode", "model", "total"}
        assert seconds["total"] >= seconds["model"] > 0.1 * IMAGES
        for stage in ("decode", "encode"):
            told[stage].append(seconds[stage])
        alone["decode"].append(cpu_seconds(lambda: [decode(data) for data in files]))
        alone["encode"].append(cpu_seconds(lambda: [segment_row(answer) for answer in answers]))
    for stage in ("decode", "encode"):
        assert min(told[stage]) > 0.6 * min(alone[stage]), (told, alone)
