"""The merge of a batch in one pass: the maps of the merge image by image, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from detr.categories import Categories
from detr.inference import rounds
from detr.inference.postprocess import heirs_of, merge
from detr.inference.rounds import finish_rounds, merge_in_rounds
from detr.panoptic import Panoptic
from tests.detr.launches import Launches

CATEGORIES = Categories.from_json(
    [{"id": i, "name": str(i), "isthing": int(i > 3)} for i in range(1, 8)]
)
CELLS, PROCESSED = (13, 17), (50, 66)
Masks = list[tuple[Tensor, list[int]]]  # of each image: (K, h, w) logits, category ids


def made_masks(seed: int, counts: Sequence[int], *, steps: int = 1000) -> Masks:
    """Noise with a trend for each query; few `steps` of logits make ties."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for count in counts:
        logits = torch.randn(count, *CELLS, generator=generator)
        logits += 2 * torch.randn(count, 1, 1, generator=generator)
        ids = torch.randint(1, 8, (count,), generator=generator).tolist()
        images.append(((logits * steps).round() / steps, ids))
    return images


def merged_batch(
    images: Masks, map_sizes: Sequence[tuple[int, int]]
) -> tuple[list[Panoptic | None], int]:
    """The answers, None where another round is needed, and how many kernels were launched."""
    most = max(len(ids) for _, ids in images)
    slots: list[int] = []
    heirs = list(range(len(images) * most))
    for image, (_, ids) in enumerate(images):
        own = heirs_of(ids, [CATEGORIES.by_id(i).isthing for i in ids])
        slots += [image * most + query for query in range(len(ids))]
        heirs[image * most : image * most + len(ids)] = [image * most + heir for heir in own]
    logits = torch.cat([masks for masks, _ in images])
    sizes = [(PROCESSED, size) for size in map_sizes]
    with Launches("cpu") as launches:
        made = merge_in_rounds(logits, torch.tensor(slots), torch.tensor(heirs), sizes=sizes)
    answers: list[Panoptic | None] = []
    start = 0
    for image, ((_, ids), size) in enumerate(zip(images, map_sizes, strict=True)):
        end = start + size[0] * size[1]
        answers.append(
            finish_rounds(
                made.numbers[start:end],
                made.alive[image].tolist(),
                made.areas[image].tolist(),
                map_size=size,
                category_ids=ids,
                isthing=[CATEGORIES.by_id(i).isthing for i in ids],
                scores=[0.9] * len(ids),
            )
        )
        start = end
    return answers, launches.count


def merged_alone(images: Masks, map_sizes: Sequence[tuple[int, int]]) -> list[Panoptic]:
    return [
        merge(
            masks,
            ids,
            [0.9] * len(ids),
            categories=CATEGORIES,
            processed_size=PROCESSED,
            original_size=size,
        )
        for (masks, ids), size in zip(images, map_sizes, strict=True)
    ]


def assert_same(found: Sequence[Panoptic | None], wanted: Sequence[Panoptic]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert one.segment_map.dtype == other.segment_map.dtype
        np.testing.assert_array_equal(one.segment_map, other.segment_map)
        assert one.segments == other.segments


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("steps", [1000, 1], ids=["noise", "ties"])
def test_a_batch_of_any_sizes_and_counts_is_its_images(seed: int, steps: int) -> None:
    """Nothing kept, one query, many; small maps and large; with dust and with merged stuff."""
    rng = np.random.default_rng(seed)
    counts = [0, 1, *rng.integers(2, 20, 3).tolist()]
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 90, (5, 2))]
    images = made_masks(seed, counts, steps=steps)
    found, _ = merged_batch(images, sizes)
    wanted = merged_alone(images, sizes)
    settled = [index for index, answer in enumerate(found) if answer is not None]
    assert len(settled) >= 2  # the others' dust outlived the rounds: the host drives
    assert_same([found[index] for index in settled], [wanted[index] for index in settled])


def test_strips_give_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    images, sizes = made_masks(3, [5, 0, 9]), [(60, 80), (20, 30), (77, 41)]
    monkeypatch.setattr(rounds, "_CHUNK_BYTES", 4 * 9 * 1000)  # 1000 pixels at a time
    assert_same(merged_batch(images, sizes)[0], merged_alone(images, sizes))


def test_more_than_255_queries_are_numbered_in_int32() -> None:
    images, sizes = made_masks(1, [300, 4]), [(90, 90), (33, 35)]
    found, _ = merged_batch(images, sizes)
    assert_same([found[1]], merged_alone(images[1:], sizes[1:]))
    assert found[0] is None or found[0].segment_map.dtype == np.int32


def test_an_heir_that_is_small_without_what_it_inherited_is_left_to_the_host() -> None:
    """Two of one stuff: the first owns 3 pixels and gets the second's in the first map alone."""
    logits = torch.zeros(3, *CELLS)
    logits[0] = -9.0
    logits[0, 6, 8] = 9.0
    logits[1] = 2.0
    logits[2] = 1.0
    logits[2, :, :4] = 3.0
    images: Masks = [(logits, [1, 1, 5])]
    found, _ = merged_batch(images, [CELLS])
    assert found == [None]
    [wanted] = merged_alone(images, [CELLS])
    assert [segment.category_id for segment in wanted.segments] == [5]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_the_number_of_kernels_does_not_grow_with_the_batch(batch: int) -> None:
    sizes = [(40 + number % 3, 60 - number) for number in range(batch)]
    images = made_masks(0, [7] * batch)
    merged_batch(images, sizes)  # the host has seen these sizes: nothing is left to prepare
    assert merged_batch(images, sizes)[1] <= 60
