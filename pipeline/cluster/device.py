"""The device of a run, CPU or GPU, decided before anything is written and recorded in `run.json`.

A run uses a GPU if the cluster has one or can start one, unless --device cpu is given.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import GetTimeoutError

from detr.cuda_settings import why_no_gpu
from detr.weights.fingerprint import resolve_dtype
from pipeline.cluster.capacity import capacity, wait_for_gpu
from pipeline.cluster.placement import NO_GPU, Capacity
from pipeline.cluster.ray_session import is_local, join_ray
from pipeline.config import RunConfig
from pipeline.errors import TryAgainError, UserError

GPU_PROBE_SECONDS = 600
PROBE_RETRIES = 3  # given, for Ray's default may be without a limit (graph.py)


@dataclass(frozen=True)
class Device:
    """The kind and name of the device, and the precision of the model."""

    kind: str  # "cpu" or "cuda"
    name: str
    dtype: str


def decide_device(config: RunConfig, note: Callable[[str], None]) -> Device:
    """The device of a run; connects to Ray only if the config names a cluster.

    Waits for the first GPU if an autoscaler may start one. note: gets a line about the wait. Raises
    TryAgainError if no GPU joins or none is free, UserError if there can be no GPU.
    """
    if config.device == "cpu":
        return _cpu(config)
    if is_local(config.address):
        if reason := why_no_gpu():
            raise UserError(reason)
        if torch.cuda.is_available():
            dtype = resolve_dtype(config.dtype, "cuda")
            return Device("cuda", torch.cuda.get_device_name(), dtype)
        if config.device == "cuda":
            raise UserError(
                "--device cuda: torch finds no GPU on this machine; use --device cpu, or give the "
                "cluster's --address"
            )
        return _cpu(config)
    join_ray(config.address)
    cluster = capacity(config.address)
    if config.device == "auto" and cluster.ceiling("GPU") < 1:
        return _cpu(config)
    if cluster.ceiling("GPU") < 1:
        raise UserError(NO_GPU)
    with_a_gpu(cluster, config, note)
    return _probe(config.dtype)


def with_a_gpu(found: Capacity, config: RunConfig, note: Callable[[str], None]) -> Capacity:
    """The capacity of the cluster after it has a GPU. Raises TryAgainError if no GPU joins."""
    if found.now.get("GPU", 0) >= 1:
        return found
    note(
        f"no GPU yet: asked the autoscaler for one, waiting up to {config.wait_for_gpus} s "
        "(--wait-for-gpus; --device cpu works without)"
    )
    wait_for_gpu(config.wait_for_gpus)
    return capacity(config.address)


def _cpu(config: RunConfig) -> Device:
    if config.decode == "nvjpeg":
        raise UserError(
            "--decode nvjpeg needs a GPU, and this run is on CPUs: use pil, or draft for large "
            "photos"
        )
    return Device(
        "cpu", platform.processor() or platform.machine(), resolve_dtype(config.dtype, "cpu")
    )


def _probe(dtype: str) -> Device:
    """Read a GPU's name and precision in a Ray task, since the driver may have no GPU.

    Raises TryAgainError if no GPU is free within `GPU_PROBE_SECONDS`.
    """

    @ray.remote(num_gpus=1, num_cpus=0, max_retries=PROBE_RETRIES)
    def probe() -> Device:
        return Device("cuda", torch.cuda.get_device_name(), resolve_dtype(dtype, "cuda"))

    device = probe.remote()
    try:
        return ray.get(device, timeout=GPU_PROBE_SECONDS)
    except GetTimeoutError:
        ray.cancel(device)
        raise TryAgainError(
            f"no GPU of the cluster was free for {GPU_PROBE_SECONDS} s (see `ray status`): run it "
            "again later, or use --device cpu"
        ) from None
