"""Ray as this job finds it: connect, or start it on this machine.

Without an address, and outside a Ray job, Ray runs on this machine alone and stops with the
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
from ray._private import worker as ray_worker
from ray._raylet import setproctitle  # type: ignore[attr-defined]

from pipeline.errors import TryAgainError, UserError
from pipeline.scratch import temporary_folder
from pipeline.secrets import without_values

STARTS: Final = 3
SLOW_START: Final = "timed out during startup"
IDLE_MILLISECONDS: Final = 300_000
# What a socket's path may hold, and what Ray adds to its folder: a session's and a socket's name.
SOCKET_BYTES: Final = 107
RAY_BYTES: Final = len("/session_2026-11-27_13-00-00_123456_4194304/sockets/plasma_store.123")
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def connect(address: str | None, *, verbose: bool = False) -> None:
    """Join the cluster at `address` (or of RAY_ADDRESS), or start Ray here. Idempotent."""
    if ray.is_initialized():
        return
    with _own_sigterm():
        _connect(address, verbose)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: `ray.init` puts its own, `sys.exit(15)`, in place.

    Raises KeyboardInterrupt where Ray's was called, before this one is back.
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
    _keep_stdout_for_results()
    _keep_option_values()
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if verbose else "1")
    if not verbose:  # Ray's core warns on stderr of what Ray Data does by design (ray#53727)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.INFO if verbose else logging.ERROR
    if is_local(address):
        # Ray would switch token authentication on and write a token file for a cluster of one.
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
    """Start Ray on this machine. Raises TryAgainError if it doesn't come up.

    Ray gives its own processes 30 s, which a busy machine may exceed: then it is tried again.
    A worker without a task may wait for its next one: Ray ends it after a second where there are
    more workers than CPUs, and the next unit's fetch or write would pay two seconds of imports.
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
                raise
            ray.shutdown()
            if not left:
                raise TryAgainError(
                    "Ray did not start on this machine, most likely because it is too busy: run "
                    "the same command again"
                ) from error


def short_folder() -> str | None:
    """A folder for Ray in which sockets' paths are short enough; None where Ray's own will do.

    Schedulers and macOS set long temporary folders. Raises UserError if there is no shorter one.
    """
    wanted = os.environ.get("RAY_TMPDIR") or temporary_folder()
    if len(os.fsencode(wanted)) + len("/ray") + RAY_BYTES <= SOCKET_BYTES:
        return None
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        folder = Path(place, f"ray-{os.getuid()}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return str(folder)
    raise UserError(
        f"the temporary folder {wanted} is too long for Ray, whose sockets may have paths of "
        f"{SOCKET_BYTES} bytes: set RAY_TMPDIR to a shorter one"
    )


def _reach_this_machine_without_proxy() -> None:
    """Ray's processes talk to each other by this machine's address: no proxy leads there."""
    names = {name.lower() for name in os.environ}
    if names.isdisjoint(PROXIES):
        return
    own = ["localhost", "127.0.0.1", "::1", ray.util.get_node_ip_address()]
    for name in ("no_proxy", "NO_PROXY"):
        there = [each for each in os.environ.get(name, "").split(",") if each.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*there, *own]))


def _keep_stdout_for_results() -> None:
    """Send to stderr what Ray prints in this process of its nodes and workers.

    That a node died it prints on stdout whatever `log_to_driver` says, in the midst of JSON.
    """
    ray_worker.print_worker_logs = _print_to_stderr


def _keep_option_values() -> None:
    """Keep credentials from Ray's dashboard, which shows the command line of each driver.

    It asks the system for it, so there, too, values of options are left out from now on.
    """
    shown = without_values(sys.orig_argv)
    if shown != sys.orig_argv:
        setproctitle(shlex.join(shown))


def _print_to_stderr(data: dict[str, Any], print_file: Any, *rest: Any) -> None:
    _print_worker_logs(data, sys.stderr, *rest)


_print_worker_logs: Final = ray_worker.print_worker_logs


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
