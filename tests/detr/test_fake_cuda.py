"""R50's whole path on a CUDA device that holds no values: what it launches, and what it moves.

FakeTensorMode runs every operator for its shape, type and device alone. A tensor left on the CPU, a
type that an operator can't take, or a value that is asked for fails here, without a GPU; and the
calls are counted. The budgets are for a batch of 32 photos of 640 x 480 in bfloat16 with 15 queries
each: a change that launches or moves more fails, and one that does with less lowers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from detr.config import RECIPES, DetrConfig
from detr.inference import postprocess, preprocess, rounds
from detr.inference.postprocess import choose
from detr.inference.preprocess import normalize, processed_size, resize, resize_mixed
from detr.inference.rounds import merge_in_rounds
from detr.models import position_encoding
from detr.models.detr import DetrPanoptic
from tests.detr.launches import Launches

CUDA = torch.device("cuda")
CACHES = (
    *(preprocess._filter, preprocess._imagenet, postprocess._taps, rounds._grid),
    position_encoding.whole_position,
)
DEMO = DetrConfig(
    depths=(1, 2, 2, 2),
    block="basic",
    widths=(16, 48, 96, 160),
    hidden_dim=128,
    enc_layers=2,
    dec_layers=3,
    dim_feedforward=512,
    num_queries=32,
    num_classes=9,
    mask_groups=4,
    dilation=True,
    size=192,
    max_size=384,
)
MODELS = {name: RECIPES[name].config for name in ("r50", "r50-dc5", "r101")} | {"demo": DEMO}


@dataclass(frozen=True)
class Part:
    launches: int
    gigabytes: float  # of an image


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Every cache that is filled by size and device is emptied: its tensors belong to one mode."""
    plain = torch.Tensor.pin_memory

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):  # of one element torch keeps the value, and would copy
            tensor.constant = None  # it to a GPU that isn't there
        return tensor

    torch.Tensor.pin_memory = pinned  # type: ignore[method-assign,assignment]
    for cache in CACHES:
        cache.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            yield
    finally:
        torch.Tensor.pin_memory = plain  # type: ignore[method-assign]
        for cache in CACHES:
            cache.cache_clear()


@lru_cache(maxsize=2)  # each mode gets fake weights of its own by `put_on_cuda`
def folded(config: DetrConfig, dtype: torch.dtype) -> DetrPanoptic:
    """Made for inference, without a weight."""
    with torch.device("meta"):
        return DetrPanoptic(config).fold(dtype)


