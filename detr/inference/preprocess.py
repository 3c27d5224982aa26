"""From RGB pixels to the model's input: processed size, resize, normalise.

`resize` equals PIL's BILINEAR to the bit on any device, and `normalize` equals upstream's, so the
model's input is the same as in its training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr.inference.decode import ImageError
from detr.transfer import upload

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PRECISION_BITS = 22  # PIL's for 8-bit channels: 32 - 8 bits of pixel - 2 of headroom


def processed_size(
    height: int, width: int, *, size: int = 800, max_size: int = 1333, quantum: int = 1
) -> tuple[int, int]:
    """(height, width) in pixels of the model's input for a (height, width) image.

    Upstream's `get_size_with_aspect_ratio`: the shorter side becomes `size`, or less if the longer
    side would exceed `max_size`; the longer side is truncated to an integer, the shorter rounded.
    Each side is rounded to the nearest multiple of `quantum` (at least one, at most `max_size`), so
    that photos of many aspect ratios share batches. Raises ImageError `too_thin` if a side would be
    below one pixel, as for 1 x 10000.
    """
    short, long = min(height, width), max(height, width)
    if long / short * size > max_size:
        size = round(max_size * short / long)
    if size < 1:
        raise ImageError("too_thin", f"{width} x {height} pixels: the shorter side would vanish")
    if short == size:
        new_height, new_width = height, width
    elif width < height:
        new_height, new_width = int(size * height / width), size
    else:
        new_height, new_width = size, int(size * width / height)
    return _round_to(new_height, quantum, max_size), _round_to(new_width, quantum, max_size)


def _round_to(side: int, quantum: int, max_size: int) -> int:
    if quantum == 1:
        return side
    multiple = (side + quantum // 2) // quantum
    return max(1, min(multiple, max_size // quantum)) * quantum


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, H, W, 3) uint8 to (B, h, w, 3) uint8, `size` = (h, w), as PIL's BILINEAR does.

    The result equals PIL's to the bit on any device. A CPU runs PIL (4x faster there), other
    devices run integer tensor operations. When shrinking, PIL's filter is wider (antialias). PIL
    multiplies the filter's weights by 2**22 and rounds them to integers, and it rounds and clips to
    8 bits between the passes.

    The horizontal pass comes first, as in every PIL version that DETR was trained and published
    with. Pillow 13 swaps the passes where that is cheaper. In photos that are taller than 1333
    pixels this changes values by 1 of 255. So PIL is called once per axis.
    """
    if images.device.type == "cpu":
        return torch.stack([_resize_pil(image, size) for image in images])
    return resize_on_device(images, size)


def _resize_pil(image: Tensor, size: tuple[int, int]) -> Tensor:
    picture = Image.fromarray(image.numpy())
    picture = picture.resize((size[1], picture.height), Image.Resampling.BILINEAR)
    picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture))


