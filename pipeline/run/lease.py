"""One writer per folder: `lease.json`, which the holder renews while it works and never deletes.

The age of a lease is the difference of two modification times of the store, so the clocks of hosts
need not agree. Another process takes a lease over if it was not renewed for `EXPIRES_SECONDS`, or
at once if the holder is a dead process of this machine or an earlier try of the same submission to
the same cluster. If the store has no modification times, the other process watches the lease for
`EXPIRES_SECONDS`.

Each holder has an epoch, higher than all earlier ones, and its moves write this epoch (fenced.py).
Taking over and renewing replace only the content that was read: of two processes that find the same
dead holder one wins, and a holder that did not renew in time cannot take its lease back.

A holder stops itself after two thirds of `EXPIRES_SECONDS` without renewal, by a clock that runs
while the machine is suspended, and reads that clock before each plan, snapshot or pointer that it
writes. Such a write takes at most a third of `EXPIRES_SECONDS` (s3.CONTROL_ALL_SECONDS), so it ends
before the lease expires.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final, Protocol

from pipeline.errors import LeaseError, TryAgainError, UserError
from pipeline.layout import BASELINE_FILE, LATEST_FILE
from pipeline.processes import alive, machine, process_start
from pipeline.run import fenced
from pipeline.storage.conditional import Clock
from pipeline.storage.entry import as_user_error, store_failure
from pipeline.storage.storage import Storage

LEASE_FILE: Final = "lease.json"
CLOCK_FILE: Final = "lease.clock"
RENEW_SECONDS: Final = 20.0
EXPIRES_SECONDS: Final = 120.0
HOLDS: Final = 2 / 3  # of EXPIRES_SECONDS; the last third is for writes that have begun
WATCH_SECONDS: Final = 1.0
ORPHAN_SECONDS: Final = 100.0  # Ray ends a driver 60 s after it lost its head
# Simulated in this process to interrupt the main thread. SIGINT would have no effect in the
# background of a script, where it is ignored.
LOST_SIGNAL: Final = signal.SIGUSR2
CLUSTER_VARIABLE: Final = "PANOPTIC_CLUSTER"  # which cluster runs this; set by `submit`


class Host(Clock, Protocol):
    """Clock, threads and interrupts of a holder; tests replace it."""

    def beside(self, hold: Hold) -> Callable[[], None]:
        """Renew the lease and check it in threads; returns a function that ends them."""
        ...

    def interruptible(self) -> Any:
        """A context manager; a lost lease interrupts its block."""
        ...


@contextmanager
def lease(storage: Storage, *, of_nights: bool = False, host: Host | None = None) -> Iterator[Hold]:
    """Hold the folder's lease within the block. Raises LeaseError naming another holder.

    If the lease is lost in the block, the main thread is interrupted, and LeaseError (another job
    has the lease) or TryAgainError (the store can't be reached) is raised.

    of_nights: record in the lease, for ever, that the folder is one of nights.
    """
    hold = Hold(storage, host or Process(), of_nights=of_nights)
    try:
        hold.take()
    except UserError:
        raise
    except Exception as error:
        what = f"can't write to {storage.url}"
        raise store_failure(error, what) or as_user_error(error, what) from error
    done = hold.host.beside(hold)
    try:
        with hold.host.interruptible():
            yield hold
    except BaseException as error:
        if hold.lost is None or error is hold.lost:
            raise
        raise hold.lost from error
    finally:
        done()
        hold.release()


class Process:
    """The `Host` outside tests: this process."""

    def now(self) -> float:
        """Seconds of a clock that, on Linux, also runs while the machine is suspended."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def beside(self, hold: Hold) -> Callable[[], None]:
        stop = threading.Event()

        def renew() -> None:
            wait = RENEW_SECONDS
            while hold.lost is None and not stop.wait(wait):
                wait = hold.renew()

        def watch() -> None:
            while not stop.wait(min(WATCH_SECONDS, RENEW_SECONDS)):
                with suppress(UserError):
                    hold.check()
                    continue
                _thread.interrupt_main(LOST_SIGNAL)
                return

        threads = [
            threading.Thread(target=loop, name="lease", daemon=True) for loop in (renew, watch)
        ]
        for thread in threads:
            thread.start()

        def done() -> None:
            stop.set()
            for thread in threads:
                thread.join()

        return done

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Make LOST_SIGNAL a KeyboardInterrupt; without effect outside the main thread."""

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(LOST_SIGNAL, interrupt)
        try:
            yield
        finally:
            signal.signal(LOST_SIGNAL, former or signal.SIG_DFL)


class Hold:
    """This process's lease of a folder; the `Fence` of its moves."""

    def __init__(self, storage: Storage, host: Host, *, of_nights: bool = False) -> None:
        self.storage = storage
        self.host = host
        self.epoch = 0
        self.unsure = False
        self.lost: UserError | None = None
        self.renewed = 0.0
        self._content = b""
        self._owner: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "submission": submission(),
            "cluster": os.environ.get(CLUSTER_VARIABLE, ""),
            **({"of_nights": True} if of_nights else {}),
        }

    def take(self) -> None:
        """Take the lease. Raises LeaseError naming another holder."""
        while True:
            began = self.host.now()
            current = self.storage.look(LEASE_FILE)
            holder = _parsed(current)
            if current is not None and not holder.get("released"):
                self._check_abandoned(current, holder)
            self.epoch = 1 + self._last_epoch(holder)
            if holder.get("of_nights"):  # stays so under later holders
                self._owner["of_nights"] = True
            content = self._next()
            # Read before the write: a store that ignores conditions would overwrite a live lease.
            if current is None and self.storage.write_if_absent(LEASE_FILE, content):
                break
            if current is not None and self.storage.swap(LEASE_FILE, current, content):
                break
        if self.storage.look(LEASE_FILE) != content:  # the store ignores conditions
            raise LeaseError(f"{self.storage.url}: another job took the lease at the same moment")
        self._content, self.renewed = content, began
        if not holder.get("clean"):  # the earlier holder may have a write under way
            for path in (LATEST_FILE, BASELINE_FILE):
                fenced.seal(self.storage, path, self)

    def check(self) -> None:
        """Raises LeaseError or TryAgainError if this process no longer holds the lease."""
        held = HOLDS * EXPIRES_SECONDS
        if self.lost is None and self.host.now() - self.renewed > held:
            self.lost = TryAgainError(
                f"{self.storage.url} could not be written for {held:.0f} s, or this process stood "
                "still, so its lease is given up: run the same command again"
            )
        if self.lost is not None:
            raise self.lost

    def renew(self) -> float:
        """Renew the lease once; returns the seconds until the next renewal."""
        began = self.host.now()
        content = self._next()
        try:
            if not self._replace(content):
                self.lost = LeaseError(
                    f"{self.storage.url}: another job has taken the lease over, because this one "
                    f"did not renew it for {EXPIRES_SECONDS:.0f} s; this one stops"
                )
                return 0.0
        # Any exception of the store's client: try again soon; `check` limits the time.
        except Exception:  # noqa: BLE001
            return RENEW_SECONDS / 4
        self._content, self.renewed = content, began
        return RENEW_SECONDS

    def release(self) -> None:
        """Mark the lease as released; if the store fails now, the lease expires."""
        with suppress(Exception):
            kept = {
                name: self._owner[name] for name in ("owner", "of_nights") if name in self._owner
            }
            free = {**kept, "epoch": self.epoch, "released": True, "clean": not self.unsure}
            self._replace(json.dumps(free).encode())

    def _replace(self, content: bytes) -> bool:
        """Replace the content of this holder's lease; False if another has taken it over."""
        while not self.storage.swap(LEASE_FILE, self._content, content):
            current = self.storage.look(LEASE_FILE)
            if current is None or _parsed(current).get("owner") != self._owner["owner"]:
                return False
            self._content = current  # of a renewal whose answer was lost
        return True

    def _next(self) -> bytes:
        """The next content of the lease: unique, so that a late renewal can't replace it."""
        renewal = {"epoch": self.epoch, "renewal": uuid.uuid4().hex}
        return json.dumps({**self._owner, **renewal}).encode()

    def _last_epoch(self, holder: dict[str, Any]) -> int:
        """The highest epoch so far, also if the lease was deleted by hand."""
        if "epoch" in holder:
            return int(holder["epoch"])
        return max(fenced.epoch_of(self.storage, path) for path in (LATEST_FILE, BASELINE_FILE))

    def _check_abandoned(self, content: bytes, holder: dict[str, Any]) -> None:
        """Raises LeaseError unless the holder is known to be dead or its lease has expired."""
        here = self._is_here(holder)
        if here and self._is_dead(holder):
            return
        again = bool(holder.get("submission")) and self._is_same(holder, "submission")
        same_cluster = self._is_same(holder, "cluster")
        if again and not here and holder.get("cluster") and same_cluster:
            return  # a cluster runs one try of a submission at a time
        age = _age(self.storage)
        if age is not None and age > EXPIRES_SECONDS:
            return
        of_lost_head = again and not (here and same_cluster)
        if of_lost_head and self._runs_out(content, EXPIRES_SECONDS - (age or 0.0)):
            return
        if age is None and not of_lost_head and not self._is_renewed(content, EXPIRES_SECONDS):
            return
        raise LeaseError(
            f"{self.storage.url} is being written by process {holder.get('pid', '?')} on "
            f"{holder.get('host', '?')} (lease renewed {age or 0.0:.0f} s ago): wait for it, or "
            "stop it"
        )

    def _runs_out(self, content: bytes, seconds: float) -> bool:
        """Wait until the lease of an earlier try expires: its driver may outlive the Ray head.

        False if it is renewed for longer than `ORPHAN_SECONDS`: the command runs on two clusters.
        """
        until = self.host.now() + ORPHAN_SECONDS
        while self._is_renewed(content, seconds):
            if self.host.now() > until:
                return False
            content = self.storage.look(LEASE_FILE) or b""
            seconds = EXPIRES_SECONDS
        return True

    def _is_renewed(self, content: bytes, seconds: float) -> bool:
        """Watch the lease for so many seconds; False if it was not renewed or is released."""
        until = self.host.now() + seconds
        while self.host.now() < until:
            self.host.sleep(min(RENEW_SECONDS / 4, seconds))
            current = self.storage.look(LEASE_FILE)
            if current != content:
                return current is not None and not _parsed(current).get("released")
        return False

    def _is_same(self, holder: dict[str, Any], name: str) -> bool:
        return holder.get(name) == self._owner[name]

    def _is_here(self, holder: dict[str, Any]) -> bool:
        """True if the holder is, or was, a process of this machine."""
        mine = self._owner["machine"]
        return self._is_same(holder, "host") and holder.get("machine", mine) == mine

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        if not alive(holder["pid"]):
            return True
        # Another process may have this number by now, as in a restarted container.
        return holder.get("process") not in (None, process_start(holder["pid"]))


