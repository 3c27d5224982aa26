"""CPU or GPU, decided once, before anything is written, and recorded with the run.

A cluster that can start GPUs is never silently run on its CPUs.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass

import ray
import torch
from ray.autoscaler.sdk import request_resources

from detr.card import resolve_dtype
from pipeline.cluster import connect, is_local, resources
from pipeline.config import RunConfig
from pipeline.errors import TryAgainError, UserError

GPU_PROBE_SECONDS = 600


@dataclass(frozen=True)
class Device:
    """Where the model runs and in which precision: part of what a run records."""

    kind: str  # "cpu" or "cuda"
    name: str
    dtype: str


def wait_for_gpu(seconds: int) -> None:
    """Ask the autoscaler for a GPU and wait until its node is there. Raises TryAgainError."""
    deadline = time.monotonic() + seconds
    request_resources(bundles=[{"GPU": 1}])
    try:
        while ray.cluster_resources().get("GPU", 0) < 1:
            if time.monotonic() > deadline:
                raise TryAgainError(
                    f"no GPU node has joined the cluster within {seconds} s: raise "
                    "--wait-for-gpus, or use --device cpu"
                )
            time.sleep(2)
    finally:
        request_resources(bundles=[])  # from here on the work itself is the demand


def decide_device(config: RunConfig) -> Device:
    """CPU or GPU, its name and the precision. Connects to Ray only where the answer needs it."""
    if config.device == "cpu":
        return _cpu(config)
    if is_local(config.address):
        if torch.cuda.is_available():
            dtype = resolve_dtype(config.dtype, "cuda")
            return Device("cuda", torch.cuda.get_device_name(), dtype)
        if config.device == "cuda":
            raise UserError(
                "--device cuda: torch finds no GPU on this machine; use --device cpu, or give the "
                "cluster's --address"
            )
        return _cpu(config)
    connect(config.address)
    now, most = resources()
    gpus = max(now.get("GPU", 0), (most or {}).get("GPU", 0))
    if config.device == "auto" and gpus < 1:
        return _cpu(config)
    if gpus < 1:
        raise UserError(
            "--device cuda: the cluster has no GPU and its autoscaler may start none; use "
            "--device cpu, or give Ray the GPUs (`ray start --num-gpus`)"
        )
    if now.get("GPU", 0) < 1:
        wait_for_gpu(config.wait_for_gpus)
    return _probe(config.dtype)


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
    """Ask a GPU of the cluster for its name and native precision; the driver may have none."""

    @ray.remote(num_gpus=1, num_cpus=0)
    def ask() -> Device:
        return Device("cuda", torch.cuda.get_device_name(), resolve_dtype(dtype, "cuda"))

    return ray.get(ask.remote(), timeout=GPU_PROBE_SECONDS)
