"""Small objects that say what others go by, and move: `latest.json`, of a run folder or of a folder
of nights, and `baseline.json`.

A move replaces exactly what was read, or makes what was absent. It bears the epoch of the lease
under which it was made (lease.py), and none is made over a higher one. So a write that comes late,
from a job whose lease has passed to another, finds another content and does nothing.
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
    """What a writer holds: see `lease.Hold`.

    unsure: a move of this writer's ended without an answer, so it may still be made.
    """

    epoch: int
    unsure: bool

    def check(self) -> None:
        """Raises if the lease is no longer this writer's."""
        ...


def read(storage: Storage, path: str) -> dict[str, Any] | None:
    """The object without its epoch, None if it is absent."""
    try:
        return _bare(_parsed(storage, path, storage.read(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def undamaged(storage: Storage, path: str) -> Iterator[None]:
    """Raises UserError naming an object that is absent, or not what this program writes."""
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
    """The epoch of the last move; 0 where there was none, or by an older version."""
    content = storage.look(path)
    return 0 if content is None else _epoch(_parsed(storage, path, content))


def move(storage: Storage, path: str, change: Change, fence: Fence | None) -> dict[str, Any]:
    """Put what `change` makes of the object in its place; returns it.

    change: may be called several times; gets the object as it is, None if absent, and may raise.
    fence: None for a folder that nobody else can write. Raises LeaseError if a later holder has
    moved the object, and whatever ends this one's lease.
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
    """Stamp the object with this holder's epoch: what an earlier one still has under way fails."""
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
    return {name: own for name, own in value.items() if name != EPOCH}
