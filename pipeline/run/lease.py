"""One writer per folder: a lease object that is renewed while the job works, and never deleted.

Time is the store's: an age is the difference of two of its own modification times, so clocks of
two hosts need not agree. A lease is taken over when it was not renewed for `EXPIRES_SECONDS`, at
once when its owner is a dead process of this machine, or an earlier try of the same submission to
the same cluster. Where the store has no times, it is watched for as long instead.

Each holder has an epoch, one higher than any before; what it moves bears it (fenced.py). Taking
over and renewing replace exactly the content that was judged: of two processes that find the same
dead owner one wins, and an owner that slept through its lease cannot take it back.

A holder stops itself at two thirds of `EXPIRES_SECONDS`, by a clock that runs while the machine is
suspended, and asks that clock before each write that others go by. A write that began in time ends
in time, since it is tried for a third of `EXPIRES_SECONDS` at most (s3.CONTROL_ALL_SECONDS).
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
from pipeline.storage.entry import as_user_error, store_failure
from pipeline.storage.storage import Storage

LEASE_FILE: Final = "lease.json"
CLOCK_FILE: Final = "lease.clock"
RENEW_SECONDS: Final = 20.0
EXPIRES_SECONDS: Final = 120.0
HOLDS: Final = 2 / 3  # of the time to expiry; the last third is for writes that are under way
WATCH_SECONDS: Final = 1.0
ORPHAN_SECONDS: Final = 100.0  # Ray ends a driver that has not heard of its head for 60 s
# Simulated to interrupt the main thread, never sent. SIGINT will not do: it is ignored in the
# background of a script, and an ignored signal that is simulated does nothing.
LOST_SIGNAL: Final = signal.SIGUSR2
CLUSTER_VARIABLE: Final = "PANOPTIC_CLUSTER"  # which cluster runs this; set by `submit`


class Host(Protocol):
    """The process that a holder lives in: its clock, its threads."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...

    def beside(self, hold: Hold) -> Callable[[], None]:
        """Renew the lease and watch its time beside the block; returns what ends both."""
        ...

    def interruptible(self) -> Any:
        """A context in which a lost lease interrupts the block."""
        ...


