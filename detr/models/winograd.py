"""A 3x3 convolution with a quarter of the multiplications, for float32 on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray, 2016): a tile of 6 x 6 inputs is transformed to another
basis, where the convolution is one product per element, and the products are transformed back to
4 x 4 outputs. BLAS does all steps: the transforms as 36 x 36 and 16 x 36 matrices (Kronecker
squares of the published matrices), the convolution as 36 products of matrices over channels.
Its rounding error is about 7e-6 of the largest value; that of the direct form is 1.5e-6.

oneDNN runs the direct form at the processor's peak, so only fewer operations are faster. With 256
or more channels, Winograd's form is faster; with fewer, the transforms, which are bound by memory,
take the time that the products save. It is used neither on GPUs, where cuDNN chooses an algorithm,
nor in bf16, which has too few digits for it.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_CHANNELS: Final = 256
_TILE: Final = 4  # outputs on a side

_INPUT: Final = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL: Final = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT: Final = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution in Winograd form, without gradients; replaces `conv`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
        kernel = torch.tensor(_KERNEL, dtype=torch.float64)
        with torch.no_grad():
            packed = torch.einsum("ia,kcab,jb->ijck", kernel, conv.weight.double(), kernel)
        self.weight = nn.Parameter(packed.flatten(0, 1).float().contiguous(), requires_grad=False)
        self.bias = conv.bias  # weight: (36, C, K)
        inputs, outputs = torch.tensor(_INPUT).float(), torch.tensor(_OUTPUT).float()
        self.inputs: Tensor
        self.outputs: Tensor
        self.register_buffer("inputs", torch.kron(inputs, inputs))  # (36, 36)
        self.register_buffer("outputs", torch.kron(outputs, outputs))  # (16, 36)

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) float32 -> (B, K, h, w) in dense channels_last memory."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // _TILE), -(-width // _TILE)  # of tiles, the last ones padded
        below, right = _TILE * rows - height + 1, _TILE * columns - width + 1
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
        image, row, column, _ = padded.stride()
        tiles = padded.as_strided(
            (6, 6, batch, rows, columns, channels),
            (row, column, image, _TILE * row, _TILE * column, 1),
        ).reshape(36, batch * rows * columns * channels)  # (36, B * rows * columns * C)
        tiles = torch.mm(self.inputs, tiles).view(36, batch * rows * columns, channels)
        products = torch.bmm(tiles, self.weight)  # (36, B * rows * columns, K)
        answers = torch.mm(self.outputs, products.flatten(1))
        answers = answers.view(_TILE, _TILE, batch, rows, columns, self.out_channels)
        out = x.new_empty(batch, rows, _TILE, columns, _TILE, self.out_channels)
        torch.add(answers, 0 if self.bias is None else self.bias, out=out.permute(2, 4, 0, 1, 3, 5))
        whole = out.view(batch, rows * _TILE, columns * _TILE, self.out_channels)
        cut = whole[:, :height, :width]  # ReLU or contiguous() makes this dense
        return (F.relu(cut) if relu else cut.contiguous()).permute(0, 3, 1, 2)


def use_winograd(module: nn.Module) -> None:
    """Replace, in place, every convolution below `module` that is faster in Winograd form."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _is_worth_it(child):
                setattr(parent, name, WinogradConv2d(child))


def _is_worth_it(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a plain 3x3 (padding 1, stride 1, one group), and wide enough."""
    plain = (
        conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
    )
    return plain and min(conv.in_channels, conv.out_channels) >= SMALLEST_CHANNELS
