"""CPU or GPU, decided once, before anything is written, and recorded with the run.

A cluster that can start GPUs is never silently run on its CPUs.
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


@dataclass(frozen=True)
class Device:
    """Where the model runs and in which precision: part of what a run records."""

    kind: str  # "cpu" or "cuda"
    name: str
    dtype: str


def decide_device(config: RunConfig, note: Callable[[str], None]) -> Device:
    """CPU or GPU, its name and the precision. Connects to Ray only where the answer needs it.

    Where an autoscaler may start GPUs the first is waited for. Raises TryAgainError if none comes
    or none is free, UserError for a GPU that can't be had.
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
    found = capacity(config.address)
    if config.device == "auto" and found.ceiling("GPU") < 1:
        return _cpu(config)
    if found.ceiling("GPU") < 1:
        raise UserError(NO_GPU)
    with_a_gpu(found, config, note)
    return _probe(config.dtype)


def with_a_gpu(found: Capacity, config: RunConfig, note: Callable[[str], None]) -> Capacity:
    """The cluster once it has a GPU. Raises TryAgainError if none comes."""
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
    """Ask a GPU of the cluster for its name and native precision; the driver may have none.

    Raises TryAgainError if other jobs hold them all for so long.
    """

    @ray.remote(num_gpus=1, num_cpus=0)
    def ask() -> Device:
        return Device("cuda", torch.cuda.get_device_name(), resolve_dtype(dtype, "cuda"))

    asked = ask.remote()
    try:
        return ray.get(asked, timeout=GPU_PROBE_SECONDS)
    except GetTimeoutError:
        ray.cancel(asked)
        raise TryAgainError(
            f"no GPU of the cluster was free for {GPU_PROBE_SECONDS} s (see `ray status`): run it "
            "again later, or use --device cpu"
        ) from None
