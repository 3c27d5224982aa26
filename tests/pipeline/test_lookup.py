"""An image is found by its name in whatever generation computed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detr.postprocess import Panoptic, Segment
from pipeline.errors import UserError
from pipeline.lookup import find_row, panoptic_of
from tests.made_run import MadeImage, add_generation, make_run


def panoptic(seed: int) -> Panoptic:
    rng = np.random.default_rng(seed)
    segment_map = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 7), int)).astype(np.uint8)
    segment_map[0, :3] = (0, 1, 2)
    return Panoptic(segment_map, (Segment(1, 1, True, 0.5), Segment(2, 187, False, 0.75)))


def images(names: list[str], seed: int = 0) -> list[MadeImage]:
    return [MadeImage(name, f"/photos/{name}", panoptic(seed + i)) for i, name in enumerate(names)]


def test_every_image_is_found_and_read_back(tmp_path: Path) -> None:
    made = images([f"folder {n}/写真 #{n}?.jpg" for n in range(40)])
    run = make_run(tmp_path, made, shards=5)
    for image in made:
        row = find_row(run, image.file_name)
        assert row["uri"] == image.uri
        back = panoptic_of(row)
        assert isinstance(image.result, Panoptic)
        np.testing.assert_array_equal(back.segment_map, image.result.segment_map)
        assert back.segments == image.result.segments


def test_later_generations_are_found_with_their_own_shard_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, images([f"old{n}.jpg" for n in range(20)]), shards=4)
    add_generation(run, images([f"new{n}.jpg" for n in range(20)]), number=2, shards=3)
    for n in range(20):
        assert find_row(run, f"old{n}.jpg")["generation"] == 1
        assert find_row(run, f"new{n}.jpg")["generation"] == 2
    with pytest.raises(UserError, match=r"no image 'new1\.jpg'"):
        find_row(run, "new1.jpg", snapshot=run.snapshot(1))


def test_one_object_is_read_per_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, images([f"{n}.jpg" for n in range(50)]), shards=10)
    read: list[str] = []
    original = type(run).read_shard

    def counting(self: object, path: str) -> object:
        read.append(path)
        return original(run, path)

    monkeypatch.setattr(type(run), "read_shard", counting)
    find_row(run, "7.jpg")
    assert len(read) == 1


def test_an_unknown_name_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, images(["a.jpg"]))
    with pytest.raises(UserError, match=r"has no image 'b\.jpg'"):
        find_row(run, "b.jpg")
