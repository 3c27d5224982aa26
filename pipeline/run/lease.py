"""One writer per run folder: a lease object, made only if absent, renewed while the job works.

Time is the store's: an age is the difference of two of its own modification times, so clocks of
two hosts need not agree. A lease is taken over when it was not renewed for `EXPIRES_SECONDS`, at
once when its owner is a dead process of this machine or an earlier try of the same submission.

Taking over and renewing replace exactly the content that was judged (If-Match): of two processes
that find the same dead owner one wins, and an owner that slept through its lease cannot take it
back from its successor, but stops.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final

from pipeline.errors import LeaseError, TryAgainError
from pipeline.processes import alive, machine, process_start
from pipeline.storage.entry import as_user_error, store_failure
from pipeline.storage.storage import Storage

LEASE_FILE: Final = "lease.json"
CLOCK_FILE: Final = "lease.clock"
RENEW_SECONDS: Final = 20.0
EXPIRES_SECONDS: Final = 120.0
# Simulated to interrupt the main thread, never sent. SIGINT will not do: it is ignored in the
# background of a script, and an ignored signal that is simulated does nothing.
LOST_SIGNAL: Final = signal.SIGUSR2


@contextmanager
def lease(storage: Storage) -> Iterator[None]:
    """Hold the run folder for the block. Raises LeaseError naming the holder.

    If the lease is lost in the block, the main thread is interrupted, and this raises LeaseError
    (another job has it) or TryAgainError (the store can't be reached).
    """
    held = _Lease(storage)
    try:
        held.take()
    except LeaseError:
        raise
    except Exception as error:
        what = f"can't write to {storage.url}"
        raise store_failure(error, what) or as_user_error(error, what) from error
    renewer = threading.Thread(target=held.renew, name="lease", daemon=True)
    try:
        with _interruptible():
            renewer.start()
            yield
    except BaseException as error:
        if held.lost is None:
            raise
        raise held.lost from error
    finally:
        held.stop.set()
        renewer.join()
        held.release()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make LOST_SIGNAL a KeyboardInterrupt; only the main thread may say so, and is interrupted."""

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


class _Lease:
    """This process's hold on a run folder."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner: dict[str, Any] = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "submission": os.environ.get("RAY_JOB_SUBMISSION_ID", ""),
        }
        self.content = b""
        self.stop = threading.Event()
        self.lost: Exception | None = None

    def take(self) -> None:
        content = self._next()
        while True:
            # Read first: a store that ignores If-None-Match would write over a living lease.
            found = self._read()
            if found is None:
                if self.storage.write_if_absent(LEASE_FILE, content):
                    break
                continue
            if found == content:  # the answer to an earlier try of this very write was lost
                break
            self._check_abandoned(found)
            if self.storage.swap(LEASE_FILE, found, content):
                break
        if self._read() != content:  # such a store lets the last of those that start at once win
            raise LeaseError(f"{self.storage.url}: another job took the lease at the same moment")
        self.content = content

    def renew(self) -> None:
        renewed = time.monotonic()
        wait = RENEW_SECONDS
        while not self.stop.wait(wait):
            content = self._next()
            try:
                mine = self.storage.swap(LEASE_FILE, self.content, content)
                mine = mine or self._read() == content
            # Whatever the store's client raises: it is tried again while the lease is still good.
            except Exception:  # noqa: BLE001
                wait = RENEW_SECONDS / 4
                if time.monotonic() - renewed < EXPIRES_SECONDS:
                    continue
                self.lost = TryAgainError(
                    f"{self.storage.url} could not be written for {EXPIRES_SECONDS:.0f} s, so the "
                    "lease has run out: run the same command again"
                )
            else:
                if mine:
                    self.content, renewed, wait = content, time.monotonic(), RENEW_SECONDS
                    continue
                self.lost = LeaseError(
                    f"{self.storage.url}: another job has taken the lease over, because this one "
                    f"did not renew it for {EXPIRES_SECONDS:.0f} s; this one stops"
                )
            _thread.interrupt_main(LOST_SIGNAL)
            return

    def release(self) -> None:
        """Delete the lease if it is still this one's; a store that fails now lets it expire."""
        with suppress(Exception):
            if self.content and self._read() == self.content:
                self.storage.delete(LEASE_FILE)

    def _next(self) -> bytes:
        """Every renewal is another content, so that no older one can be swapped for it."""
        return json.dumps({**self.owner, "renewal": uuid.uuid4().hex}).encode()

    def _read(self) -> bytes | None:
        try:
            return self.storage.read(LEASE_FILE)
        except FileNotFoundError:
            return None

    def _check_abandoned(self, content: bytes) -> None:
        """Raises LeaseError if the holder is alive as far as anybody can tell."""
        holder = json.loads(content)
        submission = self.owner["submission"]
        if submission and holder.get("submission") == submission:
            return
        if self._is_dead(holder):
            return
        age = _age(self.storage)
        if age is None or age > EXPIRES_SECONDS:
            return
        raise LeaseError(
            f"{self.storage.url} is being written by process {holder['pid']} on {holder['host']} "
            f"(lease renewed {age:.0f} s ago): wait for it, or stop it"
        )

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """True if the holder is a process of this machine that has ended."""
        if holder["host"] != self.owner["host"]:
            return False
        if holder.get("machine", self.owner["machine"]) != self.owner["machine"]:
            return False
        if not alive(holder["pid"]):
            return True
        # The number lives, but another process may bear it by now, as in a restarted container.
        return holder.get("process") not in (None, process_start(holder["pid"]))


def read_holder(storage: Storage) -> dict[str, Any] | None:
    """Who is writing the run folder now, as its lease says; None if nobody is."""
    try:
        return json.loads(storage.read(LEASE_FILE))
    except FileNotFoundError:
        return None


def _age(storage: Storage) -> float | None:
    """Seconds since the lease was renewed, by the store's clock; None if it is gone."""
    storage.write(CLOCK_FILE, b"")
    try:
        renewed = storage.info(LEASE_FILE).last_modified
    except FileNotFoundError:
        return None
    now = storage.info(CLOCK_FILE).last_modified
    if not isinstance(renewed, datetime) or not isinstance(now, datetime):
        return 0.0
    return (now - renewed).total_seconds()
