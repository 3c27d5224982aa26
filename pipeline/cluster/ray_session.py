"""Connects to a Ray cluster, or starts Ray on this machine.

Without an address and without RAY_ADDRESS, Ray runs on this machine alone and stops with the
process.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import ray

from pipeline.cluster.ray_internals import print_worker_logs_to_stderr, show_command_line
from pipeline.errors import TryAgainError, UserError
from pipeline.scratch import private_folder, temporary_folder
from pipeline.secrets import without_values

STARTS: Final = 3
SLOW_START: Final = "timed out during startup"
IDLE_MILLISECONDS: Final = 300_000
# The longest path of a Unix socket, and what Ray appends to its folder.
SOCKET_BYTES: Final = 107
RAY_BYTES: Final = len("/session_2026-11-27_13-00-00_123456_4194304/sockets/plasma_store.123")
SHARED_MEMORY: Final = "/dev/shm"
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def join_ray(address: str | None, *, verbose: bool = False) -> None:
    """Connect to the cluster at `address` or RAY_ADDRESS, or start Ray on this machine. Idempotent.

    Raises TryAgainError if no cluster answers or Ray doesn't start.
    """
    if ray.is_initialized():
        return
    with _own_sigterm():
        _connect(address, verbose)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore this process's SIGTERM handler, which `ray.init` replaces by `sys.exit(15)`.

    Raises KeyboardInterrupt if Ray's handler was called within the block.
    """
    handler = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        try:
            yield
        finally:
            if main and callable(handler):
                signal.signal(signal.SIGTERM, handler)
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from stop


def _connect(address: str | None, verbose: bool) -> None:
    print_worker_logs_to_stderr()
    _keep_option_values()
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if verbose else "1")
    if not verbose:  # Ray's core warns of what Ray Data does by design (ray#53727)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.INFO if verbose else logging.ERROR
    if is_local(address):
        # Else Ray would enable token authentication and write a token file.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        with nullcontext() if verbose else _without_native_stderr():
            start_here(log_to_driver=verbose, logging_level=level)
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


def start_here(**settings: Any) -> None:
    """Start Ray on this machine. settings: of `ray.init`.

    Ray's processes must start within 30 s; a busy machine may take longer, so there are `STARTS`
    tries. Idle workers are kept for 5 min: by default Ray ends them after 1 s if there are more
    workers than CPUs, and a new worker takes 2 s for imports. Raises TryAgainError if Ray doesn't
    start, UserError for too little shared memory.
    """
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_MILLISECONDS))
    _reach_this_machine_without_proxy()
    _keep_option_values()
    if (folder := short_folder()) is not None:
        settings = {**settings, "_temp_dir": folder}
    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", include_dashboard=False, **settings)
            return
        except Exception as error:
            if SLOW_START not in str(error):
                if (why := unfit_machine(error)) is not None:
                    raise UserError(why) from error
                raise
            ray.shutdown()
            if not left:
                raise TryAgainError(
                    "Ray did not start on this machine, most likely because it is too busy: run "
                    "the same command again"
                ) from error


def unfit_machine(error: Exception) -> str | None:
    """The sentence if Ray failed for lack of shared memory (/dev/shm), else None."""
    first_line = str(error).strip().split("\n", 1)[0]
    if not Path(SHARED_MEMORY).is_dir() or SHARED_MEMORY in str(error):
        return (
            f"Ray can't start on this machine without room in {SHARED_MEMORY}: {first_line} (give "
            "the container more, as docker does with --shm-size=2g, and Kubernetes with an "
            "emptyDir of medium Memory)"
        )
    return None


def short_folder() -> str | None:
    """A folder for Ray in which paths of sockets are short enough; None if Ray's default will do.

    Batch schedulers and macOS set long temporary folders. Raises UserError if no folder will do.
    """
    wanted = os.environ.get("RAY_TMPDIR") or temporary_folder()
    if len(os.fsencode(wanted)) + len("/ray") + RAY_BYTES <= SOCKET_BYTES:
        return None
    for parent in ("/tmp", "/var/tmp", "/dev/shm"):
        if folder := private_folder(parent, "ray"):
            return str(folder)
    raise UserError(
        f"the temporary folder {wanted} is too long for Ray, whose sockets may have paths of "
        f"{SOCKET_BYTES} bytes: set RAY_TMPDIR to a shorter one"
    )


def _reach_this_machine_without_proxy() -> None:
    """Add this machine's addresses to `no_proxy`: Ray's processes connect to each other by them."""
    names = {name.lower() for name in os.environ}
    if names.isdisjoint(PROXIES):
        return
    addresses = ["localhost", "127.0.0.1", "::1", ray.util.get_node_ip_address()]
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, *addresses]))


def _keep_option_values() -> None:
    """Hide credentials in this process's command line, which Ray's dashboard reads and shows."""
    shown = without_values(sys.orig_argv)
    if shown != sys.orig_argv:
        show_command_line(shlex.join(shown))


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Drop what Ray's core prints to file descriptor 2; it also raises its errors."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def is_local(address: str | None) -> bool:
    """True if `join_ray` would start Ray on this machine."""
    return address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)
