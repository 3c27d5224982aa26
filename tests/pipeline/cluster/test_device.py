"""A GPU that can't be had is a sentence, and work that needs none waits for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cluster import device
from pipeline.cluster.device import Device
from pipeline.config import make_config
from pipeline.errors import EXIT_TRY_AGAIN, TryAgainError
from pipeline.progress import Reporter
from pipeline.segmentation.job import work
from pipeline.segmentation.model_spec import ModelSpec
from tests.factories import Night

pytestmark = pytest.mark.usefixtures("ray_session")


def test_gpus_that_others_hold_are_a_reason_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "GPU_PROBE_SECONDS", 1)
    with pytest.raises(TryAgainError, match="no GPU of the cluster was free for 1 s") as caught:
        device._probe("auto")
    assert caught.value.exit_code == EXIT_TRY_AGAIN


def test_a_night_with_only_removals_takes_no_gpu(tmp_path: Path) -> None:
    """Here there is none, and none may be started: whoever asked for one would be refused."""
    night = Night(tmp_path)
    for number in range(10):
        night.put(f"{number}.jpg")
    night.first({})
    (night.photos / "3.jpg").unlink()
    assert night.refresh() is not None
    config = make_config(
        {"source": str(night.photos), "out": str(tmp_path / "run"), "weights": "not/loaded.pth"}
    )
    gpu = Device("cuda", "a GPU of yesterday", "bf16")
    spec = ModelSpec.of(config, device="cuda", dtype="bf16")
    summary = work(night.run, config, spec, gpu, Reporter(), 0.0)
    assert (summary.snapshot, summary.images, summary.computed) == (2, 9, 0)
