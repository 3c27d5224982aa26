"""JPEGs decoded on the GPU, for what PIL would decode the same; the rest is left to PIL.

A camera's 12-megapixel file costs a CPU core 93 ms, so 16 cores feed 170 images/s: there decoding
is the limit, not the model. NVIDIA's decoder rounds differently, by a level or so, and where colour
is stored at half the size (4:2:0, most photos) it repeats a colour where PIL interpolates: edges
of colour differ by more. Only a file whose header PIL can read, that is whole, and that is grey or
YCbCr is given to it, and whatever it refuses PIL gets too: an `ImageError` always comes from PIL.

torchvision takes the memory of its images from the caller's stream but writes it on another one,
and the decoder of newer cards obeys no stream at all: memory that queued kernels still read must
not be among it. So files are decoded under a stream on which nothing else runs, which is empty
before and after (pytorch/vision#9606). Whoever reads the pixels on another stream tells the
allocator so (`detr.transfer.use_here`).
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
    """Raises ModelError where there is no such decoder."""
    if device.type != "cuda":
        raise ModelError("decode nvjpeg needs a GPU: use pil, or draft for large photos")


def decode_nvjpeg(
    files: Sequence[bytes], device: torch.device, *, max_pixels: int, exif: bool
) -> list[Tensor | None]:
    """(H, W, 3) uint8 RGB on the device for each file; None where PIL has to decode it.

    The pixels are there when it returns. Safe in threads; they take turns.
    """
    turns = [plain_jpeg(data, max_pixels=max_pixels, exif=exif) for data in files]
    chosen = [index for index, turn in enumerate(turns) if turn is not None]
    pixels: list[Tensor | None] = [None] * len(files)
    with _alone(device):
        for index, image in zip(chosen, _decode([files[i] for i in chosen], device), strict=True):
            if image is not None:
                pixels[index] = upright(image, turns[index] or 1).permute(1, 2, 0)
    return pixels


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Under the decoder's own stream, empty before and after."""
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
    """(3, H, W) uint8 each; one file that fails must not cost the others theirs."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not files:
        return []
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    decode: Any = decode_jpeg
    try:
        return list(decode(encoded, mode=ImageReadMode.RGB, device=device))
    except RuntimeError as error:  # also what torchvision raises for a file that is refused
        if is_lost_device(error):
            raise
        hopeless = len(files) == 1 or is_out_of_memory(error)  # the model's batches hold it all
    # What the failed call had begun to write must be written before its memory is used again.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if hopeless:
        return [None] * len(files)
    return [image for data in files for image in _decode([data], device)]


def upright(image: Tensor, orientation: int) -> Tensor:
    """(3, H, W) as EXIF's orientation 1..8 wants it shown."""
    if orientation >= 5:
        image = image.transpose(1, 2)  # 5: mirrored along the main diagonal; the rest follows
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
    return image.flip(flips[orientation]) if orientation in flips else image
