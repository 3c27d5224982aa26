"""JPEGs decoded on the GPU, for what PIL would decode the same; the rest is left to PIL.

A camera's 12-megapixel file costs a CPU core 93 ms, so 16 cores feed 170 images/s: there decoding
is the limit, not the model. NVIDIA's decoder rounds differently, a level or so. Only a file whose
header PIL can read, that is whole, and that is grey or YCbCr is given to it, and whatever it
refuses PIL gets too: an `ImageError` always comes from PIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr.config import ModelError
from detr.inference.decode import plain_jpeg


def check_nvjpeg(device: torch.device) -> None:
    """Raises ModelError where there is no such decoder."""
    if device.type != "cuda":
        raise ModelError("decode nvjpeg needs a GPU: use pil, or draft for large photos")


def decode_nvjpeg(
    files: Sequence[bytes], device: torch.device, *, max_pixels: int, exif: bool
) -> list[Tensor | None]:
    """(H, W, 3) uint8 RGB on the device for each file; None where PIL has to decode it."""
    turns = [plain_jpeg(data, max_pixels=max_pixels, exif=exif) for data in files]
    chosen = [index for index, turn in enumerate(turns) if turn is not None]
    pixels: list[Tensor | None] = [None] * len(files)
    for index, image in zip(chosen, _decode([files[i] for i in chosen], device), strict=True):
        if image is not None:
            pixels[index] = upright(image, turns[index] or 1).permute(1, 2, 0)
    return pixels


def _decode(files: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """(3, H, W) uint8 each; one file that fails must not cost the others theirs."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not files:
        return []
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    decode: Any = decode_jpeg
    try:
        return list(decode(encoded, mode=ImageReadMode.RGB, device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what torchvision raises for a file that the decoder refuses
        if len(files) == 1:
            return [None]
        return [image for data in files for image in _decode([data], device)]


def upright(image: Tensor, orientation: int) -> Tensor:
    """(3, H, W) as EXIF's orientation 1..8 wants it shown."""
    if orientation >= 5:
        image = image.transpose(1, 2)  # 5: mirrored along the main diagonal; the rest follows
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
    return image.flip(flips[orientation]) if orientation in flips else image