def submission() -> str:
    """The id of the Ray job submission whose driver is this process; empty if there is none."""
    with suppress(ValueError, AttributeError):
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    return ""


def read_holder(storage: Storage) -> dict[str, Any] | None:
    """The content of the folder's lease (host, pid ...); None if absent or released."""
    try:
        holder = _parsed(storage.read(LEASE_FILE))
    except FileNotFoundError:
        return None
    return None if holder.get("released") or "pid" not in holder else holder


def of_nights(storage: Storage) -> bool:
    """True if the folder's lease records that it is a folder of nights."""
    return bool(_parsed(storage.look(LEASE_FILE)).get("of_nights"))


def _parsed(content: bytes | None) -> dict[str, Any]:
    """The content of a lease; empty if it is absent or no JSON object."""
    with suppress(ValueError):
        value = json.loads(content or b"{}")
        if isinstance(value, dict):
            return value
    return {}


def _age(storage: Storage) -> float | None:
    """Seconds since the last renewal, by the store's clock; None if the store has no times."""
    storage.write(CLOCK_FILE, b"")
    renewed = storage.info(LEASE_FILE).last_modified
    now = storage.info(CLOCK_FILE).last_modified
    if not isinstance(renewed, datetime) or not isinstance(now, datetime):
        return None
    return (now - renewed).total_seconds()
