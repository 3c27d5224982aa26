"""What an overlay promises to the eye, checked on pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detr.categories import COCO_PANOPTIC, Categories
from detr.panoptic import Panoptic, Segment
from pipeline.report.overlay import contours, draw_overlay, paint, segment_colors

PERSON, SKY = 1, 187


def two_halves(side: int = 640) -> Panoptic:
    """Void above, a person below left, sky below right."""
    segment_map = np.zeros((side, side), np.uint8)
    segment_map[side // 4 :, : side // 2] = 1
    segment_map[side // 4 :, side // 2 :] = 2
    segments = (Segment(1, PERSON, True, 0.99), Segment(2, SKY, False, 0.9))
    return Panoptic(segment_map, segments)


def flat(value: int, side: int = 640) -> NDArray[np.uint8]:
    return np.full((side, side, 3), value, np.uint8)


def test_colours_are_blended_by_opacity_and_void_is_the_photo() -> None:
    drawn = draw_overlay(flat(100), two_halves(), COCO_PANOPTIC, labels=False, opacity=0.5)
    picture = np.asarray(drawn)
    red, green, blue = COCO_PANOPTIC.by_id(PERSON).color
    expected = [round(0.5 * 100 + 0.5 * channel) for channel in (red, green, blue)]
    assert np.abs(picture[400, 100].astype(int) - expected).max() <= 1
    assert (picture[20, 20] == 100).all()
    faint = draw_overlay(flat(100), two_halves(), COCO_PANOPTIC, labels=False, opacity=0.0)
    assert faint.getpixel((100, 400)) == (100, 100, 100)


def test_contours_are_exactly_the_borders() -> None:
    segment_map = np.random.default_rng(0).integers(0, 2, (9, 11))
    edge = contours(segment_map)
    padded = np.pad(segment_map, 1, mode="edge")
    for row in range(9):
        for column in range(11):
            cross = [padded[row + 1 + dy, column + 1 + dx] for dy, dx in
                     ((0, 1), (1, 0), (0, -1), (-1, 0))]  # fmt: skip
            assert edge[row, column] == any(n != segment_map[row, column] for n in cross)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_labels_are_white_on_dark_on_any_photo(background: int) -> None:
    photo = flat(background)
    plain = np.asarray(draw_overlay(photo, two_halves(), COCO_PANOPTIC, labels=False))
    labelled = np.asarray(draw_overlay(photo, two_halves(), COCO_PANOPTIC))
    changed = (plain != labelled).any(-1)
    assert 1_000 < changed.sum() < 30_000
    touched = labelled[changed].astype(int).sum(-1)
    assert (touched == 3 * 255).sum() > 100  # strokes of letters
    plate = np.median(touched)
    assert plate < 3 * 100


def test_labels_do_not_cover_each_other() -> None:
    """Forty segments in thin stripes: no room for forty labels, so some are left out."""
    segment_map = np.repeat(np.arange(1, 41, dtype=np.uint8), 16)[:, None].repeat(640, axis=1)
    segments = tuple(Segment(i, PERSON, True, 0.9) for i in range(1, 41))
    panoptic = Panoptic(segment_map, segments)
    plain = np.asarray(draw_overlay(flat(90), panoptic, COCO_PANOPTIC, labels=False))
    labelled = np.asarray(draw_overlay(flat(90), panoptic, COCO_PANOPTIC))
    one = Panoptic((segment_map == 20).astype(np.uint8), (Segment(1, PERSON, True, 0.9),))
    alone = np.asarray(draw_overlay(flat(90), one, COCO_PANOPTIC))
    nothing = np.asarray(draw_overlay(flat(90), one, COCO_PANOPTIC, labels=False))
    area_of_one = (alone != nothing).any(-1).sum()
    covered = (plain != labelled).any(-1).sum()
    assert 4 * area_of_one < covered < 40 * area_of_one


def test_things_of_a_category_are_told_apart() -> None:
    segments = [Segment(i, PERSON, True, 0.9) for i in range(1, 11)]
    colors = segment_colors(segments, COCO_PANOPTIC)
    assert (colors[0] == 0).all()
    assert len({tuple(color) for color in colors.tolist()}) == 11
    neighbours = np.abs(np.diff(colors[1:].astype(int), axis=0)).sum(-1)
    assert neighbours.min() > 30


def test_small_pictures_are_enlarged_so_that_text_fits() -> None:
    picture = draw_overlay(flat(100, 128), two_halves(128), COCO_PANOPTIC)
    assert picture.size == (640, 640)
    assert paint(two_halves(128), COCO_PANOPTIC).size == (128, 128)


def test_names_in_other_scripts_and_empty_maps_are_drawn() -> None:
    own = Categories.from_json([{"id": 1, "name": "猫"}, {"id": 187, "name": "água"}])
    draw_overlay(flat(100), two_halves(), own)
    empty = Panoptic(np.zeros((640, 640), np.uint8), ())
    assert (np.asarray(draw_overlay(flat(100), empty, COCO_PANOPTIC)) == 100).all()


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="height, width"):
        draw_overlay(flat(100, 64), two_halves(), COCO_PANOPTIC)
