"""A check of this machine's GPU: a bf16 convolution and a JPEG by nvJPEG, compared with the CPU."""

from __future__ import annotations

import io
import subprocess

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from detr.config import ModelError
from detr.inference.nvjpeg import decode_nvjpeg

LEVELS = 6.0  # largest mean difference between pixels of nvJPEG and PIL


def check_gpu() -> str:
    """One line: GPUs, driver, free memory, results of both checks. Raises ModelError."""
    device = torch.device("cuda")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    free, total = torch.cuda.mem_get_info(device)
    parts = [
        f"{torch.cuda.device_count()} GPU: {', '.join(sorted(names))}",
        f"driver {driver_version()}, CUDA {torch.version.cuda}",
        f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free",
        try_convolution(device),
        try_jpeg(device),
    ]
    return "; ".join(parts)


def driver_version() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown (no nvidia-smi)"
    return output.split()[0] if output.split() else "unknown"


def try_convolution(device: torch.device) -> str:
    """Compare a bf16 convolution by cuDNN with float32 on the CPU; returns a sentence.

    Raises ModelError if cuDNN fails, or if results differ by 2 % of the largest value or more.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 33, 47, generator=generator).bfloat16()
    weight = torch.randn(64, 64, 3, 3, generator=generator).bfloat16()
    wanted = F.conv2d(x.float(), weight.float(), padding=1)
    try:
        result = F.conv2d(x.to(device), weight.to(device), padding=1).float().cpu()
    except RuntimeError as error:
        raise ModelError(f"a bf16 convolution fails on the GPU: {error}") from error
    off = float((result - wanted).abs().max() / wanted.abs().max())
    if not off < 0.02:
        raise ModelError(f"a bf16 convolution on the GPU is off by {off:.0%} of its largest value")
    return "a bf16 convolution is right"


def try_jpeg(device: torch.device) -> str:
    """Compare a JPEG by nvJPEG with PIL; returns a sentence, also if nvJPEG is missing.

    Raises ModelError for wrong pixels.
    """
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(90)), axis=-1)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=95)
    data = out.getvalue()
    [pixels] = decode_nvjpeg([data], device, max_pixels=picture.size, exif=False)
    if pixels is None:
        return "nvJPEG refuses a plain JPEG: --decode nvjpeg would leave all to PIL"
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    off = float(np.abs(pixels.cpu().numpy() - wanted).mean())
    if off > LEVELS:
        raise ModelError(f"a JPEG by nvJPEG is off by {off:.1f} levels in the mean")
    return f"nvJPEG decodes, {off:.1f} levels off"
