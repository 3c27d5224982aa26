"""Plain forms of what detr/ computes by shortcuts: upstream's steps, a copy per query: oracles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detr.models.mask_head import AttentionMaps, MaskHead


def attention_maps(module: AttentionMaps, query: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
    """query (B, Q, d), memory (B, M, d), padding (B, M) -> (B, Q, heads, M)."""
    batch, queries, dim = query.shape
    q = module.q_linear(query).view(batch, queries, module.heads, dim // module.heads)
    k = module.k_linear(memory).view(batch, -1, module.heads, dim // module.heads)
    weights = torch.einsum("bqnc,bmnc->bqnm", q * (dim / module.heads) ** -0.5, k)
    weights = weights.masked_fill(padding[:, None, None], float("-inf"))
    return weights.flatten(2).softmax(-1).view_as(weights)


def mask_head(
    module: MaskHead, projected: Tensor, attention: Tensor, pyramid: list[Tensor]
) -> Tensor:
    """projected (B, d, h, w), attention (B, Q, heads, h, w) -> (B, Q, H, W): all queries."""
    batch, queries = attention.shape[:2]

    def copies(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, queries, -1, -1, -1).flatten(0, 1)

    def layer(x: Tensor, number: int) -> Tensor:
        x = module.get_submodule(f"lay{number}")(x)
        return F.relu(module.get_submodule(f"gn{number}")(x))

    x = torch.cat([copies(projected), attention.flatten(0, 1)], 1)
    x = layer(layer(x, 1), 2)
    for number, features in enumerate(pyramid, start=1):
        fine = copies(module.get_submodule(f"adapter{number}")(features))
        x = layer(fine + F.interpolate(x, size=fine.shape[-2:], mode="nearest"), number + 2)
    return module.out_lay(x)[:, 0].unflatten(0, (batch, queries))
