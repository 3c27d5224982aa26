"""Ray as this job finds it: connect, or start it on this machine; what it has; what device it is.

Without an address, and outside a Ray job, Ray runs on this machine alone and stops with the
process. The device is decided once, before anything is written, and recorded with the run.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import ray
import torch

from detr.card import resolve_dtype
from pipeline.config import RunConfig
from pipeline.errors import TryAgainError, UserError

GPU_PROBE_SECONDS = 600


@dataclass(frozen=True)
class Device:
    """Where the model runs and in which precision: part of what a run records."""

    kind: str  # "cpu" or "cuda"
    name: str
    dtype: str


def connect(address: str | None, *, verbose: bool = False) -> None:
    """Join the cluster at `address` (or of RAY_ADDRESS), or start Ray here. Idempotent."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if verbose else "1")
    if not verbose:  # Ray's core warns on stderr of what Ray Data does by design (ray#53727)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.INFO if verbose else logging.ERROR
    if is_local(address):
        # Ray would switch token authentication on and write a token file for a cluster of one.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        with nullcontext() if verbose else _without_native_stderr():
            ray.init(
                address="local", include_dashboard=False, log_to_driver=verbose, logging_level=level
            )
        logging.getLogger("ray.data").setLevel(level)
        return
    try:
        ray.init(address=address or "auto", log_to_driver=verbose, logging_level=level)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        first_line = str(error).split("\n", 1)[0]
        raise TryAgainError(
            f"no Ray cluster answers at {where}: {first_line} (check --address, or leave it out to "
            "run on this machine)"
        ) from error
    logging.getLogger("ray.data").setLevel(level)


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Drop what Ray's core prints to file descriptor 2: its errors come as exceptions besides."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_local(address: str | None) -> bool:
    """True if Ray is to run on this machine alone."""
    return address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)


def resources() -> tuple[Mapping[str, float], Mapping[str, float] | None]:
    """What the cluster has, and what its autoscaler may grow it to (None: it doesn't say)."""
    from ray._private.state import state

    return ray.cluster_resources(), state.get_max_resources_from_cluster_config()


def wait_for_gpu(seconds: int) -> None:
    """Wait until a node with a GPU is there, as a cluster that scales from zero needs."""
    deadline = time.monotonic() + seconds
    while ray.cluster_resources().get("GPU", 0) < 1:
        if time.monotonic() > deadline:
            raise TryAgainError(
                f"no GPU node has joined the cluster within {seconds} s: raise --wait-for-gpus, or "
                "use --device cpu"
            )
        time.sleep(2)


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
    return Device(
        "cpu", platform.processor() or platform.machine(), resolve_dtype(config.dtype, "cpu")
    )


def _probe(dtype: str) -> Device:
    """Ask a GPU of the cluster for its name and native precision; the driver may have none."""

    @ray.remote(num_gpus=1, num_cpus=0)
    def ask() -> Device:
        return Device("cuda", torch.cuda.get_device_name(), resolve_dtype(dtype, "cuda"))

    return ray.get(ask.remote(), timeout=GPU_PROBE_SECONDS)
