"""Sine positions against the formula, cell by cell."""

import math

import pytest
import torch

from detr.models.position_encoding import sine_position, whole_position


def expected(rank: int, last: int, index: int, half: int) -> float:
    """Channel `index` of one axis; `rank` counts unpadded cells from 1 up to `last`."""
    angle = rank / (last + 1e-6) * 2 * math.pi / 10_000 ** (2 * (index // 2) / half)
    return math.sin(angle) if index % 2 == 0 else math.cos(angle)


def test_every_channel_is_the_formula_and_y_comes_first():
    encoded = sine_position(torch.zeros(1, 3, 5, dtype=torch.bool), channels=8)
    assert encoded.shape == (1, 8, 3, 5)
    for row in range(3):
        for column in range(5):
            for index in range(4):
                y, x = expected(row + 1, 3, index, 4), expected(column + 1, 5, index, 4)
                assert encoded[0, index, row, column].item() == pytest.approx(y, abs=1e-6)
                assert encoded[0, 4 + index, row, column].item() == pytest.approx(x, abs=1e-6)


def test_an_image_keeps_its_positions_when_padded():
    padding = torch.ones(1, 6, 9, dtype=torch.bool)
    padding[:, :4, :7] = False
    alone = sine_position(torch.zeros(1, 4, 7, dtype=torch.bool), 16)
    assert torch.equal(sine_position(padding, 16)[:, :, :4, :7], alone)


def test_whole_position_is_the_unpadded_one_as_tokens():
    whole = whole_position(4, 7, 16, torch.device("cpu"), torch.float32)
    plain = sine_position(torch.zeros(1, 4, 7, dtype=torch.bool), 16)
    assert torch.equal(whole, plain.flatten(2).transpose(1, 2))


def test_the_cache_is_bounded():
    for height in range(1, 400):
        whole_position(height, 1, 16, torch.device("cpu"), torch.float32)
    assert whole_position.cache_info().currsize <= 256
