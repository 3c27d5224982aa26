"""Geometry, resize and normalisation against upstream's formula and PIL itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from detr.inference.decode import ImageError
from detr.inference.preprocess import (
    normalize,
    processed_size,
    resize,
    resize_mixed,
    resize_on_device,
)
from tests.detr.launches import Launches

SIDES = st.integers(1, 90)


def pixels(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noise with saturated parts, where rounding and clipping show."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(rng.random((height, width, 1)) < 0.3, (noise > 127) * np.uint8(255), noise)


def pil_horizontal_first(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture = picture.resize((width, picture.height), Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 9), SIDES, SIDES, SIDES, SIDES)
def test_resize_is_pil_to_the_bit(
    seed: int, height: int, width: int, new_height: int, new_width: int
) -> None:
    image = pixels(seed, height, width)
    expected = pil_horizontal_first(image, new_height, new_width)
    got = resize_on_device(torch.from_numpy(image)[None], (new_height, new_width))
    np.testing.assert_array_equal(got[0].numpy(), expected)


@pytest.mark.parametrize(
    ("height", "width"),
    [(480, 640), (427, 640), (640, 427), (333, 500), (1365, 2048), (801, 1203), (37, 1999)],
)
def test_resize_is_pil_at_the_sizes_of_photos(height: int, width: int) -> None:
    image = pixels(0, height, width)
    size = processed_size(height, width)
    expected = np.asarray(
        Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    )
    batch = torch.from_numpy(image)[None]
    np.testing.assert_array_equal(resize(batch, size)[0].numpy(), expected)
    np.testing.assert_array_equal(resize_on_device(batch, size)[0].numpy(), expected)


def test_resize_keeps_horizontal_first_where_pillow_13_swaps() -> None:
    image = pixels(0, 1414, 120)
    size = processed_size(1414, 120)
    expected = pil_horizontal_first(image, *size)
    batch = torch.from_numpy(image)[None]
    np.testing.assert_array_equal(resize(batch, size)[0].numpy(), expected)
    np.testing.assert_array_equal(resize_on_device(batch, size)[0].numpy(), expected)


def test_a_batch_is_resized_image_by_image() -> None:
    images = torch.from_numpy(np.stack([pixels(seed, 30, 41) for seed in range(3)]))
    for method in (resize, resize_on_device):
        together = method(images, (50, 20))
        for index in range(3):
            alone = method(images[index : index + 1], (50, 20))
            assert torch.equal(together[index : index + 1], alone)


@pytest.mark.parametrize("size", [(40, 52), (96, 31)])
def test_images_of_many_sizes_are_resized_as_each_alone(size: tuple[int, int]) -> None:
    """Larger and smaller ones, of one pixel, and of the wanted size already."""
    shapes = [(30, 41), (1, 1), size, (300, 17), (40, 200), (96, 52), (333, 500)]
    images = [torch.from_numpy(pixels(seed, *shape)) for seed, shape in enumerate(shapes)]
    together = resize_mixed(images, size)
    assert together.shape == (len(images), *size, 3)
    for image, found in zip(images, together, strict=True):
        assert torch.equal(found, resize(image[None], size)[0])


def test_a_batch_of_many_sizes_launches_no_more_kernels_the_larger_it_is() -> None:
    counts = []
    for batch in (2, 20):
        shapes = [(300 - number, 400 + number) for number in range(batch)]
        images = [torch.zeros(*shape, 3, dtype=torch.uint8) for shape in shapes]
        resize_mixed(images, (96, 128))  # the host has met these sizes
        with Launches("cpu") as launches:
            resize_mixed(images, (96, 128))
        counts.append(launches.count)
    assert counts[0] >= counts[1] - 20  # views of images, which a CPU counts
    assert counts[1] < 150


def upstream_size(height: int, width: int) -> tuple[int, int]:
    """The rule of the paper's code in its own words: 800 for the short side, 1333 at most."""
    size = 800
    low, high = float(min(width, height)), float(max(width, height))
    if high / low * size > 1333:
        size = int(round(1333 * low / high))  # noqa: RUF046
    if (width <= height and width == size) or (height <= width and height == size):
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_processed_size_is_upstream_s_rule(height: int, width: int) -> None:
    expected = upstream_size(height, width)
    if min(expected) < 1:
        with pytest.raises(ImageError) as caught:
            processed_size(height, width)
        assert caught.value.code == "too_thin"
    else:
        assert processed_size(height, width) == expected


def test_processed_sizes_by_hand() -> None:
    assert processed_size(480, 640) == (800, 1066)  # cut, not rounded: 1066.67
    assert processed_size(1, 1) == (800, 800)
    assert processed_size(640, 427) == (1199, 800)  # 1199.06
    assert processed_size(300, 1000) == (400, 1333)  # 399.9 rounded
    assert processed_size(128, 192, size=96, max_size=160) == (96, 144)


@given(st.integers(20, 3000), st.integers(20, 3000), st.sampled_from([8, 16, 32, 64]))
def test_a_quantum_gives_multiples_within_the_cap(height: int, width: int, quantum: int) -> None:
    exact = processed_size(height, width)
    for side, plain in zip(processed_size(height, width, quantum=quantum), exact, strict=True):
        assert side % quantum == 0
        assert quantum <= side <= 1333
        assert abs(side - min(plain, 1333)) <= quantum  # rounding can pass the cap: 1337


class NoScalarDivides(TorchDispatchMode):
    """Refuses to divide by a number that the host holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.startswith("div"):
            assert isinstance(args[1], torch.Tensor)
            assert args[1].dim()
        return func(*args, **(kwargs or {}))


def test_normalize_divides_by_no_number() -> None:
    """CUDA would multiply by its reciprocal, which is another value in the last place."""
    with NoScalarDivides():
        normalize(torch.zeros(1, 2, 3, 3, dtype=torch.uint8))


def test_normalize_is_imagenet_s() -> None:
    image = torch.from_numpy(pixels(1, 5, 7))[None]
    got = normalize(image)
    assert got.shape == (1, 3, 5, 7)
    assert got.is_contiguous(memory_format=torch.channels_last)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel in range(3):
        scaled = image[0, :, :, channel].to(torch.float32) / 255
        expected = (scaled - torch.tensor(mean[channel])) / torch.tensor(std[channel])
        assert torch.equal(got[0, channel], expected)
