"""The encoder and decoder of DETR, post-norm, as published (Carion et al. 2020, appendix A.3).

Positions are added to queries and keys, not to values, in every layer. The decoder starts from
zeros, and its positions are the learned query embeddings. Tensors are batch first. No attention
weights are returned, so that `scaled_dot_product_attention` need not build (heads, N, N) maps.
Parameters have the names of `nn.MultiheadAttention`, as in published files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.config import DetrConfig
from detr.models.fused_ops import apply_linear


class Attention(nn.Module):
    """Multi-head attention with the query, key and value projections in one matrix."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        """query (B, N, d), key and value (B, M, d), padding (B, M) bool or None -> (B, N, d)."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in self._project(query, key, value, joined=query is key and query.is_cuda)
        )  # (B, heads, N or M, d / heads)
        mask = None if padding is None else ~padding[:, None, None, :]  # True: may be attended to
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, *, joined: bool
    ) -> tuple[Tensor, ...]:
        """The three inputs, each multiplied by its third of the matrix.

        `joined`: query and key are one tensor, and one product computes both. Only on GPUs, because
        a CPU's BLAS might round the joined product differently.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        if joined:
            both = 2 * query.shape[-1]
            pair = F.linear(query, self.in_proj_weight[:both], self.in_proj_bias[:both])
            return (*pair.chunk(2, dim=-1), F.linear(value, weights[2], biases[2]))
        return tuple(
            F.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )


class Dropout(nn.Dropout):
    """nn.Dropout without the call's cost on the host outside training."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class Layer(nn.Module):
    """The common part of encoder and decoder layers: self-attention and the feedforward network."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = Attention(dim, config.nheads, config.dropout)
        self.linear1 = nn.Linear(dim, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def feedforward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), with the residual connection, before the norm."""
        hidden = self.dropout(apply_linear(x, self.linear1, relu=True))
        return x + self.dropout(apply_linear(hidden, self.linear2))


class EncoderLayer(Layer):
    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """x (B, M, d), position (B or 1, M, d), padding (B, M) -> (B, M, d)."""
        query = x + position
        x = self.norm1(x + self.dropout(self.self_attn(query, query, x, padding)))
        return self.norm2(self.feedforward(x))


class DecoderLayer(Layer):
    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.multihead_attn = Attention(config.hidden_dim, config.nheads, config.dropout)
        self.norm3 = nn.LayerNorm(config.hidden_dim)

    def forward(
        self, x: Tensor, query: Tensor, memory: Tensor, keys: Tensor, padding: Tensor | None
    ) -> Tensor:
        """x (B, Q, d), query (Q, d), memory (B, M, d), keys (B, M, d), padding (B, M) -> (B, Q, d).

        query: the learned embeddings; keys: memory plus position; padding: True for the cells of
        the memory that the cross-attention must not see, or None.
        """
        positioned = x + query
        x = self.norm1(x + self.dropout(self.self_attn(positioned, positioned, x, None)))
        attended = self.multihead_attn(x + query, keys, memory, padding)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(self.feedforward(x))


class Encoder(nn.Module):
    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.enc_layers))

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, position, padding)
        return x


class Decoder(nn.Module):
    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.dec_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
        *,
        every_layer: bool,
    ) -> Tensor:
        """(layers or 1, B, Q, d): the normalised output of every layer (training), or the last.

        query (Q, d), memory (B, M, d), position (B or 1, M, d), padding (B, M) bool or None.
        """
        keys = memory + position
        x = torch.zeros_like(query).expand(len(memory), -1, -1)
        outputs = []
        for layer in self.layers:
            x = layer(x, query, memory, keys, padding)
            if every_layer:
                outputs.append(self.norm(x))
        return torch.stack(outputs) if every_layer else self.norm(x)[None]


class Transformer(nn.Module):
    """Image features and learned queries -> query embeddings, and the encoded image."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        tokens: Tensor,
        padding: Tensor | None,
        query: Tensor,
        position: Tensor,
        *,
        every_layer: bool,
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, M, d), padding (B, M) bool or None, query (Q, d), position (B or 1, M, d).

        padding is True on padded cells. Returns the decoder's output (L, B, Q, d) and the memory,
        the encoded image (B, M, d). L is the number of decoder layers if `every_layer`; else 1, the
        last layer.
        """
        memory = self.encoder(tokens, position, padding)
        embeddings = self.decoder(query, memory, position, padding, every_layer=every_layer)
        return embeddings, memory
