"""Readers back to an earlier edition: one small object moves, nothing is computed or deleted.

What was live is remembered as withdrawn, so that no later call publishes it again by itself; naming
it with `to` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.run.latest import back, forward, instead
from pipeline.run.layout import RUN_FILE
from pipeline.run.lease import lease
from pipeline.run.run import Run, open_run
from pipeline.run.series import PREFIX, Nights
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Moved:
    """What readers saw, and what they see now: `run-.../snapshots/0003.parquet`, or in a run folder
    `snapshots/0003.parquet`."""

    out: str
    before: str
    after: str


def rollback(out: str, to: str | None = None, options: Mapping[str, str] | None = None) -> Moved:
    """Go back one publication; `to` names a snapshot (3) or a run folder (run-...) instead.

    Raises UserError where there is nothing to go back to, LeaseError while a job writes.
    """
    storage = Storage(out, options)
    if storage.exists(RUN_FILE):
        run = open_run(out, options)
        with lease(storage):
            before = _live(run)
            _move_run(run, to)
            return Moved(storage.url, f"snapshots/{before:04d}", f"snapshots/{_live(run):04d}")
    nights = Nights(storage)
    with lease(storage):
        before = _where(nights)
        _move_nights(nights, to)
        return Moved(storage.url, before, _where(nights))


def _move_nights(nights: Nights, to: str | None) -> None:
    pointer = nights.pointer()
    run = nights.run(pointer["run"]) if pointer else None
    if pointer is None or run is None:
        raise UserError(f"{nights.storage.url} has nothing published: there is no way back")
    if to is not None and to.startswith(PREFIX):
        target = nights.run(to)
        if target is None or target.latest() is None:
            known = ", ".join(nights.run_names())
            raise UserError(f"{to} is no published run folder here (there are: {known})")
        nights.move(_to_run(pointer, to))
        return
    if to is not None or _step(run) is not None:
        _move_run(run, to)
        return
    while (moved := back(pointer, "run")) is not None:
        before = nights.run(moved["run"])
        if before is not None and before.latest() is not None:
            nights.move(moved)
            return
        pointer = moved  # pruned since
    raise UserError(f"nothing was published in {nights.storage.url} before what is live")


def _move_run(run: Run, to: str | None) -> None:
    pointer = run.pointer()
    if pointer is None:
        raise UserError(f"{run.storage.url} has nothing published: there is no way back")
    if to is None:
        moved = _step(run)
        if moved is None:
            raise UserError(
                f"no snapshot of {run.storage.url} was published before {pointer['snapshot']}"
            )
        run.move(moved)
        return
    if not to.isdigit() or int(to) not in run.snapshot_numbers():
        known = ", ".join(map(str, run.snapshot_numbers()))
        raise UserError(f"--to {to}: {run.storage.url} has no such snapshot (there are: {known})")
    run.move(_to_snapshot(pointer, int(to)))


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


def _step(run: Run) -> dict[str, object] | None:
    """The pointer one publication earlier, of those whose snapshot is still there."""
    there = set(run.snapshot_numbers())
    moved = run.pointer()
    while moved is not None:
        moved = back(moved, "snapshot")
        if moved is not None and moved["snapshot"] in there:
            return moved
    return None


def _live(run: Run) -> int:
    number = run.latest()
    if number is None:
        raise UserError(f"{run.storage.url} has nothing published: there is no way back")
    return number


def _where(nights: Nights) -> str:
    live = nights.live()
    return f"{nights.live_name()}/snapshots/{live.number:04d}" if live else "nothing"
