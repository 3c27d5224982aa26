"""The fingerprint moves with whatever changes results and with nothing else."""

from pathlib import Path

import pytest
import torch

import detr
from detr.config import ModelError
from detr.weights.fingerprint import Settings, resolve_device, resolve_dtype
from tests.random_weights import TINY_CATEGORIES, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tiny(path)
    return path


def test_describe_is_the_card_of_load(tiny):
    card = detr.describe(tiny, device="cpu")
    assert card == detr.load(tiny, device="cpu").card
    assert card.fingerprint_fields["dtype"] == "fp32"
    assert card.categories == TINY_CATEGORIES
    assert detr.load.describe is detr.describe  # type: ignore[attr-defined]


def test_batch_size_changes_no_fingerprint(tiny):
    assert detr.load(tiny, batch_size=1).fingerprint == detr.load(tiny, batch_size=8).fingerprint


def test_the_files_place_changes_no_fingerprint(tiny, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(tiny.read_bytes())
    assert detr.describe(copy).fingerprint == detr.describe(tiny).fingerprint


def test_everything_else_does(tiny, tmp_path):
    renamed = detr.Categories(
        detr.Category(c.id, c.name + "!", c.isthing, c.color) for c in TINY_CATEGORIES
    )
    write_tiny(tmp_path / "other.safetensors", seed=1)
    fingerprints = [
        detr.describe(tiny).fingerprint,
        detr.describe(tiny, dtype="bf16").fingerprint,
        detr.describe(tiny, threshold=0.8).fingerprint,
        detr.describe(tiny, size_quantum=32).fingerprint,
        detr.describe(tiny, compile=True).fingerprint,
        detr.describe(tiny, output_size="processed").fingerprint,
        detr.describe(tiny, output_size="quarter").fingerprint,
        detr.describe(tiny, categories=renamed).fingerprint,
        detr.describe(tmp_path / "other.safetensors").fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints)


def test_auto_is_float32_on_a_cpu():
    assert resolve_dtype("auto", "cpu") == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_is_bf16_only_where_it_is_native(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", "cuda") == expected


def test_wrong_settings_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no GPU"):
        resolve_device("cuda")
    with pytest.raises(ModelError, match="device must be"):
        resolve_device("gpu")
    with pytest.raises(ModelError, match="dtype must be"):
        resolve_dtype("fp8", "cpu")
    with pytest.raises(ModelError, match="threshold"):
        Settings("fp32", 1.0, 1)
    with pytest.raises(ModelError, match="size_quantum"):
        Settings("fp32", 0.85, 0)
    with pytest.raises(ModelError, match="original, processed, quarter, not 'half'"):
        Settings("fp32", 0.85, 1, output_size="half")
