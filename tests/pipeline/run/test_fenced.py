"""Pointers move only as they were read, and never against a later holder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseError, TryAgainError
from pipeline.run import fenced
from pipeline.run.lease import lease
from pipeline.run.run import Run
from pipeline.storage.storage import Storage
from tests.factories import publish_run


class Held:
    """A holder of some epoch."""

    unsure = False

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def check(self) -> None:
        pass


def value(storage: Storage) -> dict[str, Any]:
    return json.loads(storage.read("latest.json"))


def test_a_move_bears_the_epoch_of_its_lease(storage: Storage) -> None:
    with lease(storage) as hold:
        fenced.move(storage, "latest.json", lambda _: {"snapshot": 1}, hold)
    assert value(storage) == {"snapshot": 1, "epoch": 1}
    assert fenced.read(storage, "latest.json") == {"snapshot": 1}


def test_an_earlier_holder_moves_nothing_any_more(storage: Storage) -> None:
    fenced.move(storage, "latest.json", lambda _: {"snapshot": 6}, Held(7))
    with pytest.raises(LeaseError, match="after this one"):
        fenced.move(storage, "latest.json", lambda _: {"snapshot": 5}, Held(6))
    assert value(storage) == {"snapshot": 6, "epoch": 7}


def test_what_another_moved_meanwhile_is_built_upon(storage: Storage) -> None:
    fenced.move(storage, "latest.json", lambda _: {"snapshot": 1}, None)
    seen = []

    def change(pointer: dict[str, Any] | None) -> dict[str, Any]:
        seen.append(pointer)
        if len(seen) == 1:
            fenced.move(storage, "latest.json", lambda _: {"snapshot": 2}, None)
        return {"snapshot": 3, "previous": [(pointer or {})["snapshot"]]}

    fenced.move(storage, "latest.json", change, None)
    assert seen == [{"snapshot": 1}, {"snapshot": 2}]
    assert value(storage) == {"snapshot": 3, "previous": [2]}


def test_a_request_that_is_under_way_fails_once_the_lease_has_passed_on(storage: Storage) -> None:
    storage.write("latest.json", b'{"snapshot": 4}')
    under_way = storage.objects.look(storage.key("latest.json"))
    assert under_way is not None
    storage.write("lease.json", b'{"owner": "another", "host": "x", "pid": 1, "released": true}')
    with lease(storage):
        assert value(storage) == {"snapshot": 4, "epoch": 1}  # sealed: readers see the same
        late = storage.objects.replace(storage.key("latest.json"), under_way, b'{"snapshot": 5}')
    assert not late
    assert value(storage)["snapshot"] == 4


def test_a_quiet_job_leaves_the_pointer_alone(storage: Storage) -> None:
    with lease(storage) as hold:
        fenced.move(storage, "latest.json", lambda _: {"snapshot": 4}, hold)
    before = storage.read("latest.json")
    with lease(storage) as hold:
        fenced.move(storage, "latest.json", lambda pointer: pointer or {}, hold)
    assert storage.read("latest.json") == before


def test_who_does_not_know_whether_a_move_was_made_says_so_to_the_next(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("latest.json", b'{"snapshot": 4}')
    with lease(storage):
        pass
    swap = Storage.swap

    def unanswered(self: Storage, path: str, old: bytes, new: bytes) -> bool:
        if path == "latest.json":
            raise TryAgainError("no answer")
        return swap(self, path, old, new)

    monkeypatch.setattr(Storage, "swap", unanswered)
    with pytest.raises(TryAgainError), lease(storage) as hold:
        fenced.move(storage, "latest.json", lambda _: {"snapshot": 5}, hold)
    monkeypatch.setattr(Storage, "swap", swap)
    with lease(storage) as hold:
        assert value(storage) == {"snapshot": 4, "epoch": hold.epoch}


def test_a_plan_is_committed_once(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [])
    committed = (tmp_path / "manifest/0001/generation.json").read_bytes()
    other = run.generation(1).__class__(1, "retry", (5,), 0)
    with pytest.raises(LeaseError, match="another job planned generation 1"):
        run.write_generation(other)
    assert (tmp_path / "manifest/0001/generation.json").read_bytes() == committed


def test_a_run_travels_to_workers_without_its_lease(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [])
    with lease(run.storage) as hold:
        held = run.held(hold)
        assert isinstance(held, Run)
        assert pickle.loads(pickle.dumps(held)).fence is None
