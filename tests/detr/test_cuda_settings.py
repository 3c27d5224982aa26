"""Settings of the process for a GPU, and a GPU that torch can't use."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detr import cuda_settings
from detr.config import ModelError
from detr.cuda_settings import settle_cuda, why_no_gpu
from detr.inference.steps import Steps
from detr.models.detr import DetrPanoptic
from detr.weights.fingerprint import resolve_device
from pipeline.train.loop import Plan, Trainer
from tests.random_weights import tiny_config


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(attention)
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("restored")
def test_attention_is_never_planned_for_each_shape() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    settle_cuda(torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.usefixtures("restored")
def test_memory_is_taken_in_segments_that_grow_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    settle_cuda(torch.bfloat16)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    settle_cuda(torch.bfloat16)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"


@pytest.mark.usefixtures("restored")
def test_float32_is_float32_and_stays_readable() -> None:
    """Under torch's older names, which its compiler reads, and under its newer ones."""
    torch.backends.cudnn.allow_tf32 = True
    settle_cuda(torch.float32)
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("restored")
def test_a_model_and_a_training_settle_a_gpu_before_they_are_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class BuiltError(Exception):
        pass

    def build(*_: object, **__: object) -> None:
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        raise BuiltError

    torch.backends.cuda.enable_cudnn_sdp(True)
    monkeypatch.setattr(DetrPanoptic, "fold", build)
    card: Any = SimpleNamespace(dtype="bf16")
    settings: Any = SimpleNamespace(threshold=0.85, output_size="original")
    with pytest.raises(BuiltError):
        Steps(DetrPanoptic(tiny_config()), card, device=torch.device("cuda"), settings=settings)

    torch.backends.cuda.enable_cudnn_sdp(True)
    monkeypatch.setattr("pipeline.train.loop.DetrPanoptic", build)
    task: Any = SimpleNamespace(plan=Plan(), config=tiny_config())
    with pytest.raises(BuiltError):
        Trainer(task, torch.device("cuda"))


OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU "
    "driver by downloading and installing a new version"
)


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose driver is older than the CUDA that torch was built for."""

    def init() -> None:
        raise RuntimeError(OLD)

    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(cuda_settings, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("old_driver")
def test_a_driver_that_is_too_old_is_no_reason_to_run_on_the_cpu() -> None:
    for device in ("auto", "cuda", "cuda:0"):
        with pytest.raises(ModelError, match=r"driver .* is too old \(found version 12040\): upd"):
            resolve_device(device)
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_hidden_from_a_process_are_not_missed(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resolve_device("auto").type == "cpu"


@pytest.mark.usefixtures("old_driver")
def test_a_torch_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build for CPUs" in str(why_no_gpu())


def test_a_machine_without_a_gpu_misses_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda_settings, "_DEVICE_FILES", tmp_path)
    assert why_no_gpu() is None
