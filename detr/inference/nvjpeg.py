"""JPEG decoding on the GPU by nvJPEG; the caller decodes all other files with PIL.

A camera's 12-megapixel file takes a CPU core 93 ms, so 16 cores decode 170 images/s, fewer than the
model can take. nvJPEG rounds differently, by about one level; for colour stored at half the size
(4:2:0, most photos) nvJPEG repeats a colour where PIL interpolates, so edges of colour differ by
more. nvJPEG gets only complete grey or YCbCr files whose header PIL can read. PIL also decodes each
file that nvJPEG refuses, so every `ImageError` comes from PIL.

torchvision allocates the images on the caller's stream but writes to them on another stream, and
the hardware decoder of newer cards follows no stream, so new images must not reuse memory that
queued kernels still read. Therefore files are decoded under a stream of their own, which is
synchronised before and after (pytorch/vision#9606). To read the pixels on another stream, call
`detr.transfer.use_here`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from detr.config import ModelError
from detr.inference.decode import plain_jpeg
from detr.inference.device_errors import is_lost_device, is_out_of_memory


def check_nvjpeg(device: torch.device) -> None:
    """Raises ModelError if `device` is no GPU."""
    if device.type != "cuda":
        raise ModelError("decode nvjpeg needs a GPU: use pil, or draft for large photos")


def decode_nvjpeg(
    files: Sequence[bytes], device: torch.device, *, max_pixels: int, exif: bool
) -> list[Tensor | None]:
    """(H, W, 3) uint8 RGB on the device for each file; None for a file that PIL has to decode.

    `exif`: apply EXIF's orientation. Returns when the pixels are written. Thread-safe; calls on a
    GPU run one after the other. Raises RuntimeError if the device is lost.
    """
    orientations = [plain_jpeg(data, max_pixels=max_pixels, exif=exif) for data in files]
    chosen = [index for index, value in enumerate(orientations) if value is not None]
    pixels: list[Tensor | None] = [None] * len(files)
    with _alone(device):
        for index, image in zip(chosen, _decode([files[i] for i in chosen], device), strict=True):
            if image is not None:
                pixels[index] = upright(image, orientations[index] or 1).permute(1, 2, 0)
    return pixels


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Run the body under the decoder's stream, which is synchronised before and after."""
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        stream = _stream(device)
        stream.synchronize()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            stream.synchronize()


_LOCK = threading.Lock()


@lru_cache(maxsize=16)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _decode(files: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """(3, H, W) uint8 for each file; None for a file that nvJPEG refuses."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not files:
        return []
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    decode: Any = decode_jpeg
    try:
        return list(decode(encoded, mode=ImageReadMode.RGB, device=device))
    except RuntimeError as error:  # torchvision raises this also for a refused file
        if is_lost_device(error):
            raise
        hopeless = len(files) == 1 or is_out_of_memory(error)  # full: single files fail as well
    # The failed call may still write: wait before its memory is used again.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if hopeless:
        return [None] * len(files)
    return [image for data in files for image in _decode([data], device)]


def upright(image: Tensor, orientation: int) -> Tensor:
    """(3, H, W) turned by EXIF's orientation 1..8; 5..8 exchange H and W."""
    if orientation >= 5:
        image = image.transpose(1, 2)  # orientation 5; 6..8 also need a flip
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
    return image.flip(flips[orientation]) if orientation in flips else image
