"""Settings of the process for a GPU: torch accepts them without one."""

from collections.abc import Iterator

import pytest
import torch

from detr.cuda_settings import settle_cuda


@pytest.fixture
def restored() -> Iterator[None]:
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
def test_float32_is_float32_and_stays_readable() -> None:
    """Under torch's older names, which its compiler reads, and under its newer ones."""
    torch.backends.cudnn.allow_tf32 = True
    settle_cuda(torch.float32)
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
