"""What a weight file of ours says of itself; safetensors' own reader is the tensors' oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load as load_arrays

import detr
from detr.config import ModelError
from detr.weights.checkpoint import open_checkpoint
from detr.weights.own_format import recommended_threshold, recommending
from tests.random_weights import TINY_CATEGORIES, tiny_config, write_tiny

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "jobs" / "demo_weights" / "demo.safetensors"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.safetensors"
    write_tiny(path)
    return path


@pytest.fixture
def sure(plain: Path) -> Path:
    """The same weights with a threshold."""
    path = plain.with_name("sure.safetensors")
    path.write_bytes(recommending(plain.read_bytes(), 0.3))
    return path


def test_a_threshold_changes_the_metadata_alone(plain: Path, sure: Path) -> None:
    before, now = load_arrays(plain.read_bytes()), load_arrays(sure.read_bytes())
    assert before.keys() == now.keys()
    assert all(np.array_equal(before[name], now[name]) for name in before)
    with safe_open(sure, "pt") as file:
        assert json.loads(file.metadata()["detr_panoptic"])["threshold"] == 0.3
    assert recommending(sure.read_bytes(), None) == plain.read_bytes()


def test_a_saved_threshold_is_the_same_file_as_one_that_came_later(
    plain: Path, sure: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(plain)
    with torch.device("meta"):
        model = detr.DetrPanoptic(checkpoint.config)
    model.load_state_dict(checkpoint.weights(), assign=True)
    saved = tmp_path / "saved.safetensors"
    detr.save(model, saved, tiny_config(), TINY_CATEGORIES, threshold=0.3)
    assert saved.read_bytes() == sure.read_bytes()


def test_weights_that_get_a_threshold_stay_the_same_weights(plain: Path, sure: Path) -> None:
    asked = {"device": "cpu", "threshold": 0.7}
    before, now = detr.describe(plain, **asked), detr.describe(sure, **asked)
    assert (now.weights_sha256, now.fingerprint) == (before.weights_sha256, before.fingerprint)


def test_weights_are_used_with_their_own_threshold_unless_another_is_asked_for(
    plain: Path, sure: Path
) -> None:
    used = [
        detr.load(path, device="cpu", threshold=asked).threshold
        for path in (plain, sure)
        for asked in (None, 0.7)
    ]
    assert used == [0.85, 0.7, 0.3, 0.7]
    assert detr.describe(sure, device="cpu").fingerprint_fields["threshold"] == 0.3
    said = "threshold 0.3, as the weights recommend"
    assert said in repr(detr.load(sure, device="cpu"))
    assert said not in repr(detr.load(sure, device="cpu", threshold=0.7))


def test_a_threshold_is_read_without_the_tensors(plain: Path, sure: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(sure.read_bytes()[:20_000])
    assert recommended_threshold(start) == recommended_threshold(sure) == 0.3
    (tmp_path / "page.pth").write_text("<!doctype html>")
    others = (plain, tmp_path / "page.pth", tmp_path / "none.pth", tmp_path)
    assert [recommended_threshold(path) for path in others] == [None] * 4


@pytest.mark.parametrize("threshold", [1, -0.1, "high"])
def test_a_threshold_that_can_t_be_is_refused(plain: Path, threshold: object) -> None:
    plain.write_bytes(recommending(plain.read_bytes(), threshold))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"threshold|damaged metadata"):
        detr.describe(plain, device="cpu")


def test_the_demo_s_weights_recommend_a_half_and_are_those_of_their_record() -> None:
    card = detr.describe(DEMO, device="cpu")
    assert card.threshold == card.recommended_threshold == 0.5
    record = json.loads(DEMO.with_suffix(".json").read_text())
    assert card.weights_sha256 == record["sha256"]