@contextmanager
def lease(storage: Storage, *, of_nights: bool = False, host: Host | None = None) -> Iterator[Hold]:
    """Hold the folder for the block. Raises LeaseError naming the holder.

    If the lease is lost in the block, the main thread is interrupted, and this raises LeaseError
    (another job has it) or TryAgainError (the store can't be reached).

    of_nights: the folder is one of nights; its lease says so, from the first night on.
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
    """This process."""

    def now(self) -> float:
        """Seconds of a clock that runs on while the machine is suspended, where there is one."""
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
            threading.Thread(target=each, name="lease", daemon=True) for each in (renew, watch)
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
        """Make LOST_SIGNAL a KeyboardInterrupt; the main thread alone may, and is interrupted."""

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
    """This process's hold on a folder."""

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
        """Raises LeaseError naming the holder."""
        while True:
            began = self.host.now()
            found = self.storage.look(LEASE_FILE)
            holder = _parsed(found)
            if found is not None and not holder.get("released"):
                self._check_abandoned(found, holder)
            self.epoch = 1 + self._last_epoch(holder)
            if holder.get("of_nights"):  # it stays one, whoever holds it
                self._owner["of_nights"] = True
            content = self._next()
            # Read first: a store that ignores conditions would write over a living lease.
            if found is None and self.storage.write_if_absent(LEASE_FILE, content):
                break
            if found is not None and self.storage.swap(LEASE_FILE, found, content):
                break
        if self.storage.look(LEASE_FILE) != content:  # there the last of two that start wins
            raise LeaseError(f"{self.storage.url}: another job took the lease at the same moment")
        self._content, self.renewed = content, began
        if not holder.get("clean"):  # the one before may have something under way
            for path in (LATEST_FILE, BASELINE_FILE):
                fenced.seal(self.storage, path, self)

    def check(self) -> None:
        """Raises LeaseError or TryAgainError if the lease is no longer this process's."""
        held = HOLDS * EXPIRES_SECONDS
        if self.lost is None and self.host.now() - self.renewed > held:
            self.lost = TryAgainError(
                f"{self.storage.url} could not be written for {held:.0f} s, or this process stood "
                "still, so its lease is given up: run the same command again"
            )
        if self.lost is not None:
            raise self.lost

    def renew(self) -> float:
        """Renew the lease once; returns how many seconds from now it is to be done again."""
        began = self.host.now()
        content = self._next()
        try:
            while not self.storage.swap(LEASE_FILE, self._content, content):
                found = self.storage.look(LEASE_FILE)
                if _parsed(found).get("owner") != self._owner["owner"]:
                    self.lost = LeaseError(
                        f"{self.storage.url}: another job has taken the lease over, because this "
                        f"one did not renew it for {EXPIRES_SECONDS:.0f} s; this one stops"
                    )
                    return 0.0
                assert found is not None  # it has an owner
                self._content = found  # of a renewal whose answer was lost
        # Whatever the store's client raises: it is tried again while the lease is still good.
        except Exception:  # noqa: BLE001
            return RENEW_SECONDS / 4
        self._content, self.renewed = content, began
        return RENEW_SECONDS

    def release(self) -> None:
        """Say that the lease is free; a store that fails now lets it expire."""
        with suppress(Exception):
            kept = {
                name: self._owner[name] for name in ("owner", "of_nights") if name in self._owner
            }
            free = {**kept, "epoch": self.epoch, "released": True, "clean": not self.unsure}
            content = json.dumps(free).encode()
            while not self.storage.swap(LEASE_FILE, self._content, content):
                found = self.storage.look(LEASE_FILE)
                if found is None or _parsed(found).get("owner") != self._owner["owner"]:
                    return
                self._content = found

    def _next(self) -> bytes:
        """Every renewal is another content, so that no older one can be swapped for it."""
        renewal = {"epoch": self.epoch, "renewal": uuid.uuid4().hex}
        return json.dumps({**self._owner, **renewal}).encode()

    def _last_epoch(self, holder: dict[str, Any]) -> int:
        """The highest epoch so far, also where the lease was deleted by hand."""
        if "epoch" in holder:
            return int(holder["epoch"])
        return max(fenced.epoch_of(self.storage, path) for path in (LATEST_FILE, BASELINE_FILE))

    def _check_abandoned(self, content: bytes, holder: dict[str, Any]) -> None:
        """Raises LeaseError if the holder is alive as far as anybody can tell."""
        here = self._is_here(holder)
        if here and self._is_dead(holder):
            return
        again = bool(holder.get("submission")) and self._is_same(holder, "submission")
        same_cluster = self._is_same(holder, "cluster")
        if again and not here and holder.get("cluster") and same_cluster:
            return  # a cluster runs one try at a time
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
        """Wait for the lease of an earlier try, whose driver may outlive its head for a while.

        False if it is still renewed after that: the same command works on two clusters.
        """
        until = self.host.now() + ORPHAN_SECONDS
        while self._is_renewed(content, seconds):
            if self.host.now() > until:
                return False
            content = self.storage.look(LEASE_FILE) or b""
            seconds = EXPIRES_SECONDS
        return True

    def _is_renewed(self, content: bytes, seconds: float) -> bool:
        """Watch the lease for so long; False if nobody renewed it, or it was given back."""
        until = self.host.now() + seconds
        while self.host.now() < until:
            self.host.sleep(min(RENEW_SECONDS / 4, seconds))
            found = self.storage.look(LEASE_FILE)
            if found != content:
                return found is not None and not _parsed(found).get("released")
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
        # The number lives, but another process may bear it by now, as in a restarted container.
        return holder.get("process") not in (None, process_start(holder["pid"]))


def submission() -> str:
    """The Ray submission that this process is the driver of; empty if it is none."""
    with suppress(ValueError, AttributeError):
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    return ""


def read_holder(storage: Storage) -> dict[str, Any] | None:
    """Who is writing the folder now, as its lease says; None if nobody is."""
    try:
        holder = _parsed(storage.read(LEASE_FILE))
    except FileNotFoundError:
        return None
    return None if holder.get("released") or "pid" not in holder else holder


def of_nights(storage: Storage) -> bool:
    """True if a night has ever held the folder."""
    return bool(_parsed(storage.look(LEASE_FILE)).get("of_nights"))


def _parsed(content: bytes | None) -> dict[str, Any]:
    """A lease as it was written; empty for one that is absent, or was written in half."""
    with suppress(ValueError):
        found = json.loads(content or b"{}")
        if isinstance(found, dict):
            return found
    return {}


def _age(storage: Storage) -> float | None:
    """Seconds since the lease was renewed, by the store's clock; None if the store has no times."""
    storage.write(CLOCK_FILE, b"")
    renewed = storage.info(LEASE_FILE).last_modified
    now = storage.info(CLOCK_FILE).last_modified
    if not isinstance(renewed, datetime) or not isinstance(now, datetime):
        return None
    return (now - renewed).total_seconds()
