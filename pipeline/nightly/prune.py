"""`panoptic prune`: delete the shards, snapshots and evaluations that no kept snapshot needs.

These are kept: the last published snapshots (for `rollback`), the pinned baseline, the snapshot in
each run's `latest.json` (for a rollback to that run), and all that the newest generation of each
run needs to be finished. The manifests of a kept run stay: they are small, and together they are
the list of images. A run folder of other weights is deleted whole if none of its snapshots is kept.

The order is pointers, then snapshots, then shards, so no snapshot lacks a shard wherever `prune` is
stopped, and the next call of `prune` or `nightly` can continue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import LeaseError
from pipeline.layout import (
    EVALUATION,
    LATEST_FILE,
    MANIFEST,
    PLAN_FILE,
    REMOVED_FILE,
    RUN_FILE,
    SEGMENTS,
    SNAPSHOTS,
    STATS,
    segments_folder,
    snapshot_name,
)
from pipeline.run import fenced
from pipeline.run.fenced import Fence
from pipeline.run.lease import CLOCK_FILE, LEASE_FILE, Host, lease
from pipeline.run.run import Run, find_run
from pipeline.run.series import Nights
from pipeline.run.writing import is_nights, locate, writing
from pipeline.storage.entry import Entry
from pipeline.storage.storage import Storage

STAYS: Final = (LEASE_FILE, CLOCK_FILE)  # the lease epochs of a later run of this name must rise


@dataclass(frozen=True)
class Move:
    """The change of a `latest.json`: its history without the snapshots or runs that go."""

    where: Storage
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True)
class Pruning:
    """The plan or the result of a prune."""

    out: str
    kept: tuple[str, ...]  # snapshots
    objects: tuple[Entry, ...]  # to delete, in this order; paths in the folder
    pointers: tuple[Move, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.objects)


def prune(storage: Storage, keep: int, *, host: Host | None = None) -> Pruning:
    """Delete the objects of `plan_prune`. A stopped prune is continued by the next call.

    host: gives the clock of the lease. Raises LeaseError while a job writes.
    """
    fences: dict[str, Fence] = {}
    with ExitStack() as stack:
        if storage.exists(RUN_FILE):
            writer = stack.enter_context(writing(locate(storage), host=host))
            fences[storage.url] = writer.hold
        elif not is_nights(storage):  # neither a run folder nor a folder of nights: write nothing
            return Pruning(storage.url, (), (), ())
        else:
            nights = Nights(storage)
            hold = stack.enter_context(lease(storage, of_nights=True, host=host))
            fences[storage.url] = hold
            for name in nights.run_names():
                run_storage = nights.storage.below(name)
                fences[run_storage.url] = stack.enter_context(lease(run_storage, host=host))
        pruning = plan_prune(storage, keep)
        for move in pruning.pointers:
            fenced.move(move.where, LATEST_FILE, _as_planned(move), fences[move.where.url])
        for entry in pruning.objects:
            for fence in fences.values():
                fence.check()
            with suppress(FileNotFoundError):  # REMOVED_FILE is deleted together with RUN_FILE
                _remove(storage, entry.path)
    return pruning


def _remove(storage: Storage, path: str) -> None:
    """Delete an object; of a run that goes whole, write REMOVED_FILE before `latest.json` goes.

    With REMOVED_FILE no rollback goes to the run, and the next prune or nightly deletes its other
    objects.
    """
    folder, _, name = path.rpartition("/")
    removed = f"{folder}/{REMOVED_FILE}".removeprefix("/")
    if name == LATEST_FILE:
        storage.write_if_absent(removed, b"")
    storage.delete(path)
    if name == RUN_FILE:
        unmark(storage.below(folder) if folder else storage)


def unmark(storage: Storage) -> None:
    """Delete REMOVED_FILE of a run folder, so that a new run can be made there."""
    with suppress(FileNotFoundError):
        storage.delete(REMOVED_FILE)


def _as_planned(move: Move) -> fenced.Change:
    def change(pointer: dict[str, Any] | None) -> dict[str, Any]:
        if pointer != move.before:
            raise LeaseError(
                f"{move.where.url}: readers were moved while it was looked through: nothing is "
                "removed; run the same command again"
            )
        return move.after

    return change


def plan_prune(storage: Storage, keep: int) -> Pruning:
    """The objects that `prune` would delete from a run folder or a folder of nights.

    Nothing is changed. keep: the number of last published snapshots to keep.
    """
    if storage.exists(RUN_FILE):
        return _plan_run(storage, keep)
    nights = Nights(storage)
    published = list(nights.published())
    kept_of: dict[str, set[int]] = defaultdict(set)
    for name, number in published[-keep:]:
        kept_of[name].add(number)
    pinned = nights.pinned()
    if pinned:
        kept_of[pinned.run].add(pinned.snapshot)
    objects: list[Entry] = []
    pointers: list[Move] = []
    once_live = {name for name, _ in published}
    once_live |= set((nights.pointer() or {}).get("withdrawn", ()))
    for name in nights.run_names():
        run = nights.run(name)
        if run is None or is_going(run) or (name in once_live and name not in kept_of):
            entries = _whole(nights.storage.below(name).list())
        else:
            kept_of[name] |= _shown(run)
            entries = _of_run(run, kept_of[name])
            pointers += _shorter(run, kept_of[name])
        objects += [entry._replace(path=f"{name}/{entry.path}") for entry in entries]
    pointer = nights.pointer()
    if pointer is not None:
        live = {**pointer, "previous": [n for n in pointer.get("previous", ()) if n in kept_of]}
        pointers.append(Move(storage, pointer, _tidy(live)))
    names = tuple(f"{n}/{snapshot_name(s)}" for n in sorted(kept_of) for s in sorted(kept_of[n]))
    return Pruning(storage.url, names, tuple(objects), tuple(pointers))


def _plan_run(storage: Storage, keep: int) -> Pruning:
    """The plan for one run folder. In a folder of nights the pinned baseline is kept, too."""
    run = find_run(storage)
    assert run is not None
    pointer = run.pointer() or {}
    numbers = [*pointer.get("previous", ()), *([pointer["snapshot"]] if pointer else [])]
    kept = set(numbers[-keep:])
    location = locate(storage)
    pinned = Nights(location.nights).pinned() if location.nights is not None else None
    if pinned and pinned.run == location.name:
        kept.add(pinned.snapshot)
    names = tuple(snapshot_name(number) for number in sorted(kept))
    return Pruning(storage.url, names, tuple(_of_run(run, kept)), _shorter(run, kept))


def _shown(run: Run) -> set[int]:
    number = run.latest()
    return set() if number is None else {number}


def _of_run(run: Run, kept: set[int]) -> list[Entry]:
    """The objects of a run that neither a kept snapshot nor the newest generation needs."""
    generations = run.generations()
    snapshots = set(run.snapshot_numbers())
    kept = (kept | ({max(snapshots)} if snapshots else set())) & snapshots
    named = {shard.path for number in kept for shard in run.snapshot(number).shards}
    newest = max(generations, default=0)
    under_way = newest if newest not in snapshots else None

    def stays(path: str) -> bool:
        top, _, rest = path.partition("/")
        if top == SEGMENTS:
            making = under_way is not None and path.startswith(f"{segments_folder(under_way)}/")
            return making or path in named
        if top == SNAPSHOTS:
            return int(rest.removesuffix(".parquet")) in kept
        if top == EVALUATION:
            return int(rest.partition("/")[0]) in kept
        return True

    entries = [entry for entry in run.storage.list() if not stays(entry.path)]
    order = (SNAPSHOTS, EVALUATION, SEGMENTS)
    return sorted(entries, key=lambda entry: (order.index(entry.path.split("/")[0]), entry.path))


def _whole(entries: Iterable[Entry]) -> list[Entry]:
    """All objects of a run folder in the order of deletion: `latest.json` first, run.json last."""

    def rank(entry: Entry) -> tuple[int, int, str]:
        top, _, rest = entry.path.partition("/")
        if top == MANIFEST:  # the newest generation first, since it builds on earlier ones
            part = not rest.endswith(f"/{PLAN_FILE}")
            return _ORDER.index(top), -int(rest[:4]), f"{part:d}{rest}"
        last = {RUN_FILE: 1, REMOVED_FILE: 2}.get(top, 0)
        return (_ORDER.index(top) if top in _ORDER else len(_ORDER) + last), 0, rest

    return sorted((entry for entry in entries if entry.path not in STAYS), key=rank)


_ORDER: Final = (LATEST_FILE, SNAPSHOTS, EVALUATION, SEGMENTS, STATS, MANIFEST)


def is_going(run: Run) -> bool:
    """Whether a prune has begun to delete the whole run and was stopped."""
    return run.storage.exists(REMOVED_FILE)


def remove_rest(run: Run) -> None:
    """Finish a stopped prune of the whole run. The caller holds the lease of the run."""
    for entry in _whole(run.storage.list()):
        run.check()
        if entry.path != REMOVED_FILE:  # deleted together with RUN_FILE
            _remove(run.storage, entry.path)


def _shorter(run: Run, kept: set[int]) -> tuple[Move, ...]:
    pointer = run.pointer()
    if pointer is None:
        return ()
    previous = [number for number in pointer.get("previous", ()) if number in kept]
    return (Move(run.storage, pointer, _tidy({**pointer, "previous": previous})),)


def _tidy(pointer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pointer.items() if value != []}
