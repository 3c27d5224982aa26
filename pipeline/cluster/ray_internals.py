"""All uses of Ray's private names; no other file has any.

The test of this file names each of `NAMES` that the installed Ray lacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import ray
from ray._private import worker
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._raylet import ActorID, setproctitle  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_get

if TYPE_CHECKING:  # a second of imports
    from ray.data import Dataset

NAMES: Final = (
    "ray._private.worker.print_worker_logs",
    "ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS",
    "ray._private.worker.global_worker",
    "ray._raylet.CoreWorker.kill_actor",
    "ray._raylet.ActorID.from_hex",
    "ray._raylet.setproctitle",
    "ray._private.state.state.get_max_resources_from_cluster_config",
    "ray.autoscaler.v2.sdk.get_cluster_status",
    "ray.autoscaler.v2.utils.is_autoscaler_v2",
    "ray.data.Dataset.map_batches_internal",
    "ray.data._internal.execution.backpressure_policy.DownstreamCapacityBackpressurePolicy"
    ".OBJECT_STORE_BUDGET_UTIL_THRESHOLD",
    "ray.experimental.internal_kv._internal_kv_get",
)
# Of packing, uploading and following a job. Two of them set a level of their own when imported.
LOGGERS: Final = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
START_SETTINGS: Final = ("_temp_dir",)  # of `ray.init`


def most_resources() -> Mapping[str, float] | None:
    """All resources that the autoscaler may start; None if not reported (open-source Ray 2.60)."""
    return state.get_max_resources_from_cluster_config()


def node_types() -> set[str] | None:
    """The types of the live nodes, as in `ray status`; None before the first status report."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = (*status.active_nodes, *status.idle_nodes)
        return {node.ray_node_type_name or "node_" for node in nodes} or None
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    summary = report.get("autoscaler_report")
    return None if summary is None else set(summary["active_nodes"])


def print_worker_logs_to_stderr() -> None:
    """Make Ray print to stderr what it sends to the driver: workers' output and its messages.

    Ray else prints the death of a node to stdout, among results, even with `log_to_driver=False`.
    """
    worker.print_worker_logs = _print_to_stderr


_print_worker_logs: Final = worker.print_worker_logs


def _print_to_stderr(data: dict[str, Any], print_file: Any, *rest: Any) -> None:
    _print_worker_logs(data, sys.stderr, *rest)


def show_command_line(text: str) -> None:
    """Set the command line of this process that the system and Ray's dashboard show."""
    setproctitle(text)


def kill_actor(actor_id: str) -> None:
    """End an actor of Ray Data's pool, whose handle Ray Data keeps to itself. Does nothing if this
    process holds no handle of it."""
    with suppress(RayError, ValueError):
        known: Any = worker
        known.global_worker.core_worker.kill_actor(ActorID.from_hex(actor_id), True)


def let_no_stage_run_ahead() -> None:
    """Make a stage of Ray Data wait if its output is as much as the next stage has in work.

    By default, Ray Data first fills half of the stage's share of the object store.
    """
    from ray.data._internal.execution import backpressure_policy

    policy = backpressure_policy.DownstreamCapacityBackpressurePolicy
    policy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0


def map_blocks(dataset: Dataset, stage: type, **settings: Any) -> Dataset:
    """`Dataset.map_batches` with whole blocks as batches, also on GPUs.

    The public method requires a batch size on GPUs, which would split or join blocks.
    """
    return dataset.map_batches_internal(stage, batch_size=None, **settings)
