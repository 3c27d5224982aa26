"""Sine position encoding: `channels` numbers for the position of each cell of a feature map.

The published form (Carion et al. 2020, appendix A.4): rows and columns are counted over the cells
that aren't padding, scaled so that every image spans 0 to 2 pi, and turned into interleaved sines
and cosines. Encodings of unpadded maps depend on the size alone and are cached; the cache has a
bound, since collections have hundreds of sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from detr.transfer import upload

TEMPERATURE = 10_000.0


def sine_position(padding: Tensor, channels: int) -> Tensor:
    """Encode every cell of a padded batch.

    padding: (B, h, w) bool, True where a cell is padding. Returns (B, channels, h, w) float32:
    first half y, second half x, as upstream's `PositionEmbeddingSine(normalize=True)`.
    """
    inside = (~padding).to(torch.float32)
    rows, columns = inside.cumsum(1), inside.cumsum(2)  # (B, h, w), from 1
    rows = rows / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
    columns = columns / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=padding.device)
    period = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # (half,)
    encoded = [_interleave(axis[..., None] / period) for axis in (rows, columns)]
    return torch.cat(encoded, dim=3).permute(0, 3, 1, 2)  # (B, channels, h, w)


def _interleave(angles: Tensor) -> Tensor:
    """(..., n) angles -> (..., n): sine of even entries, cosine of odd entries."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


@lru_cache(maxsize=256)
def whole_position(
    height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(1, h * w, channels) encoding of the cells of an unpadded map, in the transformer's layout.

    Computed in float32 on the CPU and then cast, so that the encoding is the same on every device.
    256 maps of 25 x 34 cells are 220 MB in float32.
    """
    with torch.inference_mode(False):  # a cached inference tensor couldn't be used in training
        encoded = sine_position(torch.zeros(1, height, width, dtype=torch.bool), channels)
        encoded = encoded.flatten(2).transpose(1, 2).contiguous().to(dtype)
        return upload(encoded, device)
