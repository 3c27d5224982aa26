"""Fenced writes of the JSON objects that change: `latest.json` and `baseline.json`.

A move creates the object if absent, or replaces the content that was read. The new content holds
the epoch of the writer's lease (lease.py), and never replaces a higher epoch. So a late write of a
job that has lost its lease finds another content and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from pipeline.errors import LeaseError, UserError
from pipeline.storage.storage import Storage

EPOCH: Final = "epoch"

Change = Callable[[dict[str, Any] | None], Mapping[str, Any]]


class Fence(Protocol):
    """The lease of a writer, as a move needs it (`lease.Hold`).

    unsure: a move of this writer ended without an answer, so the store may still carry it out.
    """

    epoch: int
    unsure: bool

    def check(self) -> None:
        """Raises LeaseError or TryAgainError if the writer no longer holds the lease."""
        ...


def read(storage: Storage, path: str) -> dict[str, Any] | None:
    """The content of a JSON object without its epoch; None if it is absent. Raises UserError."""
    try:
        return _bare(_parsed(storage, path, storage.read(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def undamaged(storage: Storage, path: str) -> Iterator[None]:
    """Raises UserError naming `path` if the block finds the object missing or damaged."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{storage.join(path)} is missing: put it back from a copy") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).split("\n", 1)[0]
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise UserError(
            f"{storage.join(path)} is damaged ({reason}): put an earlier copy of it back"
        ) from error


def epoch_of(storage: Storage, path: str) -> int:
    """The epoch of the last move; 0 for an absent object or one of an older version."""
    content = storage.look(path)
    return 0 if content is None else _epoch(_parsed(storage, path, content))


def move(storage: Storage, path: str, change: Change, fence: Fence | None) -> dict[str, Any]:
    """Replace the content of the object by change(content); returns the new content.

    change: called again if another process wrote meanwhile; gets the content without its epoch,
    None if absent, and may raise. fence: None for a folder that nobody else can write. Raises
    LeaseError if a later holder of the lease has moved the object, and what `fence.check` raises.
    """
    while True:
        content = storage.look(path)
        before = None if content is None else _bare(_parsed(storage, path, content))
        after = dict(change(before))
        if after == before:
            return after
        if _put(storage, path, content, after, fence):
            return after


def seal(storage: Storage, path: str, fence: Fence) -> None:
    """Write this holder's epoch into the object, so that late moves of earlier holders fail."""
    while (content := storage.look(path)) is not None:
        value = _parsed(storage, path, content)
        if _epoch(value) == fence.epoch or _put(storage, path, content, _bare(value), fence):
            return


def _put(
    storage: Storage,
    path: str,
    content: bytes | None,
    after: Mapping[str, Any],
    fence: Fence | None,
) -> bool:
    epoch = 0 if content is None else _epoch(_parsed(storage, path, content))
    if fence is not None:
        fence.check()
        if epoch > fence.epoch:
            raise LeaseError(
                f"{storage.join(path)} was moved by a job that took the lease after this one: this "
                "one stops, and has changed nothing that readers see"
            )
        epoch = fence.epoch
    stamped = {**after, EPOCH: epoch} if epoch else after
    data = (json.dumps(stamped, indent=1) + "\n").encode()
    try:
        if content is None:
            return storage.write_if_absent(path, data)
        return storage.swap(path, content, data)
    except BaseException:
        if fence is not None:
            fence.unsure = True
        raise


def _parsed(storage: Storage, path: str, content: bytes) -> dict[str, Any]:
    with undamaged(storage, path):
        value = json.loads(content)
        if not isinstance(value, dict):
            raise TypeError("it is no JSON object")
        return value


def _epoch(value: Mapping[str, Any]) -> int:
    return int(value.get(EPOCH, 0))


def _bare(value: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in value.items() if name != EPOCH}
