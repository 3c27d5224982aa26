"""What a run on CPUs will take, measured on this machine before it starts."""

from __future__ import annotations

import time
from typing import Final

import numpy as np
import torch

from pipeline.cluster.placement import Placement
from pipeline.segmentation.model_spec import ModelSpec

WORTH_MEASURING: Final = 200  # images; fewer are done before anybody would read the estimate
WORTH_TELLING: Final = 60.0  # seconds


def cpu_seconds(spec: ModelSpec, placement: Placement, images: int) -> float:
    """Seconds for so many 640 x 480 photos on the largest pool.

    Measured on one made image, the second time, on an actor's threads.
    A lower bound: made noise keeps few segments, and each kept one costs a little.
    """
    model = spec.load()
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(placement.threads)
    try:
        model.segment([image])
        started = time.perf_counter()
        model.segment([image])
        seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    return seconds * images / placement.max_actors
