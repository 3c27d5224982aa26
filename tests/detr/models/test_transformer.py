"""Attention against torch's own; the last layer alone against all layers."""

import torch
import torch.nn.functional as F
from torch import nn

from detr.config import DetrConfig
from detr.models.transformer import Attention, Transformer

CONFIG = DetrConfig(hidden_dim=32, nheads=4, mask_groups=2, enc_layers=2, dec_layers=3)


@torch.no_grad()
def test_attention_is_torchs_multihead_attention():
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    nn.init.normal_(reference.in_proj_bias)
    ours = Attention(32, 4, dropout=0.0).eval()
    ours.load_state_dict(reference.state_dict())  # the same names, too
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    expected = reference(query, key, value, key_padding_mask=padding)[0]
    assert torch.allclose(ours(query, key, value, padding), expected, atol=1e-6)


@torch.no_grad()
def test_the_last_layer_alone_is_the_last_of_all():
    torch.manual_seed(0)
    transformer = Transformer(CONFIG).eval()
    arguments = (torch.randn(2, 12, 32), None, torch.randn(6, 32), torch.randn(1, 12, 32))
    every, memory = transformer(*arguments, every_layer=True)
    last, same_memory = transformer(*arguments, every_layer=False)
    assert every.shape == (3, 2, 6, 32)
    assert last.shape == (1, 2, 6, 32)
    assert torch.equal(every[-1], last[0])
    assert torch.equal(memory, same_memory)


@torch.no_grad()
def test_padding_cells_change_nothing():
    torch.manual_seed(0)
    transformer = Transformer(CONFIG).eval()
    tokens, query, position = torch.randn(1, 12, 32), torch.randn(6, 32), torch.randn(1, 12, 32)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[0, 8:] = True
    alone, _ = transformer(tokens[:, :8], None, query, position[:, :8], every_layer=False)
    padded, _ = transformer(tokens, padding, query, position, every_layer=False)
    assert torch.allclose(alone, padded, atol=1e-5)


@torch.no_grad()
def test_queries_and_keys_in_one_product_are_the_same():
    """As a GPU computes them where they are one tensor."""
    torch.manual_seed(0)
    ours = Attention(32, 4, dropout=0.0).eval()
    nn.init.normal_(ours.in_proj_weight)
    nn.init.normal_(ours.in_proj_bias)
    both, value = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    plain, joined = (ours._project(both, both, value, joined=joined) for joined in (False, True))
    for one, other in zip(plain, joined, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_dropout_is_called_in_training_alone(monkeypatch):
    """On a GPU each call costs the host as much as a kernel."""
    calls = []
    plain = F.dropout
    monkeypatch.setattr(F, "dropout", lambda *a, **k: calls.append(1) or plain(*a, **k))
    transformer = Transformer(CONFIG).eval()
    arguments = (torch.randn(2, 12, 32), None, torch.randn(6, 32), torch.randn(1, 12, 32))
    transformer(*arguments, every_layer=False)
    assert not calls
    transformer.train()(*arguments, every_layer=False)
    assert len(calls) == 3 * CONFIG.enc_layers + 4 * CONFIG.dec_layers
