"""The merge against upstream's rules written out plainly, and the selection of queries.

The oracle works at full resolution with torch's interpolation and PIL's resize of a colour-coded
map, query by query, with none of the shortcuts of `detr.postprocess`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from detr.categories import COCO_PANOPTIC
from detr.inference.postprocess import choose, merge
from detr.panoptic import Panoptic

PERSON, CAR, GRASS, SKY = 1, 3, 193, 187


@dataclass
class Plain:
    """What upstream would report: its id map (from 0) and (category, area) per segment."""

    ids: NDArray[np.int32]
    segments: list[tuple[int, int]]


def plain_merge(
    mask_logits: Tensor,
    classes: list[int],
    processed: tuple[int, int],
    original: tuple[int, int],
) -> Plain:
    masks = interpolate(mask_logits[:, None], processed, mode="bilinear", align_corners=False)
    masks = masks[:, 0]
    stuff: dict[int, list[int]] = {}
    for k, category in enumerate(classes):
        if not COCO_PANOPTIC.by_id(category).isthing:
            stuff.setdefault(category, []).append(k)

    def final_map(masks: Tensor, merged: bool) -> tuple[NDArray[np.int32], list[int]]:
        if len(masks) == 0:
            return np.zeros(original, np.int32), []
        owner = masks.flatten(1).T.softmax(-1).argmax(-1).reshape(processed).numpy()
        if merged:
            for equal in stuff.values():
                for k in equal:
                    owner[owner == k] = equal[0]
        rgb = np.zeros((*processed, 3), np.uint8)
        for byte in range(3):
            rgb[..., byte] = owner // 256**byte % 256
        height, width = original
        small = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST))
        ids = small.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        return ids, [int((ids == k).sum()) for k in range(len(masks))]

    ids, areas = final_map(masks, merged=True)
    classes = list(classes)
    while any(area <= 4 for area in areas):
        keep = [area > 4 for area in areas]
        classes = [c for c, stays in zip(classes, keep, strict=True) if stays]
        masks = masks[torch.tensor(keep)]
        ids, areas = final_map(masks, merged=False)
    return Plain(ids, list(zip(classes, areas, strict=True)))


def check(
    mask_logits: Tensor, classes: list[int], processed: tuple[int, int], original: tuple[int, int]
) -> Panoptic:
    expected = plain_merge(mask_logits, classes, processed, original)
    scores = [0.9 + index / 1000 for index in range(len(classes))]
    got = merge(
        mask_logits,
        classes,
        scores,
        categories=COCO_PANOPTIC,
        processed_size=processed,
        original_size=original,
    )
    assert got.segment_map.shape == original
    if expected.segments:
        np.testing.assert_array_equal(got.segment_map, expected.ids + 1)
    else:
        assert not got.segment_map.any()
    areas = [int((got.segment_map == segment.id).sum()) for segment in got.segments]
    categories = [segment.category_id for segment in got.segments]
    assert list(zip(categories, areas, strict=True)) == expected.segments
    assert [segment.id for segment in got.segments] == list(range(1, len(areas) + 1))
    return got


def blobs(seed: int, count: int, height: int, width: int) -> Tensor:
    """Smooth random mask logits, so that segments are areas rather than dust."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, height // 4 + 2, width // 4 + 2, generator=generator) * 6
    return interpolate(coarse, (height, width), mode="bicubic")[0]


@pytest.mark.parametrize("seed", range(40))
def test_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(3, 40, 2))
    processed = (height * 4 - int(rng.integers(0, 4)), width * 4 - int(rng.integers(0, 4)))
    original = tuple(int(n) for n in rng.integers(1, 130, 2))
    count = int(rng.integers(1, 25))
    classes = [int(c) for c in rng.choice([PERSON, CAR, GRASS, SKY, 200, 44], count)]
    check(blobs(seed, count, height, width), classes, processed, (original[0], original[1]))


@pytest.mark.parametrize("original", [(480, 640), (427, 640), (1365, 2048), (97, 130)])
def test_at_the_published_geometry(original: tuple[int, int]) -> None:
    processed = (800, 1066)
    classes = [PERSON, PERSON, GRASS, SKY, CAR, GRASS, 200, 44, SKY]
    check(blobs(3, len(classes), 200, 267), classes, processed, original)


