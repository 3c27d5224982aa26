"""One writer per run folder: a lease object, made only if absent, renewed while the job works.

Time is the store's: an age is the difference of two of its own modification times, so clocks of
two hosts need not agree. A lease is taken over when it was not renewed for `EXPIRES_SECONDS`, at
once when its owner is a dead process of this host or an earlier try of the same submission.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from pipeline.entry import as_user_error
from pipeline.errors import LeaseError
from pipeline.storage import Storage

LEASE_FILE: Final = "lease.json"
CLOCK_FILE: Final = "lease.clock"
RENEW_SECONDS: Final = 20.0
EXPIRES_SECONDS: Final = 120.0


@contextmanager
def lease(storage: Storage) -> Iterator[None]:
    """Hold the run folder for the block. Raises LeaseError naming the holder."""
    owner = {
        "owner": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "submission": os.environ.get("RAY_JOB_SUBMISSION_ID", ""),
    }
    content = json.dumps(owner).encode()
    try:
        while not storage.write_if_absent(LEASE_FILE, content):
            _remove_if_abandoned(storage, owner)
    except LeaseError:
        raise
    except Exception as error:
        raise as_user_error(error, f"can't write to {storage.url}") from error
    if _holder(storage) != owner:  # a store that ignores If-None-Match lets the last one win
        raise LeaseError(f"{storage.url}: another job took the lease at the same moment")
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(storage, content, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()
        if _holder(storage) == owner:
            storage.delete(LEASE_FILE)


def _renew(storage: Storage, content: bytes, stop: threading.Event) -> None:
    while not stop.wait(RENEW_SECONDS):
        storage.write(LEASE_FILE, content)


def _holder(storage: Storage) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read(LEASE_FILE))
    except FileNotFoundError:
        return None


def _remove_if_abandoned(storage: Storage, owner: dict[str, Any]) -> None:
    holder = _holder(storage)
    if holder is None:
        return
    same_host = holder["host"] == owner["host"]
    dead = same_host and not _alive(holder["pid"])
    resubmitted = bool(owner["submission"]) and holder["submission"] == owner["submission"]
    age = _age(storage)
    if dead or resubmitted or age is None or age > EXPIRES_SECONDS:
        storage.delete(LEASE_FILE)
        return
    raise LeaseError(
        f"{storage.url} is being written by process {holder['pid']} on {holder['host']} "
        f"(lease renewed {age:.0f} s ago): wait for it, or stop it"
    )


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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
