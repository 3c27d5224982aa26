"""The trials of a GPU, on a CPU: what they say of a right device, and that a wrong one is found."""

import pytest
import torch
import torch.nn.functional as F

from detr.config import ModelError
from detr.inference import check_gpu
from detr.inference.check_gpu import try_convolution, try_jpeg

CPU = torch.device("cpu")


def test_a_device_that_computes_right() -> None:
    assert try_convolution(CPU) == "a bf16 convolution is right"
    assert try_jpeg(CPU) == "nvJPEG decodes, 0.0 levels off"


def test_a_convolution_that_is_off_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = F.conv2d

    def off(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        return plain(x, weight, padding=padding) * (1.1 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(F, "conv2d", off)
    with pytest.raises(ModelError, match="off by"):
        try_convolution(CPU)

    def fails(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available")
        return plain(x, weight, padding=padding)

    monkeypatch.setattr(F, "conv2d", fails)
    with pytest.raises(ModelError, match="no kernel image"):
        try_convolution(CPU)


def test_a_decoder_that_is_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "decode_nvjpeg", lambda *_, **__: [None])
    assert "leave all to PIL" in try_jpeg(CPU)
    black = torch.zeros(96, 96, 3, dtype=torch.uint8)
    monkeypatch.setattr(check_gpu, "decode_nvjpeg", lambda *_, **__: [black])
    with pytest.raises(ModelError, match="levels"):
        try_jpeg(CPU)


def test_what_is_said_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (140e9, 141e9))
    monkeypatch.setattr(check_gpu, "driver_version", lambda: "580.1")
    for name in ("try_convolution", "try_jpeg"):
        plain = getattr(check_gpu, name)
        monkeypatch.setattr(check_gpu, name, lambda device, plain=plain: plain(CPU))
    said = check_gpu.check_gpu()
    assert said.startswith("2 GPU: NVIDIA H200; driver 580.1, CUDA ")
    assert "140 of 141 GB free; a bf16 convolution is right; nvJPEG decodes" in said
