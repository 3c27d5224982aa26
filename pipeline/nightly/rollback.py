"""`panoptic rollback`: readers go back to an earlier snapshot by one change of `latest.json`.

Nothing is computed or deleted. The snapshot that was live is recorded as withdrawn, so that no
later call publishes it; a rollback with `to` can publish it again.
"""

from __future__ import annotations

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
    """The live snapshot before and after: `run-.../snapshots/0003.parquet`, or in a run folder
    `snapshots/0003.parquet`."""

    out: str
    before: str
    after: str


def rollback(storage: Storage, to: str | None = None, *, host: Host | None = None) -> Moved:
    """Go back to the snapshot published before the live one, or `to` another one.

    storage: a run folder or a folder of nights. to: the number of a snapshot ("3") or the name of a
    run folder ("run-..."). host: gives the clock of the lease. Raises UserError without such a
    snapshot, LeaseError while a job writes.
    """
    if not storage.exists(RUN_FILE) and read_pointer(storage) is None:
        raise UserError(f"{storage.url} has nothing published: there is no way back")
    location = locate(storage)
    with writing(location, host=host) as writer:
        run, nights = writer.run(), writer.nights
        if run is None:
            raise UserError(f"{storage.url} has nothing published: there is no way back")
        if nights is None or storage.url == location.run.url:
            number = _live(run)
            _move_run(run, to)
            return Moved(storage.url, snapshot_name(number), snapshot_name(_live(run)))
        before = _where(nights)
        _move_nights(nights, run, to)
        return Moved(storage.url, before, _where(nights))


def _move_nights(nights: Nights, live: Run, to: str | None) -> None:
    """live: the live run, whose lease the caller holds."""
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
            moved = back(moved, "run")  # `before` was pruned
        raise UserError(f"nothing was published in {nights.storage.url} before what is live")

    nights.move(back_to_another)


def _move_run(run: Run, to: str | None) -> None:
    numbers = run.snapshot_numbers()
    if to is not None and (not to.isdigit() or int(to) not in numbers):
        known = ", ".join(map(str, numbers))
        raise UserError(f"--to {to}: {run.storage.url} has no such snapshot (there are: {known})")

    def change(pointer: dict[str, Any] | None) -> dict[str, Any]:
        live = _there(pointer, run.storage)
        moved = _step(run, live) if to is None else _to_snapshot(live, int(to))
        if moved is None:
            raise UserError(
                f"no snapshot of {run.storage.url} was published before {live['snapshot']}"
            )
        return moved

    run.move(change)


def _there(pointer: dict[str, Any] | None, storage: Storage) -> dict[str, Any]:
    if pointer is None:
        raise UserError(f"{storage.url} has nothing published: there is no way back")
    return pointer


def _to_run(pointer: dict[str, Any], name: str) -> dict[str, Any]:
    """The pointer with run folder `name` live, and the runs published after it withdrawn.

    A withdrawn run is published again, with the live run as the previous one. A run that is not in
    the history replaces the live run, which is withdrawn.
    """
    if name == pointer["run"] or name in pointer.get("withdrawn", ()):
        return forward(pointer, "run", name)
    moved: dict[str, Any] | None = pointer
    while moved is not None and name in moved.get("previous", ()):
        moved = back(moved, "run")
        if moved is not None and moved["run"] == name:
            return moved
    return instead(pointer, "run", name)


def _to_snapshot(pointer: dict[str, Any], number: int) -> dict[str, Any]:
    """The pointer with snapshot `number` live, and the later published snapshots withdrawn."""
    moved = pointer
    while moved["snapshot"] > number and (before := back(moved, "snapshot")) is not None:
        moved = before
    if moved["snapshot"] > number:  # no snapshot as old as `number` is in the history
        return instead(moved, "snapshot", number)
    return forward(moved, "snapshot", number)


def _step(run: Run, pointer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The pointer with the last published snapshot before the live one that was not pruned."""
    numbers = set(run.snapshot_numbers())
    while pointer is not None:
        pointer = back(pointer, "snapshot")
        if pointer is not None and pointer["snapshot"] in numbers:
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
