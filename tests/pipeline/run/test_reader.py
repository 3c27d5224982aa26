"""Images and tables of a run as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import pipeline
from detr.panoptic import Panoptic
from pipeline.errors import UserError
from tests.factories import MadeImage, named_images, publish_run


def test_an_image_is_read_back_with_its_masks(tmp_path: Path) -> None:
    [made] = named_images(["a/b.jpg"])
    publish_run(tmp_path, [made])
    assert isinstance(made.result, Panoptic)
    image = pipeline.open_run(str(tmp_path))["a/b.jpg"]
    assert image.ok
    np.testing.assert_array_equal(image.map, made.result.segment_map)
    assert [segment.category.name for segment in image.segments] == ["person", "sky-other-merged"]
    for segment, pixels in zip(image.segments, image.masks, strict=True):
        counts = image.row["counts"][segment.id - 1]
        oracle = coco_mask.decode({"size": list(image.size), "counts": counts}).astype(bool)
        np.testing.assert_array_equal(pixels, oracle)
        np.testing.assert_array_equal(image.mask(segment.id), oracle)
        assert segment.area == oracle.sum()
        ys, xs = np.nonzero(oracle)
        assert segment.bbox[:2] == (xs.min(), ys.min())
    with pytest.raises(KeyError):
        image.mask(3)


def test_a_failed_image_says_why(tmp_path: Path) -> None:
    publish_run(tmp_path, [MadeImage("bad.jpg", "/photos/bad.jpg", "truncated")])
    image = pipeline.open_run(str(tmp_path))["bad.jpg"]
    assert (image.ok, image.segments, image.error) == (False, (), "truncated: made")
    with pytest.raises(UserError, match=r"'bad\.jpg' could not be segmented: truncated"):
        _ = image.map


def test_a_table_holds_every_row_without_the_masks(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(30)]
    run = publish_run(tmp_path, named_images(names), shards=4)
    table = run.table()
    assert sorted(table["file_name"].to_pylist()) == sorted(names)
    assert "counts" not in table.column_names
    assert run.table(["counts"]).num_rows == 30
    with pytest.raises(UserError, match="no column 'colour'; it has: file_name, uri"):
        run.table(["colour"])
