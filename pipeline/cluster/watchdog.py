"""Sentences about a job without progress, and about a shard whose workers die. Pure.

`segmentation.execute` calls the watchdog every second with the shards in flight and the cluster's
resources. The watchdog never ends a job: a job may wait an hour for a spot node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipeline.amounts import counted, duration
from pipeline.cluster.placement import FETCH_CPUS, WRITE_CPUS, Placement
from pipeline.cluster.progress_actor import Flow
from pipeline.sharding import unit_name

STUCK_SECONDS: Final = 300.0
TROUBLED_STARTS: Final = 4


@dataclass(frozen=True)
class ClusterState:
    """Total and free resources of the cluster by Ray's names (`CPU`, `GPU`), and dead nodes."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    dead_nodes: int

    def of(self, name: str) -> str:
        return f"{self.free.get(name, 0):g} of {self.total.get(name, 0):g} {name}s free"


class Watchdog:
    """Due when no stage has reported for `after` seconds, and each time that this time doubles."""

    def __init__(self, placement: Placement, after: float = STUCK_SECONDS) -> None:
        self._placement = placement
        self._after = self._next = after
        self._told: set[tuple[str, str]] = set()

    def is_due(self, flow: Flow) -> bool:
        """Whether no stage has reported for so long that a sentence is due."""
        if flow.quiet < self._after:
            self._next = self._after
        return flow.quiet >= self._next

    def speak(self, flow: Flow, cluster: ClusterState) -> str:
        """The sentence about what the job waits for."""
        self._next = 2 * flow.quiet
        lost = f"; {counted(cluster.dead_nodes, 'node')} died" if cluster.dead_nodes else ""
        return (
            f"no stage has reported for {duration(flow.quiet)}: {self._reason(flow, cluster)}{lost}"
        )

    def trouble(self, flow: Flow) -> str | None:
        """The sentence about a shard that a stage has begun `TROUBLED_STARTS` times; said once."""
        if flow.troubled is None or flow.troubled[2] < TROUBLED_STARTS:
            return None
        shard, state, starts = flow.troubled
        if (shard, state) in self._told:
            return None
        self._told.add((shard, state))
        return (
            f"{state} shard {unit_name(shard)} has begun {starts} times: whatever works on it "
            "dies, or its node is taken away; if it goes on, the nodes' memory is too small for it"
        )

    def _reason(self, flow: Flow, cluster: ClusterState) -> str:
        states = flow.states
        kind = "GPU" if self._placement.actor_gpus else "CPU"
        if busy := states.get("writing"):
            return (
                f"{counted(busy, 'shard')} being written, {self._longest(flow)}: is the store slow?"
            )
        if busy := states.get("segmenting"):
            return f"model actors work on {counted(busy, 'shard')}, {self._longest(flow)}"
        if waiting := states.get("segmented"):
            return (
                f"{counted(waiting, 'shard')} segmented and waiting to be written, which takes "
                f"{WRITE_CPUS:g} CPU: {cluster.of('CPU')}"
            )
        if waiting := states.get("fetched"):
            gpus, cpus = self._placement.actor_gpus, self._placement.actor_cpus
            need = f"{gpus:g} GPU and {cpus:g} CPUs" if gpus else f"{cpus:g} CPUs"
            return (
                f"{counted(waiting, 'shard')} fetched and waiting for a model actor, which takes "
                f"{need}: {cluster.of(kind)}"
            )
        if busy := states.get("fetching"):
            shards = counted(busy, "shard")
            return f"{shards} being fetched, {self._longest(flow)}: does the source answer?"
        if busy := states.get("rewriting"):
            return (
                f"{counted(busy, 'shard')} being copied without the rows that leave, "
                f"{self._longest(flow)}: is the store slow?"
            )
        return (
            f"no fetch has started, which takes {FETCH_CPUS:g} CPU: {cluster.of('CPU')}; or the "
            "cluster waits for its first node"
        )

    def _longest(self, flow: Flow) -> str:
        assert flow.longest is not None
        shard, state, seconds = flow.longest
        return f"longest {state} is shard {unit_name(shard)}, for {duration(seconds)}"
