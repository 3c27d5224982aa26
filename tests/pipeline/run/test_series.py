"""The folder of nights: one pointer for all readers, back and forth, and what may leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pipeline.nightly.prune as prune_module
from detr.panoptic import Panoptic, Segment
from pipeline.errors import LeaseError, UserError
from pipeline.nightly.prune import Pruning, plan_prune, prune
from pipeline.nightly.rollback import rollback
from pipeline.run.lease import lease
from pipeline.run.run import Run, open_run
from pipeline.run.series import Nights, Pinned
from pipeline.storage.storage import Storage
from tests.factories import MadeImage, add_generation, publish_run

PICTURE = Panoptic(np.ones((2, 2), np.uint8), (Segment(1, 1, True, 1.0),))


def images(*numbers: int) -> list[MadeImage]:
    return [MadeImage(f"{n}.png", f"/x/{n}.png", PICTURE) for n in numbers]


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """run-a with snapshots 1, 2, 3 published in turn, then run-b with 1 and 2, on top of each."""
    nights = Nights(Storage(tmp_path))
    for name in ("run-a", "run-b"):
        run = publish_run(tmp_path / name, images(*range(8)))
        nights.publish(name, run, 1)
        for number in (2, 3) if name == "run-a" else (2,):
            add_generation(run, images(10 * number), number=number, shards=1)
            run.storage.write(f"evaluation/{number:04d}/gt/pq.json", b"{}")
            nights.publish(name, run, number)
    return nights


def live(nights: Nights) -> tuple[str, int]:
    run_snapshot = nights.live()
    assert run_snapshot is not None
    return run_snapshot.run.storage.url.rpartition("/")[2], run_snapshot.number


def a_run(nights: Nights, name: str) -> Run:
    run = nights.run(name)
    assert run is not None
    return run


def test_whoever_opens_the_folder_reads_the_live_run(nights: Nights) -> None:
    run = open_run(nights.storage.url)
    assert run.storage.url == nights.url("run-b")
    assert run.snapshot().rows == 9


def test_a_run_folder_is_no_folder_of_nights(tmp_path: Path) -> None:
    publish_run(tmp_path, images(1))
    with pytest.raises(UserError, match="nights need a folder of their own"):
        Nights(Storage(tmp_path))


def test_rollback_goes_back_through_every_publication(nights: Nights) -> None:
    seen = [live(nights)]
    for _ in range(4):
        rollback(nights.storage)
        seen.append(live(nights))
    assert seen == [("run-b", 2), ("run-b", 1), ("run-a", 3), ("run-a", 2), ("run-a", 1)]
    with pytest.raises(UserError, match="nothing was published"):
        rollback(nights.storage)
    assert live(nights) == ("run-a", 1)


def test_rollback_to_a_snapshot_or_a_run(nights: Nights) -> None:
    moved = rollback(nights.storage, "run-a")
    assert (moved.before, moved.after) == ("run-b/snapshots/0002", "run-a/snapshots/0003")
    rollback(nights.storage, "1")
    assert live(nights) == ("run-a", 1)
    assert (a_run(nights, "run-a").pointer() or {})["withdrawn"] == [3, 2]
    rollback(nights.storage, "3")  # and forward again
    assert live(nights) == ("run-a", 3)
    assert (
        "withdrawn" not in (a_run(nights, "run-a").pointer() or {})
        or 3 not in (a_run(nights, "run-a").pointer() or {})["withdrawn"]
    )


def test_a_run_that_was_left_by_name_is_withdrawn(nights: Nights) -> None:
    rollback(nights.storage, "run-a")
    assert nights.pointer() == {"run": "run-a", "withdrawn": ["run-b"]}
    rollback(nights.storage, "run-b")  # and forward again
    assert nights.pointer() == {"run": "run-b", "previous": ["run-a"]}
    nights.move(lambda _: {"run": "run-b"})  # as after a prune: the way back is forgotten
    rollback(nights.storage, "run-a")
    assert nights.pointer() == {"run": "run-a", "withdrawn": ["run-b"]}


def test_every_snapshot_after_the_one_that_is_named_is_withdrawn(nights: Nights) -> None:
    run = a_run(nights, "run-a")
    nights.move(lambda _: {"run": "run-a"})
    run.move(lambda _: {"snapshot": 3, "previous": [1]})  # 2 was stopped by the gate
    rollback(nights.storage, "2")
    assert run.pointer() == {"snapshot": 2, "previous": [1], "withdrawn": [3]}
    run.move(lambda _: {"snapshot": 3})
    rollback(nights.storage, "2")
    assert run.pointer() == {"snapshot": 2, "withdrawn": [3]}
    run.move(lambda _: {"snapshot": 2, "previous": [1]})  # 3 was stopped, and is accepted
    rollback(nights.storage, "3")
    assert run.pointer() == {"snapshot": 3, "previous": [1, 2]}


@pytest.mark.parametrize("to", ["9", "nonsense", "run-c"])
def test_rollback_to_what_is_not_there_moves_nobody(nights: Nights, to: str) -> None:
    with pytest.raises(UserError, match="there are:"):
        rollback(nights.storage, to)
    assert live(nights) == ("run-b", 2)


def test_a_single_run_rolls_back_too(tmp_path: Path) -> None:
    run = publish_run(tmp_path, images(1, 2))
    with pytest.raises(UserError, match=r"no snapshot of .* was published before 1"):
        rollback(Storage(tmp_path))
    add_generation(run, images(3), number=2, shards=1)
    assert rollback(Storage(tmp_path)).after == "snapshots/0001"
    assert run.latest() == 1


def test_pruning_keeps_what_kept_publications_name(nights: Nights) -> None:
    before = {entry.path for entry in nights.storage.list()}
    planned = plan_prune(nights.storage, keep=3)
    assert {entry.path for entry in nights.storage.list()} == before
    assert planned.kept == ("run-a/snapshots/0003", "run-b/snapshots/0001", "run-b/snapshots/0002")
    done = prune(nights.storage, keep=3)
    assert done.objects == planned.objects
    gone = before - {entry.path for entry in nights.storage.list()}
    assert gone == {entry.path for entry in planned.objects}
    assert gone == {
        *("run-a/snapshots/0001.parquet", "run-a/snapshots/0002.parquet"),
        "run-a/evaluation/0002/gt/pq.json",
    }  # its shards are all named by snapshot 3
    rollback(nights.storage)
    rollback(nights.storage)
    assert live(nights) == ("run-a", 3)
    with pytest.raises(UserError, match="nothing was published"):
        rollback(nights.storage)
    assert len(open_run(nights.storage.url).table().to_pylist()) == 10


def test_a_run_of_former_weights_goes_whole_and_last_its_plan(nights: Nights) -> None:
    planned = plan_prune(nights.storage, keep=2)
    paths = [entry.path for entry in planned.objects]
    assert {path.split("/")[0] for path in paths} == {"run-a"}
    assert set(paths) == {e.path for e in nights.storage.list() if e.path.startswith("run-a/")}
    tops = [path.split("/")[1] for path in paths]
    assert tops[0] == "latest.json"
    assert tops.index("segments") > max(i for i, top in enumerate(tops) if top == "snapshots")
    assert paths[-1] == "run-a/run.json"
    plans = [path for path in paths if path.endswith("generation.json")]
    assert plans == [f"run-a/manifest/000{n}/generation.json" for n in (3, 2, 1)]
    prune(nights.storage, keep=2)
    assert live(nights) == ("run-b", 2)


def test_the_pinned_baseline_is_kept(nights: Nights) -> None:
    nights.pin(Pinned("run-a", 2, "gt"))
    planned = plan_prune(nights.storage, keep=1)
    assert "run-a/snapshots/0002" in planned.kept
    prune(nights.storage, keep=1)
    assert a_run(nights, "run-a").snapshot(2).rows == 9
    assert nights.storage.exists("run-a/evaluation/0002/gt/pq.json")
    pinned = nights.pinned()
    assert pinned is not None
    assert nights.pinned_snapshot(pinned).evaluations() == ["gt"]


def test_what_is_being_made_is_kept(nights: Nights) -> None:
    run = a_run(nights, "run-b")
    add_generation(run, images(77), number=3, shards=1)  # computed, not yet published
    run.move(lambda _: {"snapshot": 2, "previous": [1]})
    run.storage.delete("snapshots/0003.parquet")
    shard = "segments/0003/shard-000000-of-000001.parquet"
    prune(nights.storage, keep=1)
    assert run.storage.exists(shard)
    assert run.storage.exists("manifest/0003/generation.json")


def test_nothing_is_removed_while_a_night_is_at_work(nights: Nights) -> None:
    before = {entry.path for entry in nights.storage.list()}
    with lease(nights.storage), pytest.raises(LeaseError):
        prune(nights.storage, keep=1)
    assert {e.path for e in nights.storage.list() if "lease" not in e.path} == {
        path for path in before if "lease" not in path
    }


def test_what_a_run_s_own_pointer_names_is_kept(nights: Nights) -> None:
    """A run that is kept for its baseline, and whose newest snapshot was stopped by the gate."""
    run = a_run(nights, "run-a")
    nights.pin(Pinned("run-a", 1, "gt"))
    pointer = run.pointer()
    add_generation(run, images(40), number=4, shards=1)
    run.move(lambda _: pointer or {})
    assert run.latest() == 3
    prune(nights.storage, keep=2)
    assert run.snapshot_numbers() == [1, 3, 4]
    assert rollback(nights.storage, "run-a").after == "run-a/snapshots/0003"
    assert open_run(nights.storage.url).table().num_rows == 10


def test_a_run_folder_that_is_pruned_by_its_own_path_keeps_the_baseline(nights: Nights) -> None:
    nights.pin(Pinned("run-a", 1, "gt"))
    assert "snapshots/0001" in plan_prune(nights.run_storage("run-a"), keep=1).kept
    prune(nights.run_storage("run-a"), keep=1)
    assert a_run(nights, "run-a").snapshot(1).rows == 8


@pytest.mark.parametrize("whole", [False, True])
def test_a_prune_that_is_killed_anywhere_leaves_no_snapshot_without_its_shards(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Nor a way back to one that is going."""
    run = a_run(nights, "run-a")
    live_only = [s for s in run.snapshot(3).shards if not s.path.startswith("segments/0001")]
    run.write_snapshot(3, live_only)  # as where generation 3 replaced all of generation 1
    keep, killed = (2 if whole else 3), 0

    def whole_or_absent() -> None:
        there = {each.path for each in nights.storage.list()}
        for path in [path for path in there if "/snapshots/" in path]:
            name, _, number = path.partition("/snapshots/")
            snapshot = a_run(nights, name).snapshot(int(number.removesuffix(".parquet")))
            assert {f"{name}/{shard.path}" for shard in snapshot.shards} <= there
        assert open_run(nights.storage.url).table().num_rows == 9

    delete = Storage.delete

    def dying(self: Storage, path: str) -> None:
        delete(self, path)
        raise KeyboardInterrupt

    while plan_prune(nights.storage, keep).objects:
        monkeypatch.setattr(Storage, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            prune(nights.storage, keep)
        monkeypatch.setattr(Storage, "delete", delete)
        whole_or_absent()
        killed += 1
        assert killed < 100
        if whole and nights.run("run-a") is not None:
            with pytest.raises(UserError, match="no published run folder here"):
                rollback(nights.storage, "run-a")
    assert killed > 3
    assert whole == (nights.run("run-a") is None)


def test_a_prune_does_nothing_if_readers_were_moved_while_it_looked(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a request of a job that had lost its lease."""
    planned = prune_module.plan_prune

    def late(storage: Storage, keep: int) -> Pruning:
        pruning = planned(storage, keep)
        a_run(nights, "run-b").move(lambda _: {"snapshot": 1})
        return pruning

    monkeypatch.setattr(prune_module, "plan_prune", late)
    before = {entry.path for entry in nights.storage.list()}
    with pytest.raises(LeaseError, match="nothing is removed"):
        prune(nights.storage, keep=1)
    assert {entry.path for entry in nights.storage.list()} >= before


def test_the_epochs_of_a_run_that_was_removed_go_on(nights: Nights) -> None:
    prune(nights.storage, keep=2)
    left = [entry.path for entry in nights.storage.list() if entry.path.startswith("run-a/")]
    assert left == ["run-a/lease.json"]
    assert plan_prune(nights.storage, keep=2).objects == ()
    with lease(nights.run_storage("run-a")) as hold:
        assert hold.epoch == 2


def test_a_prune_of_another_folder_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert prune(Storage(tmp_path), keep=1).objects == ()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
