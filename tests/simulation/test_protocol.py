"""The protocol keeps its promises in any order of events, and the model would notice if not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pipeline.nightly.prune as prune_module
import pipeline.nightly.rollback as rollback_module
import pipeline.planning.generations as planning
import pipeline.segmentation.job as job
from pipeline.nightly.nightly import _Night
from pipeline.run import fenced, folder
from pipeline.run import writing as writing_module
from pipeline.run.run import Run, find_run
from pipeline.run.writing import Place, Writer
from pipeline.storage.entry import Entry
from pipeline.storage.storage import Storage
from tests.simulation.interleavings import Outcome, interleave
from tests.simulation.world import Faults

# Once broken, by an earlier form of the protocol or of the model.
ONCE_BROKEN = (1727,)


def test_300_interleavings_keep_every_promise() -> None:
    for seed in (*ONCE_BROKEN, *range(300)):
        outcome = interleave(seed)
        assert outcome.broken is None, str(outcome)


@pytest.mark.slow(seconds=1300)
@pytest.mark.timeout(6000)
def test_20000_interleavings_keep_every_promise() -> None:
    for seed in range(1_000, 21_000):
        outcome = interleave(seed)
        assert outcome.broken is None, str(outcome)


def test_a_seed_replays_exactly() -> None:
    first, again = interleave(7), interleave(7)
    assert first == again
    assert len(first.log) > 50


# What each mend is for: without it the model finds the fault.


def one_lease_only(patch: pytest.MonkeyPatch) -> None:
    """The lease of the path that was typed; plans and their commits written blindly."""

    def locate(storage: Storage) -> Place:
        run = find_run(storage)
        assert run is not None
        return Place(storage, run.storage, None)

    def write_generation(self: Run, generation: Any) -> None:
        path = f"manifest/{generation.number:04d}/generation.json"
        self.storage.write(path, folder.json_bytes(generation.to_json()))

    for module in (job, rollback_module, prune_module, writing_module):
        patch.setattr(module, "locate", locate)
    patch.setattr(Writer, "may_publish", False)
    patch.setattr(_Night, "_lease", lambda self: self.nights.fence)
    patch.setattr(planning, "new_plan", lambda: "")
    patch.setattr(Run, "write_generation", write_generation)


def anybody_publishes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "may_publish", True)


def pointers_move_blindly(patch: pytest.MonkeyPatch) -> None:
    def put(storage: Storage, path: str, content: bytes | None, after: Any, fence: Any) -> bool:
        storage.write(path, json.dumps({**after, "epoch": fence.epoch}).encode())
        return True

    patch.setattr(fenced, "_put", put)
    patch.setattr(fenced, "seal", lambda *_: None)


def prune_forgets_what_a_run_shows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prune_module, "_shown", lambda run: set())


def prune_takes_shards_first(patch: pytest.MonkeyPatch) -> None:
    planned = prune_module._of_run

    def shards_first(run: Run, kept: set[int]) -> list[Entry]:
        return sorted(planned(run, kept), key=lambda entry: not entry.path.startswith("segments"))

    patch.setattr(prune_module, "_of_run", shards_first)


MENDS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any], str]] = {
    "1, two leases": (
        one_lease_only,
        {"verbs": ("night a", "retry OUT/run-a"), "state": 1, "within": 10.0},
        "twice|not of one piece|not what was planned|lacks|written over|ended with|not the images",
    ),
    "2, the gate": (
        anybody_publishes,
        {"verbs": ("night a", "retry OUT", "segment OUT"), "state": 1},
        "which no gate let pass",
    ),
    "3, late writers": (
        pointers_move_blindly,
        {"verbs": ("night a", "rollback OUT"), "state": 1, "faults": Faults(0, 0, 0, 0, late=0.3)},
        "has forgotten|moved from epoch|no gate let pass",
    ),
    "7, what a run shows": (
        prune_forgets_what_a_run_shows,
        {"verbs": ("prune OUT", "night b"), "state": 2},
        "is named, and gone",
    ),
    "7, half a prune": (
        prune_takes_shards_first,
        {"verbs": ("prune OUT", "prune OUT/run-a")},
        "which is gone",
    ),
}


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("mend", list(MENDS))
def test_without_a_mend_the_model_finds_the_fault(patch: pytest.MonkeyPatch, mend: str) -> None:
    take_out, narrowed, words = MENDS[mend]
    with_it = interleave(0, **narrowed)
    assert with_it.broken is None, str(with_it)
    take_out(patch)
    found = _first_broken(narrowed)
    assert found is not None, "no seed found it"
    assert re.search(words, found.broken or ""), str(found)


def _first_broken(narrowed: dict[str, Any]) -> Outcome | None:
    outcomes = (interleave(seed, **narrowed) for seed in range(200))
    return next((outcome for outcome in outcomes if outcome.broken), None)
