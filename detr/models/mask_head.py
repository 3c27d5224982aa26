"""From query embeddings to mask logits: attention maps, then an FPN-style convolution head.

The published head (Carion et al. 2020, section 5) copies the image's features once per query and
convolves the copies. Nearly all of that is linear in (image + query). So the part that depends on
the image alone (the image's share) is computed once per image and added to the query's share:

- the first convolution splits into image channels and attention channels;
- adding an FPN map before a convolution equals adding its convolution afterwards;
- a 3x3 convolution of a map enlarged by two equals four 2x2 convolutions of the small map, one per
  phase (row parity, column parity), at 4/9 of the cost.

The results are equal up to rounding; tests compare with the published form. Queries are a flat list
over the batch, so that only kept (or, in training, matched) queries are computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.config import DetrConfig
from detr.models.fused_ops import convolve


class AttentionMaps(nn.Module):
    """Attention of each query over the encoded image: one map per attention head."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.heads = config.nheads
        self.q_linear = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.k_linear = nn.Linear(config.hidden_dim, config.hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Tensor, memory: Tensor, padding: Tensor | None, image_index: Tensor
    ) -> Tensor:
        """query (N, d), memory (B, M, d), padding (B, M) bool or None -> (N, heads, M).

        image_index (N,) int64: the image of each query. As upstream, keys are the memory without
        positions, and the softmax is joint over heads and cells: all maps of a query sum to 1.
        """
        dim = query.shape[-1]
        queries = self.q_linear(query) * (dim / self.heads) ** -0.5
        queries = queries.unflatten(-1, (self.heads, -1))  # (N, heads, d / heads)
        keys = self.k_linear(memory).unflatten(-1, (self.heads, -1))  # (B, M, heads, d / heads)
        if len(memory) == 1:  # no copy of the keys per query
            weights = torch.einsum("nhc,mhc->nhm", queries, keys[0])
        else:
            weights = torch.einsum("nhc,nmhc->nhm", queries, keys[image_index])
        if padding is not None:
            weights = weights.masked_fill(padding[image_index][:, None], float("-inf"))
        return weights.flatten(1).softmax(-1).view_as(weights)


class MaskHead(nn.Module):
    """Res5 and attention maps -> Res4 -> Res3 -> Res2 -> one mask logit per cell of Res2."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.hidden_dim = config.hidden_dim
        self.has_phases = False
        first, *rest = config.mask_widths
        channels = (first, first, *rest)
        for number in range(1, 6):
            inputs, outputs = channels[number - 1 : number + 1]
            self.add_module(f"lay{number}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"gn{number}", nn.GroupNorm(config.mask_groups, outputs))
        self.out_lay = nn.Conv2d(rest[-1], 1, 3, padding=1)
        for number, (inputs, outputs) in enumerate(
            zip(config.stage_channels[2::-1], rest[:3], strict=True), start=1
        ):
            self.add_module(f"adapter{number}", nn.Conv2d(inputs, outputs, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def scale_attention(self, factor: float) -> None:
        """Multiply the first convolution's weights for the attention maps, in place.

        For training from random weights: values of the maps are about 1 / (heads x cells), too
        small next to unit features, so masks start to learn late. A factor of 200 helps small
        models.
        """
        with torch.no_grad():
            self.convolution("lay1").weight[:, self.hidden_dim :] *= factor

    def keep_phases(self) -> None:
        """Compute `phase_kernels` of layers 3 to 5 once; weights must not change afterwards."""
        for number in (3, 4, 5):
            phases = phase_kernels(self.convolution(f"lay{number}").weight)
            self.register_buffer(f"phases{number}", phases, persistent=False)
        self.has_phases = True

    def convolution(self, name: str) -> nn.Conv2d:
        module = self.get_submodule(name)
        assert isinstance(module, nn.Conv2d)
        return module

    def prepare(self, projected: Tensor, pyramid: list[Tensor]) -> list[Tensor]:
        """The image's share of the first, third, fourth and fifth convolution, with biases.

        projected (B, d, h5, w5) is `input_proj`'s output; pyramid is Res4, Res3, Res2. Returns
        maps of (B, width, h, w) at the sizes of Res5, Res4, Res3 and Res2.
        """
        lay1 = self.convolution("lay1")
        shares = [F.conv2d(projected, lay1.weight[:, : self.hidden_dim], lay1.bias, padding=1)]
        for number, features in enumerate(pyramid, start=1):
            adapted = convolve(features, self.convolution(f"adapter{number}"))
            shares.append(self.convolution(f"lay{number + 2}")(adapted))
        return shares

    def forward(self, shares: list[Tensor], attention: Tensor, image_index: Tensor) -> Tensor:
        """attention (N, heads, h5, w5), image_index (N,), shares from `prepare` -> (N, h2, w2)."""
        weight = self.convolution("lay1").weight[:, self.hidden_dim :]
        x = F.conv2d(attention, weight, padding=1).add_(_per_query(shares[0], image_index))
        x = self._norm_relu(x, 1)
        x = self._norm_relu(self.convolution("lay2")(x), 2)
        for number in (3, 4, 5):
            share = shares[number - 2]
            weight = self.convolution(f"lay{number}").weight
            phases = self.get_buffer(f"phases{number}") if self.has_phases else None
            x = enlarge_convolve(x, weight, share.shape[-2:], phases)
            x = x.add_(_per_query(share, image_index))
            x = self._norm_relu(x, number)
        return one_channel_convolve(x, self.out_lay)

    def _norm_relu(self, x: Tensor, number: int) -> Tensor:
        return F.relu(self.get_submodule(f"gn{number}")(x), inplace=True)


def _per_query(share: Tensor, image_index: Tensor) -> Tensor:
    """(B, C, h, w) -> (N, C, h, w); for one image unchanged, to broadcast."""
    return share if len(share) == 1 else share[image_index]


def one_channel_convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3x3 convolution (zero border) of x (N, C, h, w) to one channel -> (N, h, w).

    oneDNN would compute 16 channels. In float32 on a CPU a matrix product gives one plane for each
    of the nine taps, and the shifted planes are added.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return conv(x)[:, 0]
    assert conv.bias is not None
    count, channels, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (N * h * w, C)
    taps = conv.weight[0].flatten(1)  # (C, 9)
    planes = torch.mm(taps.T, cells.T).view(3, 3, count, height, width)
    out = planes[1, 1] + conv.bias
    for row, column in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        to_y, from_y = _overlap(row - 1, height)
        to_x, from_x = _overlap(column - 1, width)
        out[:, to_y, to_x] += planes[row, column, :, from_y, from_x]
    return out


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Slices of all i, and of all i + shift, for which both are within 0..length - 1."""
    first, last = max(0, -shift), min(length, length - shift)
    return slice(first, last), slice(first + shift, last + shift)


