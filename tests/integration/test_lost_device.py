"""A GPU that is lost in the middle of a job: another actor takes over, one row an image."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detr.panoptic import Panoptic
from pipeline.config import make_config
from pipeline.segmentation.job import segment
from tests.counting_model import Counting, encoded
from tests.run_rows import live_rows

IMAGES, PER_SHARD, LOSSES = 24, 4, 2


class Lost(Counting):
    """Its device is lost with an image's batch, in so many processes; then for good in each."""

    def __init__(self, log: str, losses: str) -> None:
        super().__init__(log, 0.0)
        self.losses, self.calls, self.lost = Path(losses), 0, False

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        self.calls += 1
        if self.calls == 2 and len(list(self.losses.iterdir())) < LOSSES:
            (self.losses / str(os.getpid())).touch()
            self.lost = True
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().segment(images)


def load(weights: str, **settings: Any) -> Lost:
    return Lost(**json.loads(Path(weights).read_text()))


@pytest.mark.usefixtures("ray_session")
def test_the_units_of_a_lost_device_are_computed_again(tmp_path: Path) -> None:
    photos, losses = tmp_path / "photos", tmp_path / "losses"
    for folder in (photos, losses):
        folder.mkdir()
    for number in range(IMAGES):
        (photos / f"{number:02}.png").write_bytes(encoded(number))
    weights = tmp_path / "model.json"
    weights.write_text(json.dumps({"log": str(tmp_path / "log"), "losses": str(losses)}))
    settings = {
        "source": str(photos),
        "out": str(tmp_path / "run"),
        "weights": str(weights),
        "model": "tests.integration.test_lost_device:load",
        "images_per_shard": PER_SHARD,
        "device": "cpu",
        "num_actors": "1",
    }
    summary = segment(make_config(settings))
    assert (summary.ok, summary.error) == (IMAGES, 0)
    names = live_rows(tmp_path / "run")["file_name"].to_pylist()
    assert sorted(names) == sorted(path.name for path in photos.iterdir())
    assert len(list(losses.iterdir())) == LOSSES
