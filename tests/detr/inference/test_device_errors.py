"""The words of torch, cuBLAS, cuDNN, nvJPEG and the driver: memory is full, a device is lost."""

import pytest
import torch

from detr.inference.device_errors import is_lost_device, is_out_of_memory

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "GET was unable to find an engine to execute this computation",
    "nvjpegDecodeBatched failed: 5",
    "NVJPEG_STATUS_ALLOCATOR_FAILURE",
)
LOST = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: unknown error",
    "CUDA error: hardware stack error",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
)
MISTAKES = (
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    "CUDA error: invalid configuration argument",
    "CUDA error: no kernel image is available for execution on the device",
    "Expected all tensors to be on the same device",
)


@pytest.mark.parametrize("text", FULL)
def test_memory(text: str) -> None:
    for error in (RuntimeError(text), torch.AcceleratorError(text)):
        assert is_out_of_memory(error)
        assert not is_lost_device(error)


@pytest.mark.parametrize("text", LOST)
def test_a_lost_device(text: str) -> None:
    for error in (RuntimeError(text), torch.AcceleratorError(text)):
        assert is_lost_device(error)
        assert not is_out_of_memory(error)


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_neither(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))
    assert not is_lost_device(RuntimeError(text))


def test_what_is_no_error_of_a_device_is_neither() -> None:
    assert not is_lost_device(ValueError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(MemoryError())
