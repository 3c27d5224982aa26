"""Two runs without truth: how far they agree, and where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr.panoptic import Panoptic, Segment
from pipeline.errors import UserError
from pipeline.evaluation.agreement import Agreement, agree
from pipeline.run.snapshots import RunSnapshot, open_snapshot
from tests.factories import (
    MadeImage,
    add_generation,
    damaged,
    made_scenes,
    make_run,
    publish_run,
    shard_row,
)

SCENES = made_scenes(9)


def run_snapshot(folder: Path, rows: dict[str, Any], per_shard: int = 4) -> RunSnapshot:
    made = {name: shard_row(name, own) for name, own in rows.items()}
    return open_snapshot(make_run(folder, made, per_shard=per_shard).storage.url)


def agreement(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], **settings: int) -> Agreement:
    return agree(run_snapshot(tmp_path / "a", a), run_snapshot(tmp_path / "b", b, 2), **settings)


def test_a_run_agrees_with_itself(tmp_path: Path) -> None:
    found = agreement(tmp_path, SCENES, SCENES)
    assert (found.images, found.unpaired) == (9, 0)
    assert {own["pq"] for own in found.groups.values()} == {1.0}
    assert found.disagreements == ()
    assert all(own.before == own.after for own in found.drift.classes)


def test_agreement_is_symmetric_and_void_of_a_forgives_nothing(tmp_path: Path) -> None:
    segment_map, segments = SCENES["000000.jpg"]
    gone = segments[0]["id"]
    less = (np.where(segment_map == gone, 0, segment_map), segments[1:])
    one = agreement(tmp_path / "1", {"000000.jpg": less}, {"000000.jpg": SCENES["000000.jpg"]})
    two = agreement(tmp_path / "2", {"000000.jpg": SCENES["000000.jpg"]}, {"000000.jpg": less})
    assert one.groups["All"]["pq"] == two.groups["All"]["pq"] < 1
    assert one.disagreements[0].segments == 0.5


def test_the_images_that_differ_most_come_first(tmp_path: Path) -> None:
    names = list(SCENES)
    other: dict[str, Any] = dict(SCENES)
    other[names[2]] = damaged(damaged(SCENES[names[2]], 1), 2)
    other[names[5]] = (SCENES[names[5]][0], SCENES[names[5]][1])
    other[names[7]] = (np.zeros_like(SCENES[names[7]][0]), [])
    found = agreement(tmp_path, SCENES, other)
    assert {own.file_name for own in found.disagreements} == {names[2], names[7]}
    ranks = [own.segments for own in found.disagreements]
    assert ranks == sorted(ranks, reverse=True)
    missed = next(own for own in found.disagreements if own.file_name == names[7])
    assert missed.segments == len(SCENES[names[7]][1]) / 2
    assert found.drift.empty_rate == (0.0, pytest.approx(1 / 9))


def test_failed_and_missing_images_are_left_out(tmp_path: Path) -> None:
    names = list(SCENES)
    a = {**{name: SCENES[name] for name in names[1:]}, names[3]: "timeout"}
    b = {name: SCENES[name] for name in names[:8]}
    found = agreement(tmp_path, a, b)
    assert (found.images, found.unpaired) == (6, 3)
    assert found.groups["All"]["pq"] == 1


def test_a_limit_takes_part_of_the_images(tmp_path: Path) -> None:
    found = agreement(tmp_path, SCENES, SCENES, limit=3)
    assert 3 <= found.images < 9


def test_rows_of_several_generations_are_paired(tmp_path: Path) -> None:
    def image(i: int, value: int) -> MadeImage:
        segment_map = np.full((8, 8), 1, np.uint8)
        segment_map[:, value:] = 0
        return MadeImage(
            f"{i}.png", f"/x/{i}.png", Panoptic(segment_map, (Segment(1, 1, True, 1),))
        )

    one = publish_run(tmp_path / "a", [image(i, 8) for i in range(10)], shards=4)
    two = publish_run(tmp_path / "b", [image(i, 8) for i in range(6)], shards=3)
    add_generation(two, [image(i, 6) for i in range(6, 10)], number=2, shards=1)
    found = agree(open_snapshot(one.storage.url), open_snapshot(two.storage.url))
    assert (found.images, found.unpaired) == (10, 0)
    assert [own.segments for own in found.disagreements] == pytest.approx([0.25] * 4)
    assert found.groups["All"]["pq"] == pytest.approx((6 + 4 * 0.75) / 10)


def test_nothing_in_common_is_a_sentence(tmp_path: Path) -> None:
    names = list(SCENES)
    a, b = {names[0]: SCENES[names[0]]}, {names[1]: SCENES[names[1]]}
    with pytest.raises(UserError, match="no image in common"):
        agreement(tmp_path, a, b)
