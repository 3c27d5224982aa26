"""What a refresh takes along and where it stops, without Ray: plans on a folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.nightly.prune import prune
from pipeline.planning.generations import Brakes
from pipeline.run.publish import finish_generation
from pipeline.schema import TRANSIENT_CODES
from pipeline.segmentation.pending import owed
from pipeline.sharding import Generation
from tests.factories import LAX, Night

RETRYING = Brakes(1.0, retry_codes=tuple(TRANSIENT_CODES), retries=3)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    night = Night(tmp_path)
    for number in range(10):
        night.put(f"{number}.jpg")
    return night


def planned(night: Night, generation: Generation | None) -> set[str]:
    if generation is None:
        return set()
    tables = [night.run.read_unit(unit) for unit in generation.units()]
    return {name for table in tables for name in table["file_name"].to_pylist()}


def test_transient_failures_come_along_and_permanent_ones_stay(night: Night) -> None:
    night.first({"1.jpg": "timeout", "2.jpg": "truncated", "3.jpg": "unavailable"})
    night.put("new.jpg")
    generation = night.refresh(RETRYING)
    assert planned(night, generation) == {"1.jpg", "3.jpg", "new.jpg"}
    assert generation is not None
    assert generation.counts == {"retry": 2, "new": 1}


def test_a_plain_refresh_retries_nothing(night: Night) -> None:
    night.first({"1.jpg": "timeout"})
    assert night.refresh(LAX) is None


def test_a_refresh_extends_a_limited_run_by_what_the_limit_left_out(night: Night) -> None:
    night.first({}, limit=4)
    [early] = night.run.snapshot().shards
    limited = set(night.run.read_shard(early.path)["file_name"].to_pylist())
    generation = night.refresh(LAX)
    assert generation is not None
    assert generation.counts == {"new": 6}
    assert planned(night, generation) == {f"{n}.jpg" for n in range(10)} - limited
    night.finish(generation, {})
    assert early in night.run.snapshot().shards


def test_a_failure_that_changed_or_left_is_not_retried_besides(night: Night) -> None:
    night.first({"1.jpg": "timeout", "2.jpg": "timeout", "3.jpg": "timeout"})
    night.put("1.jpg", "a new file")
    (night.photos / "2.jpg").unlink()
    generation = night.refresh(RETRYING)
    assert generation is not None
    assert generation.counts == {"changed": 1, "removed": 1, "retry": 1, "new": 0}
    assert planned(night, generation) == {"1.jpg", "3.jpg"}


def test_a_failure_is_tried_again_on_so_many_nights_and_no_more(night: Night) -> None:
    night.first({"1.jpg": "timeout"})
    nights = 0
    while (generation := night.refresh(RETRYING)) is not None:
        assert planned(night, generation) == {"1.jpg"}
        night.finish(generation, {"1.jpg": "timeout"})
        nights += 1
    assert nights == RETRYING.retries
    night.put("1.jpg", "a new file")  # starts anew
    generation = night.refresh(RETRYING)
    assert generation is not None
    night.finish(generation, {"1.jpg": "timeout"})
    assert planned(night, night.refresh(RETRYING)) == {"1.jpg"}


@pytest.mark.parametrize(("allowed", "stops"), [(0.39, True), (0.4, False), (None, False)])
def test_too_much_to_compute_stops_with_its_reasons(
    night: Night, allowed: float | None, stops: bool
) -> None:
    night.first({"1.jpg": "timeout"})
    for name in ("a.jpg", "b.jpg"):
        night.put(name)
    night.put("5.jpg", "a new file")
    brakes = Brakes(1.0, allowed, tuple(TRANSIENT_CODES), 3)
    if not stops:
        assert len(planned(night, night.refresh(brakes))) == 4
        return
    with pytest.raises(UserError) as caught:
        night.refresh(brakes)
    assert "4 images to compute (2 new, " in str(caught.value)
    assert "1 changed" in str(caught.value)
    assert "1 retry" in str(caught.value)
    assert "--allow-full" in str(caught.value)
    assert max(night.run.generations()) == 1  # nothing is planned


def changed_twice(night: Night) -> Generation:
    """Generation 3 copies what generation 2 copied of a shard of generation 1."""
    night.first({})
    part = night.run.generation(1)
    unit = max(part.units(), key=lambda unit: unit.images)
    names = night.run.read_unit(unit)["file_name"].to_pylist()
    for name in names[:2]:
        night.put(name, "a new file")
        generation = night.refresh()
        assert generation is not None
        night.finish(generation, {})
    copies = [rewrite.path for rewrite in night.run.generation(3).rewrites]
    assert copies == [f"segments/0003/kept-0001-{unit.shard:06d}.parquet"]
    return night.run.generation(3)


def test_a_finished_generation_needs_no_snapshot_that_was_pruned(night: Night) -> None:
    newest = changed_twice(night)
    prune(night.run.storage, keep=1)
    assert night.run.snapshot_numbers() == [3]
    sizes = night.run.present()
    todo = owed(night.run, newest, sizes, None)
    assert (dict(todo.units), todo.rewrites) == ({}, [])
    assert finish_generation(night.run, newest, sizes, 1.0).rows == 10
    night.put("new.jpg")
    generation = night.refresh()
    assert generation is not None
    night.finish(generation, {})
    assert night.run.snapshot().rows == 11


def test_a_lost_copy_is_made_again_from_the_first_shard_on(night: Night) -> None:
    newest = changed_twice(night)
    prune(night.run.storage, keep=1)
    [last] = newest.rewrites
    night.run.storage.delete(last.path)
    todo = owed(night.run, newest, night.run.present(), None)
    assert [rewrite.generation for rewrite in todo.rewrites] == [2, 3]
    assert {number: [u.shard for u in units] for number, units in todo.units.items()} == {
        1: [last.shard]
    }
