"""Readers back to an earlier snapshot: one small object moves, nothing is computed or deleted.

What was live is remembered as withdrawn, so that no later call publishes it again by itself; naming
it with `to` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.layout import REMOVED_FILE, RUN_FILE, snapshot_name
from pipeline.run.folder import read_pointer
from pipeline.run.latest import back, forward, instead
from pipeline.run.lease import Host
from pipeline.run.run import Run
from pipeline.run.series import PREFIX, Nights
from pipeline.run.writing import locate, writing
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Moved:
    """What readers saw, and what they see now: `run-.../snapshots/0003.parquet`, or in a run folder
    `snapshots/0003.parquet`."""

    out: str
    before: str
    after: str


def rollback(out: str, to: str | None = None, options: Mapping[str, str] | None = None) -> Moved:
    """Go back to the snapshot published before, or `to` a snapshot (3) or a run folder (run-...).

    Raises UserError where there is nothing to go back to, LeaseError while a job writes.
    """
    return rollback_at(Storage(out, options), to)


def rollback_at(storage: Storage, to: str | None = None, *, host: Host | None = None) -> Moved:
    """`rollback` of a folder in this store; host: whose clock the lease goes by."""
    if not storage.exists(RUN_FILE) and read_pointer(storage) is None:
        raise UserError(f"{storage.url} has nothing published: there is no way back")
    place = locate(storage)
    with writing(place, host=host) as writer:
        run, nights = writer.run(), writer.nights
        if run is None:
            raise UserError(f"{storage.url} has nothing published: there is no way back")
        if nights is None or storage.url == place.run.url:
            before = _live(run)
            _move_run(run, to)
            return Moved(storage.url, snapshot_name(before), snapshot_name(_live(run)))
        seen = _where(nights)
        _move_nights(nights, run, to)
        return Moved(storage.url, seen, _where(nights))


def _move_nights(nights: Nights, live: Run, to: str | None) -> None:
    """live: the run that readers see, under its lease."""
    if to is not None and to.startswith(PREFIX):
        target = nights.run(to)
        if target is None or target.latest() is None or target.storage.exists(REMOVED_FILE):
            known = ", ".join(nights.run_names())
            raise UserError(f"{to} is no published run folder here (there are: {known})")
        nights.move(lambda pointer: _to_run(_there(pointer, nights.storage), to))
        return
    if to is not None or _step(live, live.pointer()) is not None:
        _move_run(live, to)
        return

    def back_to_another(pointer: dict[str, Any] | None) -> dict[str, Any]:
        moved = back(_there(pointer, nights.storage), "run")
        while moved is not None:
            before = nights.run(moved["run"])
            if before is not None and before.latest() is not None:
                return moved
            moved = back(moved, "run")  # pruned since
        raise UserError(f"nothing was published in {nights.storage.url} before what is live")

    nights.move(back_to_another)


def _move_run(run: Run, to: str | None) -> None:
    there = run.snapshot_numbers()
    if to is not None and (not to.isdigit() or int(to) not in there):
        known = ", ".join(map(str, there))
        raise UserError(f"--to {to}: {run.storage.url} has no such snapshot (there are: {known})")

    def change(pointer: dict[str, Any] | None) -> dict[str, Any]:
        now = _there(pointer, run.storage)
        moved = _step(run, now) if to is None else _to_snapshot(now, int(to))
        if moved is None:
            raise UserError(
                f"no snapshot of {run.storage.url} was published before {now['snapshot']}"
            )
        return moved

    run.move(change)


def _there(pointer: dict[str, Any] | None, storage: Storage) -> dict[str, Any]:
    if pointer is None:
        raise UserError(f"{storage.url} has nothing published: there is no way back")
    return pointer


def _to_run(pointer: dict[str, Any], name: str) -> dict[str, Any]:
    """The pointer at this run folder, with what was published after it, or is live in place of it,
    withdrawn. One that was itself withdrawn is published again, on top of what is live."""
    if name == pointer["run"] or name in pointer.get("withdrawn", ()):
        return forward(pointer, "run", name)
    moved: dict[str, Any] | None = pointer
    while moved is not None and name in moved.get("previous", ()):
        moved = back(moved, "run")
        if moved is not None and moved["run"] == name:
            return moved
    return instead(pointer, "run", name)


def _to_snapshot(pointer: dict[str, Any], number: int) -> dict[str, Any]:
    """The pointer at this snapshot, with every later one that was published withdrawn."""
    moved = pointer
    while moved["snapshot"] > number and (before := back(moved, "snapshot")) is not None:
        moved = before
    if moved["snapshot"] > number:  # nothing as old was published
        return instead(moved, "snapshot", number)
    return forward(moved, "snapshot", number)


def _step(run: Run, pointer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pointer to the snapshot published before, of those whose snapshot is still there."""
    there = set(run.snapshot_numbers())
    while pointer is not None:
        pointer = back(pointer, "snapshot")
        if pointer is not None and pointer["snapshot"] in there:
            return pointer
    return None


def _live(run: Run) -> int:
    number = run.latest()
    if number is None:
        raise UserError(f"{run.storage.url} has nothing published: there is no way back")
    return number


def _where(nights: Nights) -> str:
    live = nights.live()
    return f"{nights.live_name()}/{snapshot_name(live.number)}" if live else "nothing"
