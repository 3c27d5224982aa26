"""Every name of Ray outside its public interface that the product uses, with the reason for each.

An upgrade of Ray is read against this file. Its test names each that the installed Ray lacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import ray
from ray._private import worker
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._raylet import setproctitle  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

if TYPE_CHECKING:  # a second of imports
    from ray.data import Dataset

NAMES: Final = (
    "ray._private.worker.print_worker_logs",
    "ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS",
    "ray._raylet.setproctitle",
    "ray._private.state.state.get_max_resources_from_cluster_config",
    "ray.autoscaler.v2.sdk.get_cluster_status",
    "ray.autoscaler.v2.utils.is_autoscaler_v2",
    "ray.data.Dataset.map_batches_internal",
    "ray.data._internal.execution.backpressure_policy.DownstreamCapacityBackpressurePolicy"
    ".OBJECT_STORE_BUDGET_UTIL_THRESHOLD",
    "ray.experimental.internal_kv._internal_kv_get",
)
LOGGERS: Final = ("ray.dashboard", "ray._private.runtime_env")  # of packing and uploading a job
START_SETTINGS: Final = ("_temp_dir",)  # of `ray.init`


def most_resources() -> Mapping[str, float] | None:
    """What the autoscaler may start in all, where a cluster says so (Ray 2.60's own doesn't)."""
    return state.get_max_resources_from_cluster_config()


def node_types() -> set[str] | None:
    """The types of the nodes that are up, as `ray status` shows them.

    None before the autoscaler's first report.
    """
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = (*status.active_nodes, *status.idle_nodes)
        return {node.ray_node_type_name or "node_" for node in nodes} or None
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    summary = report.get("autoscaler_report")
    return None if summary is None else set(summary["active_nodes"])


def print_worker_logs_to_stderr() -> None:
    """Send to stderr what Ray prints in this process of its nodes and workers.

    That a node died it prints on stdout whatever `log_to_driver` says, in the midst of results.
    """
    worker.print_worker_logs = _print_to_stderr


_print_worker_logs: Final = worker.print_worker_logs


def _print_to_stderr(data: dict[str, Any], print_file: Any, *rest: Any) -> None:
    _print_worker_logs(data, sys.stderr, *rest)


def show_command_line(text: str) -> None:
    """What the system, and Ray's dashboard, show as this process's command line from now on."""
    setproctitle(text)


def let_no_stage_run_ahead() -> None:
    """A stage that is ahead of the next by as much as that one has in work waits.

    Ray lets it run on until half of its share of the object store is full.
    """
    from ray.data._internal.execution import backpressure_policy

    policy = backpressure_policy.DownstreamCapacityBackpressurePolicy
    policy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0


def map_blocks(dataset: Dataset, stage: type, **settings: Any) -> Dataset:
    """`Dataset.map_batches` with whole blocks as batches, on GPUs too.

    The public method refuses GPUs without a batch size, and a batch size splits or joins blocks.
    """
    return dataset.map_batches_internal(stage, batch_size=None, **settings)