def resize_on_device(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` by integer tensor operations, for GPUs; the same result on every device."""
    for axis, length in ((2, size[1]), (1, size[0])):
        if images.shape[axis] != length:
            images = _resize_axis(images, axis, length)
    return images


def normalize(images: Tensor) -> Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w) float32 in channels_last memory.

    Value / 255, minus the ImageNet mean, divided by ImageNet's standard deviation: the operations
    of upstream's ToTensor and Normalize in the same order, so equal to the bit.
    """
    full, mean, std = _imagenet(images.device)
    return images.float().div_(full).sub_(mean).div_(std).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255 (1,), mean (3,) and standard deviation (3,), cached: a copy would wait for the device.

    255 is a tensor, because CUDA divides by a number as a product with its reciprocal, which
    differs in the last place.
    """
    with torch.inference_mode(False):
        return (
            torch.tensor([255.0], device=device),
            torch.tensor(IMAGENET_MEAN, device=device),
            torch.tensor(IMAGENET_STD, device=device),
        )


def _resize_axis(images: Tensor, axis: int, length: int) -> Tensor:
    source = images.shape[axis]
    first, taps = _filter(source, length, images.device)
    shape = [1] * images.dim()
    shape[axis] = length

    def part(offset: int, weights: Tensor) -> Tensor:
        # A weight past the edge is 0: reading the last pixel instead changes nothing.
        index = (first + offset).clamp_(max=source - 1)
        return torch.index_select(images, axis, index).int().mul_(weights.view(shape))

    return _rounded(part(offset, weights) for offset, weights in enumerate(taps))


def _rounded(parts: Iterable[Tensor]) -> Tensor:
    """The sum of int32 products of pixels and weights, as uint8; overwrites the first product."""
    total: Tensor | None = None
    for part in parts:
        total = part.add_(1 << (_PRECISION_BITS - 1)) if total is None else total.add_(part)
    assert total is not None
    return total.bitwise_right_shift_(_PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def resize_mixed(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """`resize_on_device` of (H, W, 3) uint8 images of several sizes to one (B, h, w, 3).

    The number of kernels is that of one image: pixels lie in one list, image after image and row
    after row, and filters are padded to the largest number of taps.
    """
    device = images[0].device
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    heights, widths = np.array(sizes).T
    rows = int(heights.sum())
    first_row = np.cumsum(heights) - heights
    first_pixel = np.cumsum(heights * widths) - heights * widths
    y = np.arange(rows) - np.repeat(first_row, heights)
    start = np.repeat(first_pixel, heights) + y * np.repeat(widths, heights)
    row_start = upload(torch.from_numpy(start), device)[:, None]  # (rows, 1)
    image_of = upload(torch.from_numpy(np.repeat(np.arange(len(images)), heights)), device)
    pixels = torch.cat([image.reshape(-1, 3) for image in images])

    def across(column: Tensor, weights: Tensor) -> Tensor:
        index = torch.index_select(column, 0, image_of).add_(row_start)  # (rows, w)
        part = torch.index_select(pixels, 0, index.view(-1)).int().view(*index.shape, 3)
        return part.mul_(torch.index_select(weights, 0, image_of)[:, :, None])

    taps = _filters(widths.tolist(), size[1], device)
    lines = _rounded(across(*tap) for tap in zip(*taps, strict=True))  # (rows, w, 3)

    def down(line: Tensor, weights: Tensor) -> Tensor:
        part = torch.index_select(lines, 0, line.add_(line_start).view(-1)).int()
        return part.mul_(weights.view(-1, 1, 1))

    line_start = upload(torch.from_numpy(first_row), device)[:, None]
    taps = _filters(heights.tolist(), size[0], device)
    resized = _rounded(down(*tap) for tap in zip(*taps, strict=True))  # (B * h, w, 3)
    return resized.view(len(images), *size, 3)


def _filters(sources: Sequence[int], target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The source pixel (int64) and the weight (int32) of each tap, image and target pixel."""
    filters = [_coefficients(source, target) for source in sources]
    taps = max(len(weights) for _, weights in filters)
    padded = np.zeros((taps, len(sources), target), np.int32)
    for image, (_, weights) in enumerate(filters):
        padded[: len(weights), image] = weights
    starts = np.stack([first for first, _ in filters])
    first = upload(torch.from_numpy(starts), device)  # (B, target)
    last = upload(torch.from_numpy(np.array(sources)[:, None] - 1), device)
    offsets = torch.arange(taps, device=device)[:, None, None]
    return torch.minimum(first + offsets, last), upload(torch.from_numpy(padded), device)


@lru_cache(maxsize=1024)
def _filter(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_coefficients` on the device."""
    first, weights = (torch.from_numpy(part) for part in _coefficients(source, target))
    return upload(first, device), upload(weights, device)


@lru_cache(maxsize=1024)
def _coefficients(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """PIL's `precompute_coeffs` for its triangle filter, in float64, then rounded to integers.

    Returns the first source pixel of each target pixel, (target,), and the weights, (taps, target),
    which are 0 past a target pixel's last source pixel.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    support = stretch  # of a triangle of radius 1
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), source)
    offsets = np.arange((last - first).max())
    position = first[:, None] + offsets  # (target, taps)
    weights = 1.0 - np.abs((position - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(position < last[:, None], np.maximum(weights, 0.0), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed one after the other, as PIL does
    integers = (0.5 + weights * (1 << _PRECISION_BITS)).astype(np.int32)
    return first, np.ascontiguousarray(integers.T)