def put_on_cuda(model: DetrPanoptic) -> None:
    """Under a fake mode: fake weights there."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False)]:
            fake = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA
            )
            module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, tensor in [*module.named_buffers(recurse=False)]:
            module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


def run(
    config: DetrConfig,
    dtype: torch.dtype,
    batch: int,
    kept: int,
    photo: tuple[int, int] = (480, 640),
    *,
    again: bool = False,
) -> dict[str, Part]:
    """From decoded photos on the device to the batch's maps, part by part.

    `again`: a second time, when the host has prepared what depends on the sizes alone.
    """
    parts: dict[str, Part] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        with Launches() as launches:
            yield
        parts[name] = Part(launches.count, launches.bytes / batch / 1e9)

    size = processed_size(*photo, size=config.size, max_size=config.max_size)
    model = folded(config, dtype)

    def once() -> None:
        known = torch.ones(config.num_classes, dtype=torch.bool, device=CUDA)
        photos = torch.empty(batch, *photo, 3, dtype=torch.uint8, device=CUDA)
        with part("input"):
            pixels = normalize(resize(photos, size)).to(dtype)
        with part("detect"):
            found = model.detect(pixels)
        with part("choose"):
            choice: tuple[Any, ...] = choose(found.logits[-1], 0.85, is_category=known)
        image = torch.arange(batch, device=CUDA)
        image = image.repeat_interleave(kept, output_size=batch * kept)
        query = torch.zeros(batch * kept, dtype=torch.int64, device=CUDA)
        with part("masks"):
            masks = model.mask_logits(found, image, query)
        assert pixels.shape == (batch, 3, *size)
        assert pixels.dtype == dtype
        assert all(tensor.device.type == "cuda" for tensor in (pixels, masks, *choice))
        assert choice[0].dtype == torch.float32
        assert masks.shape[0] == batch * kept
        if kept:
            slots = torch.arange(batch * kept, device=CUDA)
            with part("merge"):
                merged = merge_in_rounds(masks, slots, slots, sizes=[(size, photo)] * batch)
            assert merged.numbers.shape == (batch * photo[0] * photo[1],)
            assert merged.numbers.device.type == "cuda"

    with fake_cuda():
        put_on_cuda(model)
        for _ in range(1 + again):
            once()
    return parts


# What a batch of 32 may cost: (launches, GB an image).
BUDGETS = {
    "input": (27, 0.29),
    "detect": (294, 2.22),
    "choose": (9, 0.001),
    "masks": (59, 1.0),
    "merge": (45, 0.42),
}
ALL = (434, 3.92)


def test_a_batch_of_32_stays_within_its_budgets() -> None:
    parts = run(MODELS["r50"], torch.bfloat16, 32, 15, again=True)
    told = {name: (part.launches, round(part.gigabytes, 3)) for name, part in parts.items()}
    over = {
        name: told[name]
        for name, (launches, gigabytes) in BUDGETS.items()
        if parts[name].launches > launches or parts[name].gigabytes > gigabytes
    }
    assert not over, told
    assert sum(part.launches for part in parts.values()) <= ALL[0], told
    assert sum(part.gigabytes for part in parts.values()) <= ALL[1], told


def test_launches_do_not_grow_with_the_batch() -> None:
    one, many = (run(MODELS["demo"], torch.bfloat16, batch, 7, again=True) for batch in (3, 32))
    assert {n: p.launches for n, p in one.items()} == {n: p.launches for n, p in many.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_type_runs_on_the_device(dtype: torch.dtype) -> None:
    run(DEMO, dtype, 3, 2)


def test_a_dilated_backbone_runs_on_the_device() -> None:
    run(MODELS["r50-dc5"], torch.bfloat16, 2, 2)


@pytest.mark.parametrize(
    ("photo", "kept"),
    [((333, 500), 0), ((1, 40), 0), ((1, 40), 2), ((1, 1), 2), ((1300, 700), 3), ((97, 61), 3)],
    ids=str,
)
def test_odd_sizes_and_nothing_kept(photo: tuple[int, int], kept: int) -> None:
    run(DEMO, torch.bfloat16, 1, kept, photo)


def resize_and_merge(batch: int) -> int:
    """The launches for photos of as many sizes."""
    sizes = [(300 - 7 * number, 400 + number) for number in range(batch)]
    photos = [torch.empty(*size, 3, dtype=torch.uint8, device=CUDA) for size in sizes]
    masks = torch.empty(batch * 2, 24, 32, device=CUDA)
    slots = torch.arange(batch * 2, device=CUDA)
    with Launches() as launches:
        pixels = resize_mixed(photos, (96, 128))
        merged = merge_in_rounds(masks, slots, slots, sizes=[((96, 128), size) for size in sizes])
    assert (pixels.shape, pixels.dtype) == ((batch, 96, 128, 3), torch.uint8)
    assert pixels.device.type == merged.numbers.device.type == "cuda"
    return launches.count


def test_photos_of_many_sizes_are_resized_and_merged_with_as_many_launches_as_two() -> None:
    with fake_cuda():
        counts = [[resize_and_merge(batch) for _ in range(2)] for batch in (2, 6)]
    assert counts[0][1] == counts[1][1]  # the host has prepared what depends on the sizes alone


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_type_and_batch(name: str, dtype: torch.dtype, batch: int) -> None:
    run(MODELS[name], dtype, batch, 15)
    if batch == 1:  # what is kept changes no shape before the masks
        run(MODELS[name], dtype, batch, 2, (333, 500))
    if batch == 3:
        run(MODELS[name], dtype, batch, 0, (333, 500))