def test_dust_is_dropped_again_and_again() -> None:
    """Noise of the map's own size: many areas of a few pixels, several rounds."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(60, 12, 15, generator=generator) * 4
    classes = [PERSON if k % 3 else (GRASS if k % 2 else SKY) for k in range(60)]
    got = check(noise, classes, (48, 60), (14, 16))
    assert 0 < len(got.segments) < 30


def squares(*areas: tuple[slice, slice], size: int = 12) -> Tensor:
    """One query per square: logit 5 inside, -5 outside; processed and original size are equal."""
    masks = torch.full((len(areas), size, size), -5.0)
    for mask, (rows, columns) in zip(masks, areas, strict=True):
        mask[rows, columns] = 5.0
    return masks


WHOLE = slice(0, 12)


def test_duplicate_stuff_is_one_segment_that_loses_its_duplicates_pixels() -> None:
    """The quirk by hand: the second grass is dropped, its right half goes to the runner-up."""
    masks = squares((WHOLE, slice(0, 4)), (WHOLE, slice(4, 8)), (WHOLE, slice(8, 12)))
    masks[2] += 1.0  # the sky is second best in the middle
    got = check(masks, [GRASS, GRASS, SKY], (12, 12), (12, 12))
    assert [segment.category_id for segment in got.segments] == [GRASS, SKY]
    assert (got.segment_map[:, :4] == 1).all()
    assert (got.segment_map[:, 4:] == 2).all()


def test_duplicate_things_stay_apart() -> None:
    masks = squares((WHOLE, slice(0, 6)), (WHOLE, slice(6, 12)))
    got = check(masks, [PERSON, PERSON], (12, 12), (12, 12))
    assert len(got.segments) == 2


def test_four_pixels_are_dropped_and_five_stay() -> None:
    sky = (WHOLE, WHOLE)
    four = squares((slice(0, 2), slice(0, 2)), sky)
    five = squares((slice(0, 1), slice(0, 5)), sky)
    for masks in (four, five):
        masks[1] -= 1.0
    assert len(check(four, [PERSON, SKY], (12, 12), (12, 12)).segments) == 1
    assert len(check(five, [PERSON, SKY], (12, 12), (12, 12)).segments) == 2


def test_first_of_merged_stuff_may_be_dropped_in_the_second_round() -> None:
    """Merged it has 4 + 48 pixels, alone 4: upstream drops it then."""
    masks = squares((slice(0, 2), slice(0, 2)), (WHOLE, slice(2, 6)), (WHOLE, WHOLE))
    masks[2] -= 1.0
    got = check(masks, [GRASS, GRASS, SKY], (12, 12), (12, 12))
    assert [segment.category_id for segment in got.segments] == [SKY]


def test_ties_go_to_the_first_query() -> None:
    got = check(torch.zeros(3, 6, 6), [CAR, PERSON, SKY], (24, 24), (20, 20))
    assert [segment.category_id for segment in got.segments] == [CAR]


def test_nothing_kept_is_void_everywhere() -> None:
    got = check(torch.zeros(0, 6, 6), [], (24, 24), (20, 31))
    assert got.segments == ()


def test_an_image_too_small_for_any_segment_is_void() -> None:
    got = check(torch.zeros(1, 200, 200), [SKY], (800, 800), (1, 1))
    assert got.segments == ()
    assert not got.segment_map.any()


def test_scores_follow_their_queries() -> None:
    masks = squares((slice(0, 1), slice(0, 1)), (WHOLE, WHOLE))
    masks[1] -= 1.0
    got = check(masks, [PERSON, SKY], (12, 12), (12, 12))
    assert got.segments[0].score == pytest.approx(0.901)
    assert not got.segments[0].isthing


def test_the_map_is_compact_and_in_run_length_order() -> None:
    got = check(blobs(0, 5, 20, 30), [PERSON, CAR, SKY, GRASS, 200], (80, 120), (60, 90))
    assert got.segment_map.dtype == np.uint8
    assert got.segment_map.flags.f_contiguous


def test_more_than_255_queries_need_a_wider_map() -> None:
    masks = torch.full((300, 20, 20), -5.0)
    flat = masks.view(300, -1)
    flat[torch.arange(400) % 300, torch.arange(400)] = 5.0
    got = check(masks, [PERSON] * 300, (80, 80), (80, 80))
    assert len(got.segments) == 300
    assert got.segment_map.dtype == np.int32


def test_bf16_masks_are_interpolated_in_fp32() -> None:
    masks = blobs(5, 6, 20, 30).bfloat16()
    got = merge(
        masks,
        [PERSON, CAR, SKY, GRASS, 200, 44],
        [0.9] * 6,
        categories=COCO_PANOPTIC,
        processed_size=(80, 120),
        original_size=(60, 90),
    )
    expected = plain_merge(masks.float(), [PERSON, CAR, SKY, GRASS, 200, 44], (80, 120), (60, 90))
    np.testing.assert_array_equal(got.segment_map, expected.ids + 1)


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_a_kept_query_has_a_class_above_the_threshold() -> None:
    logits = logits_of(
        [
            [0.9, 0.05, 0.05],  # kept
            [0.05, 0.05, 0.9],  # no object
            [0.6, 0.3, 0.1],  # unsure
            [0.02, 0.95, 0.03],  # kept
        ]
    )
    scores, labels, keep = choose(logits[None], 0.85)
    assert keep.tolist() == [[True, False, False, True]]
    assert labels[keep].tolist() == [0, 1]
    assert scores[keep].tolist() == pytest.approx([0.9, 0.95])


def test_the_threshold_itself_is_not_enough() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    _, _, keep = choose(logits[None], 0.5)
    assert keep.tolist() == [[False, True]]


def test_classes_without_a_category_are_dropped() -> None:
    logits = logits_of([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    _, _, keep = choose(logits[None], 0.85, is_category=torch.tensor([False, True]))
    assert keep.tolist() == [[False, True]]


def test_a_batch_keeps_the_queries_that_its_images_keep() -> None:
    logits = torch.randn(5, 20, 7, generator=torch.Generator().manual_seed(0)) * 4
    logits[2, :, -1] = 100.0  # an image without anything
    batch = choose(logits, 0.85)
    for index in range(5):
        alone = choose(logits[index : index + 1], 0.85)
        assert all(torch.equal(a[index], b[0]) for a, b in zip(batch, alone, strict=True))
    assert batch[2].any()
    assert not batch[2][2].any()
