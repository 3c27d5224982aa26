"""The resources of a Ray cluster: present ones, and those that its autoscaler may add.

A cluster with an autoscaler may have no GPU until a job requests one. Ray's scheduler reports the
present nodes. Only some clusters report what their autoscaler may start
(`get_max_resources_from_cluster_config`; not in open-source Ray 2.60). On other clusters the names
of node types show whether there is an autoscaler: without one, every type is called `node_<id>`.
"""

from __future__ import annotations

import time
from typing import Final

import ray
from ray.autoscaler.sdk import request_resources

from pipeline.cluster.placement import Capacity
from pipeline.cluster.ray_internals import most_resources, node_types
from pipeline.cluster.ray_session import is_local
from pipeline.errors import TryAgainError

STATUS_SECONDS: Final = 15.0  # the autoscaler reports 5 to 10 s after a cluster's start
POLL_SECONDS: Final = 2.0


def capacity(address: str | None) -> Capacity:
    """The resources of the cluster at `address`, to which this process must be connected."""
    now = ray.cluster_resources()
    if is_local(address):
        return Capacity(now)
    limits = most_resources()
    return Capacity(now, limits, grows=limits is not None or _has_autoscaler())


def _has_autoscaler() -> bool:
    deadline = time.monotonic() + STATUS_SECONDS
    while (types := node_types()) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return types is not None and not any(name.startswith("node_") for name in types)


def wait_for_gpu(seconds: int) -> None:
    """Request a GPU and wait for its node. Raises TryAgainError after `seconds`."""
    deadline = time.monotonic() + seconds
    request_resources(bundles=[{"GPU": 1}])
    try:
        while ray.cluster_resources().get("GPU", 0) < 1:
            if time.monotonic() > deadline:
                raise TryAgainError(
                    f"no GPU node has joined the cluster within {seconds} s: raise "
                    "--wait-for-gpus, or use --device cpu"
                )
            time.sleep(POLL_SECONDS)
    finally:
        request_resources(bundles=[])  # from now on actors are the demand
