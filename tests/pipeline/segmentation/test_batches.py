"""Where an actor's time goes: what threads did beside the model is told, waited for or not."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detr.inference.decode import decode_image
from detr.inference.preprocess import processed_size
from detr.panoptic import Panoptic
from pipeline.segmentation import batches
from pipeline.segmentation.batches import Decoding, UnitDecoder
from pipeline.segmentation.model_spec import USUAL_QUANTUM
from pipeline.segmentation.segmenter import segment_row
from tests.factories import jpeg, segmenter, unit_of
from tests.toy_model import Toy

IMAGES = 6
REPETITIONS = 5
UNIT = 512  # images of a shard


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
    images = [decode_image(data) for data in files]
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
        alone["decode"].append(cpu_seconds(lambda: [decode_image(data) for data in files]))
        alone["encode"].append(cpu_seconds(lambda: [segment_row(answer) for answer in answers]))
    for stage in ("decode", "encode"):
        assert min(told[stage]) > 0.6 * min(alone[stage]), (told, alone)


class Alone(Toy):
    """Photos as R50 sees them on a GPU with room for 32."""

    works_alone = True

    def processed_size(self, height: int, width: int) -> tuple[int, int]:
        return processed_size(height, width, quantum=USUAL_QUANTUM["cuda"])


def cocos_sizes(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(height, width) as COCO has them: seven in ten usual ones, the others with a side of 640."""
    usual = [(480, 640)] * 22 + [(427, 640)] * 17 + [(640, 480)] * 8 + [(425, 640)] * 7
    usual += [(375, 500)] * 7 + [(426, 640)] * 5 + [(500, 375)] * 5 + [(612, 612)] * 5
    usual += [(361, 640)] * 4 + [(640, 427)] * 4 + [(428, 640)] * 3 + [(500, 333)] * 2
    sizes = [usual[int(index)] for index in rng.integers(0, len(usual), UNIT * 7 // 10)]
    sides = rng.normal(430, 50, UNIT - len(sizes)).clip(330, 600).astype(int).tolist()
    return sizes + [(640, side) if rng.random() < 0.2 else (side, 640) for side in sides]


def free_sizes(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(height, width) of photos that somebody cut as each wanted it."""
    return [(int(rng.integers(360, 480)), int(rng.integers(480, 640))) for _ in range(UNIT)]


def phones_sizes(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(height, width) of twelve megapixels and less, upright and not, some cut by hand."""
    kinds = [(3000, 4000), (3024, 4032), (2268, 4032), (3456, 4608), (2448, 3264), (1080, 1920)]
    sizes = [kinds[int(kind)] for kind in rng.integers(0, len(kinds), UNIT)]
    sizes = [size if rng.random() < 0.9 else (size[0], int(size[1] * 0.9)) for size in sizes]
    return [(width, height) if rng.random() < 0.4 else (height, width) for height, width in sizes]


@pytest.mark.parametrize("sizes_of", [cocos_sizes, free_sizes, phones_sizes])
def test_photos_of_many_sizes_share_batches_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    sizes_of: Callable[[np.random.Generator], list[tuple[int, int]]],
) -> None:
    sizes = sizes_of(np.random.default_rng(0))
    monkeypatch.setattr(batches, "header_size", lambda data, **_: sizes[int(data)])
    monkeypatch.setattr(
        batches,
        "decode_image",
        lambda data, **_: np.broadcast_to(np.uint8(0), (*sizes[int(data)], 3)),
    )
    with ThreadPoolExecutor(1) as pool:
        made = UnitDecoder(
            lambda index: str(index).encode(),
            range(UNIT),
            model=Alone(),
            decoding=Decoding(exif=True, max_pixels=10**9),
            most=lambda size: 32,
            pool=pool,
        )
        counts = [len(batch.indices) for batch in made]
    assert sum(counts) == UNIT
    assert UNIT / len(counts) >= 12, counts