def phase_kernels(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (4K, C, 2, 2): kernels on the small map that equal a 3x3 convolution of the
    map doubled by nearest neighbour.

    Phase 2a + b gives the outputs of rows 2i + a and columns 2j + b.
    """
    # An output row 2i reads small rows i-1, i, i and an output row 2i+1 reads i, i, i+1.
    even, odd = (
        (weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]),
        (
            weight[:, :, 0] + weight[:, :, 1],
            weight[:, :, 2],
        ),
    )
    phases = []
    for top, bottom in (even, odd):
        kernel = torch.stack((top, bottom), dim=2)  # (K, C, 2, 3)
        left, middle, right = kernel.unbind(-1)
        phases.append(torch.stack((left, middle + right), dim=-1))
        phases.append(torch.stack((left + middle, right), dim=-1))
    return torch.cat(phases)


def enlarge_convolve(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int] | torch.Size,
    phases: Tensor | None = None,
) -> Tensor:
    """A 3x3 convolution (no bias, zero border) of x resized to `size` by nearest neighbour.

    x (N, C, h, w), weight (K, C, 3, 3) -> (N, K, H, W). If both sides double (H = 2h or 2h - 1, the
    sizes of strided convolutions), the enlarged map is not built. `phases`: the result of
    `phase_kernels(weight)`, if known.
    """
    (height, width), (rows, columns) = x.shape[-2:], size
    if height != (rows + 1) // 2 or width != (columns + 1) // 2:
        return F.conv2d(F.interpolate(x, size=tuple(size), mode="nearest"), weight, padding=1)
    kernels = phase_kernels(weight) if phases is None else phases
    small = F.conv2d(x, kernels, padding=1)  # (N, 4K, h + 1, w + 1)
    out = torch.empty(
        (len(x), len(weight), rows, columns),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    for phase, part in enumerate(small.chunk(4, dim=1)):
        a, b = divmod(phase, 2)
        target = out[:, :, a::2, b::2]
        target.copy_(part[:, :, a : a + target.shape[2], b : b + target.shape[3]])
    # At an odd size the last enlarged row (column) is cut off, and the border below is zero.
    if rows % 2:
        strip = F.interpolate(x[:, :, -2:], scale_factor=2.0)[:, :, -3:-1, :columns]
        strip = strip if height > 1 else F.pad(strip[:, :, -1:], (0, 0, 1, 0))
        out[:, :, -1:] = F.conv2d(strip, weight[:, :, :2], padding=(0, 1))
    if columns % 2:
        strip = F.interpolate(x[:, :, :, -2:], scale_factor=2.0)[:, :, :rows, -3:-1]
        strip = strip if width > 1 else F.pad(strip[:, :, :, -1:], (1, 0))
        out[:, :, :, -1:] = F.conv2d(strip, weight[:, :, :, :2], padding=(1, 0))
    return out
