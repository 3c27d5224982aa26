"""latest.json with its history."""

from __future__ import annotations

from pathlib import Path

from pipeline.run.latest import REMEMBERED, back, forward, instead
from pipeline.run.publish import finish_generation
from tests.factories import made_scenes, make_run, shard_row


def test_the_first_publication_has_no_history() -> None:
    assert forward(None, "snapshot", 1) == {"snapshot": 1}


def test_publishing_remembers_what_was_published_before() -> None:
    pointer = forward(forward(None, "snapshot", 1), "snapshot", 4)
    assert pointer == {"snapshot": 4, "previous": [1]}
    assert forward(pointer, "snapshot", 4) == pointer


def test_going_back_withdraws_what_was_live() -> None:
    pointer = {"snapshot": 4, "previous": [1, 3]}
    once = back(pointer, "snapshot")
    assert once == {"snapshot": 3, "previous": [1], "withdrawn": [4]}
    twice = back(once or {}, "snapshot")
    assert twice == {"snapshot": 1, "withdrawn": [4, 3]}
    assert back(twice or {}, "snapshot") is None


def test_publishing_again_by_hand_ends_a_withdrawal() -> None:
    pointer = {"snapshot": 3, "previous": [1], "withdrawn": [4]}
    assert forward(pointer, "snapshot", 4) == {"snapshot": 4, "previous": [1, 3]}


def test_what_is_live_can_be_taken_back_for_anything() -> None:
    pointer = {"snapshot": 4, "previous": [1, 3], "withdrawn": [2]}
    expected = {"snapshot": 2, "previous": [1, 3], "withdrawn": [4]}
    assert instead(pointer, "snapshot", 2) == expected


def test_the_history_is_bounded() -> None:
    pointer = forward(None, "snapshot", 0)
    for number in range(1, 3 * REMEMBERED):
        pointer = forward(pointer, "snapshot", number)
    assert len(pointer["previous"]) == REMEMBERED


def test_a_job_does_not_publish_what_was_rolled_back(tmp_path: Path) -> None:
    rows = {name: shard_row(name, own) for name, own in made_scenes(3).items()}
    run = make_run(tmp_path, rows)
    run.move(lambda _: {"snapshot": 7, "withdrawn": [1]})
    finish_generation(run, run.generation(1), run.present(1), 1.0)
    assert run.latest() == 7


def test_a_snapshot_can_be_made_without_judging_or_publishing_it(tmp_path: Path) -> None:
    rows = {name: shard_row(name, own) for name, own in made_scenes(3).items()}
    rows["broken.jpg"] = shard_row("broken.jpg", "truncated")
    run = make_run(tmp_path, rows)
    for name in ("latest.json", "_SUCCESS", "snapshots/0001.parquet"):
        run.storage.delete(name)
    assert finish_generation(run, run.generation(1), run.present(1), 0.0, publish=False).error == 1
    assert run.snapshot_numbers() == [1]
    assert run.latest() is None
    assert not run.storage.exists("_SUCCESS")
