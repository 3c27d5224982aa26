"""A job that stands still says what waits for what, and not more often than it helps."""

from __future__ import annotations

import pytest

from pipeline.cluster.placement import Placement
from pipeline.cluster.progress_actor import Flow
from pipeline.cluster.watchdog import ClusterState, Watchdog

GPU = Placement("cuda", 1, 4, 15.0, 1.0, 15)
CLUSTER = ClusterState({"CPU": 16, "GPU": 1}, {"CPU": 0.5, "GPU": 0}, dead_nodes=2)


def flow(quiet: float, **states: int) -> Flow:
    longest = ("1/7", next(iter(states)), 400.0) if states else None
    return Flow(states, quiet, longest, None)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (
            {"fetched": 3},
            "3 shards fetched and waiting for a model actor, which takes 1 GPU and 15",
        ),
        ({"fetched": 3}, "0 of 1 GPUs free; 2 nodes died"),
        ({"segmenting": 2}, "model actors work on 2 shards, longest segmenting is shard 7 of"),
        ({"segmented": 1}, "1 shard segmented and waiting to be written, which takes 0.25 CPU"),
        ({"writing": 1, "fetched": 2}, "1 shard being written, longest writing is shard 7 of"),
        ({"fetching": 4}, "4 shards being fetched"),
        ({"rewriting": 2}, "2 shards being copied without the rows that leave, longest rewriting"),
        ({}, "no fetch has started"),
    ],
)
def test_the_sentence_names_the_stage_that_waits_and_what_it_waits_for(
    states: dict[str, int], words: str
) -> None:
    said = Watchdog(GPU).speak(flow(600, **states), CLUSTER)
    assert said.startswith("no stage has reported for 10 min: ")
    assert words in said


def test_it_speaks_again_only_when_the_silence_has_doubled() -> None:
    watchdog = Watchdog(GPU, after=10)
    spoken = []
    for quiet in range(100):
        if watchdog.is_due(flow(quiet)):
            watchdog.speak(flow(quiet), CLUSTER)
            spoken.append(quiet)
    assert spoken == [10, 20, 40, 80]
    assert not watchdog.is_due(flow(0))  # something was reported
    assert watchdog.is_due(flow(10))


def test_a_shard_whose_workers_keep_dying_is_named_once() -> None:
    watchdog = Watchdog(GPU)
    troubled = Flow({"segmenting": 1}, 0, None, ("2/5", "segmenting", 4))
    assert "segmenting shard 5 of generation 2 has begun 4 times" in (
        watchdog.trouble(troubled) or ""
    )
    assert watchdog.trouble(troubled) is None
    assert watchdog.trouble(Flow({}, 0, None, ("2/6", "segmenting", 3))) is None
