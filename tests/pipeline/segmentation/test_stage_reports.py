"""What the stages tell the tally, so that a job which stands still can be explained."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

import pipeline.segmentation.segmenter
from detr.inference.gpu_batch import InFlight
from pipeline.cluster.progress_actor import MAX_STARTS, Flow, Tally
from pipeline.errors import TryAgainError
from pipeline.segmentation.graph import rewrite_shards
from pipeline.segmentation.segmenter import Segmenter
from tests.factories import Night, jpeg, on_a_device_that_works_alone, segmenter, unit_of

KEY = "1/4"  # of unit_of's units


class RecordingTally(Tally):
    """A tally that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(100, 1.0)
        self.told: list[tuple[Any, ...]] = []
        self.advances: list[tuple[str, int, int]] = []

    def began(self, state: str, shard: str) -> int:
        self.told.append((state, shard))
        return super().began(state, shard)

    def segmented(
        self, shard: str, seconds: Mapping[str, float], batches: Mapping[int, int] | None = None
    ) -> None:
        self.told.append(("segmented", shard, dict(batches or {})))
        super().segmented(shard, seconds, batches)

    def advanced(self, shard: str, finished: int, images: int) -> None:
        self.advances.append((shard, finished, images))
        super().advanced(shard, finished, images)

    def all_advances(self) -> list[tuple[str, int, int]]:
        return self.advances

    def rewritten(self, shard: str) -> None:
        self.told.append(("rewritten", shard))
        super().rewritten(shard)

    def all_told(self) -> list[tuple[Any, ...]]:
        return self.told

    def begin_anew(self) -> None:
        """As another actor would: to start a process for each test takes seconds."""
        vars(self).clear()
        self.__init__()


@pytest.fixture(scope="module")
def recorder(ray_session: None) -> Iterator[Any]:
    actor: Any = ray.remote(RecordingTally)
    handle: ActorHandle = actor.options(num_cpus=0).remote()
    yield handle
    ray.kill(handle)


@pytest.fixture
def tally(recorder: Any) -> Any:
    ray.get(recorder.begin_anew.remote())
    return recorder


def states(tally: Any) -> Mapping[str, int]:
    flow: Flow = ray.get(tally.flow.remote())
    return flow.states


def reporting(weights: Path, tally: ActorHandle, **settings: Any) -> Segmenter:
    actor = segmenter(weights, **settings)
    actor.tally = tally
    return actor


def test_a_model_at_work_is_seen_as_such(tiny_weights: Path, tally: Any) -> None:
    actor = reporting(tiny_weights, tally)
    busy = threading.Event()
    actor.turn.submit(busy.wait)  # a model that hangs
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(actor, unit_of({"a.jpg": jpeg(60, 80, 1)}))
        deadline = time.monotonic() + 20
        while not states(tally) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert states(tally) == {"segmenting": 1}
        busy.set()
        waiting.result()
    assert states(tally) == {"segmented": 1}


def test_the_sizes_of_the_batches_are_told(tiny_weights: Path, tally: Any) -> None:
    actor = reporting(tiny_weights, tally, batch_size=4)
    same = {f"{number}.jpg": jpeg(60, 80, number) for number in range(6)}
    actor(unit_of({**same, "broken.jpg": b"x", "gone.jpg": None}))
    told = ray.get(tally.all_told.remote())
    assert told == [("segmenting", KEY), ("segmented", KEY, {4: 1, 2: 1})]


def test_images_are_told_as_the_model_finishes_them(
    tiny_weights: Path, tally: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.segmentation.segmenter, "REPORT_SECONDS", 0)
    actor = reporting(tiny_weights, tally, batch_size=2)
    same = {f"{number}.jpg": jpeg(60, 80, number) for number in range(5)}
    actor(unit_of({"gone.jpg": None, **same, "broken.jpg": b"x"}))
    advances = ray.get(tally.all_advances.remote())
    # What could not be fetched, then each batch, and what can't be decoded with the first.
    assert advances == [(KEY, finished, 7) for finished in (1, 4, 6, 7)]


def test_batches_cut_by_memory_are_told_as_the_model_took_them(tmp_path: Path, tally: Any) -> None:
    (tmp_path / "none").write_bytes(b"")
    model = "tests.pipeline.segmentation.test_segmenter:load_scarce"  # memory for three images
    actor = reporting(tmp_path / "none", tally, model=model, batch_size=8)
    actor(unit_of({f"{number}.jpg": jpeg(60, 80, number) for number in range(9)}))
    assert ray.get(tally.all_told.remote())[-1] == ("segmented", KEY, {2: 4, 1: 1})


@pytest.mark.parametrize("fails", [False, True])
def test_batches_under_way_are_told_once(
    tiny_weights: Path, tally: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    on_a_device_that_works_alone(monkeypatch)
    plain, calls = InFlight.result, [0]

    def full(flight: InFlight) -> Any:
        calls[0] += 1
        if fails and calls[0] == 2:
            raise MemoryError
        return plain(flight)

    monkeypatch.setattr(InFlight, "result", full)
    actor = reporting(tiny_weights, tally, batch_size=1)
    actor(unit_of({f"{number}.jpg": jpeg(60, 80, number) for number in range(6)}))
    assert ray.get(tally.all_told.remote())[-1] == ("segmented", KEY, {1: 6})


def test_a_unit_that_ends_every_actor_ends_the_job(tiny_weights: Path, tally: Any) -> None:
    actor = reporting(tiny_weights, tally)
    for _ in range(MAX_STARTS):  # each by an actor that died
        ray.get(tally.began.remote("segmenting", KEY))
    with pytest.raises(TryAgainError, match="segmenting shard 4 of generation 1 has ended 20"):
        actor(unit_of({"a.jpg": jpeg(60, 80, 1)}))


def test_shards_that_are_copied_are_told(tmp_path: Path, tally: Any) -> None:
    night = Night(tmp_path)
    for number in range(10):
        night.put(f"{number}.jpg")
    night.first({})
    (night.photos / "3.jpg").unlink()
    generation = night.refresh()
    assert generation is not None
    [rewrite] = generation.rewrites
    rewrite_shards(night.run, generation.rewrites, tally)
    key = f"1/{rewrite.shard}"
    assert ray.get(tally.all_told.remote()) == [("rewriting", key), ("rewritten", key)]
    assert states(tally) == {}
    assert night.run.read_shard(rewrite.path).num_rows == rewrite.rows
