"""Which guarantees of docs/faults.md a store gives to writers, tried on the store itself.

Three guarantees keep two jobs apart. *Create*: of two requests to create one object, the second is
refused. *Replace*: a write over a version that is no longer current is refused. *Age*: the store
records when an object was written, so that a lease expires by one clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Guarantee:
    """Whether a store keeps one of the three guarantees, and what follows for writers."""

    name: str  # "create", "replace" or "age"
    kept: bool
    meaning: str


KEPT = {
    "create": "of two jobs that start at the same moment one gets the folder; plans and shards are "
    "never written over",
    "replace": "a write that comes late, from a job that lost its lease, changes nothing that "
    "readers see",
    "age": "a lease whose holder died elsewhere runs out after 120 s by the store's clock",
}
NOT_KEPT = {
    "create": "two jobs that start at the same moment may both write: start one at a time (a lease "
    "that is there already still keeps others off)",
    "replace": "a write that comes late can move readers back: after a job was cut off or stood "
    "still, wait two minutes before the next one",
    "age": "a lease whose holder died elsewhere runs out after it was watched for 120 s, during "
    "which the next job waits",
}


def guarantees(storage: Storage) -> Iterator[Guarantee]:
    """Try each guarantee with a small object in the folder, which is deleted afterwards.

    Raises what the store's client raises if the folder can't be written.
    """
    name = f"doctor-{uuid.uuid4().hex}"
    new_folder = Path(storage.url) if storage.is_local and not Path(storage.url).exists() else None
    try:
        yield _judged("create", _creates(storage, name))
        yield _judged("replace", storage.objects.refuses_stale(storage.key(name)))
        yield _judged("age", _has_times(storage, name))
    finally:
        with suppress(FileNotFoundError):
            storage.delete(name)
        if new_folder is not None:
            with suppress(OSError):  # another process has written there
                new_folder.rmdir()


def _judged(name: str, kept: bool) -> Guarantee:
    return Guarantee(name, kept, (KEPT if kept else NOT_KEPT)[name])


def _creates(storage: Storage, name: str) -> bool:
    storage.write(name, b"first")
    return not storage.write_if_absent(name, b"second") and storage.read(name) == b"first"


def _has_times(storage: Storage, name: str) -> bool:
    before = storage.info(name).last_modified
    storage.write(name, b"later")
    after = storage.info(name).last_modified
    return before is not None and after is not None and after >= before
