"""Old shards leave, once no snapshot that is kept names them.

Kept are the last published snapshots (a rollback can reach them), the pinned baseline, what each
run's own `latest.json` names (a rollback to the run shows it), and what the newest generation of
each run needs to be finished. Manifests always stay: the list of images is their sum, and they are
small. A run folder of other weights goes whole when none of its snapshots is kept.

What names others goes before what it names: pointers forget first, then snapshots, then shards. So
wherever it is stopped, no snapshot that is there lacks a shard, and the next night, or the next
prune, can go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
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

STAYS: Final = (LEASE_FILE, CLOCK_FILE)  # epochs go on, should a run of this name come back


@dataclass(frozen=True)
class Move:
    """A pointer as it was judged by, and with a history as long as what is kept."""

    where: Storage
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True)
class Pruning:
    """What `prune` removes, or would: paths in the folder, in the order in which they go."""

    out: str
    kept: tuple[str, ...]
    objects: tuple[Entry, ...]
    pointers: tuple[Move, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.objects)


def plan_prune(out: str, keep: int, options: Mapping[str, str] | None = None) -> Pruning:
    """What no kept snapshot names, with the last `keep` published ones kept. Changes nothing."""
    return _plan(Storage(out, options), keep)


def prune(out: str, keep: int, options: Mapping[str, str] | None = None) -> Pruning:
    """Remove it. Raises LeaseError while a job writes; stopped half-way, run it again."""
    return prune_at(Storage(out, options), keep)


def prune_at(storage: Storage, keep: int, *, host: Host | None = None) -> Pruning:
    """`prune` of a folder in this store; host: whose clock the lease goes by."""
    fences: dict[str, Fence] = {}
    with ExitStack() as held:
        if storage.exists(RUN_FILE):
            writer = held.enter_context(writing(locate(storage), host=host))
            fences[storage.url] = writer.hold
        elif not is_nights(storage):  # a folder of something else, in which nothing is written
            return Pruning(storage.url, (), (), ())
        else:
            nights = Nights(storage)
            hold = held.enter_context(lease(storage, of_nights=True, host=host))
            fences[storage.url] = hold
            for name in nights.run_names():
                place = nights.run_storage(name)
                fences[place.url] = held.enter_context(lease(place, host=host))
        pruning = _plan(storage, keep)
        for move in pruning.pointers:
            fenced.move(move.where, LATEST_FILE, _as_planned(move), fences[move.where.url])
        for entry in pruning.objects:
            for fence in fences.values():
                fence.check()
            with suppress(FileNotFoundError):  # the mark goes with the last of the run
                _remove(storage, entry.path)
    return pruning


def _remove(storage: Storage, path: str) -> None:
    """Delete an object. A run that goes whole is marked first: no rollback shows it any more, and
    wherever this is stopped, the next prune goes on, or the next night of that run."""
    folder, _, name = path.rpartition("/")
    mark = f"{folder}/{REMOVED_FILE}".removeprefix("/")
    if name == LATEST_FILE:
        storage.write_if_absent(mark, b"")
    storage.delete(path)
    if name == RUN_FILE:
        unmark(storage.below(folder) if folder else storage)


def unmark(storage: Storage) -> None:
    """Forget that a run was removed here."""
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


def _plan(storage: Storage, keep: int) -> Pruning:
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
            own = _whole(nights.run_storage(name).list())
        else:
            kept_of[name] |= _shown(run)
            own = _of_run(run, kept_of[name])
            pointers += _shorter(run, kept_of[name])
        objects += [entry._replace(path=f"{name}/{entry.path}") for entry in own]
    pointer = nights.pointer()
    if pointer is not None:
        live = {**pointer, "previous": [n for n in pointer.get("previous", ()) if n in kept_of]}
        pointers.append(Move(storage, pointer, _tidy(live)))
    names = tuple(f"{n}/{snapshot_name(s)}" for n in sorted(kept_of) for s in sorted(kept_of[n]))
    return Pruning(storage.url, names, tuple(objects), tuple(pointers))


def _plan_run(storage: Storage, keep: int) -> Pruning:
    """Of one run folder, which may lie in a folder of nights: its baseline is kept then, too."""
    run = find_run(storage)
    assert run is not None
    pointer = run.pointer() or {}
    numbers = [*pointer.get("previous", ()), *([pointer["snapshot"]] if pointer else [])]
    kept = set(numbers[-keep:])
    place = locate(storage)
    pinned = Nights(place.nights).pinned() if place.nights is not None else None
    if pinned and pinned.run == place.name:
        kept.add(pinned.snapshot)
    names = tuple(snapshot_name(number) for number in sorted(kept))
    return Pruning(storage.url, names, tuple(_of_run(run, kept)), _shorter(run, kept))


def _shown(run: Run) -> set[int]:
    number = run.latest()
    return set() if number is None else {number}


def _of_run(run: Run, kept: set[int]) -> list[Entry]:
    """Objects of a run that no kept snapshot names, nor the newest generation needs."""
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
        if top == "evaluation":
            return int(rest.partition("/")[0]) in kept
        return True

    found = [entry for entry in run.storage.list() if not stays(entry.path)]
    order = (SNAPSHOTS, EVALUATION, SEGMENTS)
    return sorted(found, key=lambda entry: (order.index(entry.path.split("/")[0]), entry.path))


def _whole(entries: Iterable[Entry]) -> list[Entry]:
    """Every object of a run folder: first what names others, last what says which run it was."""

    def place(entry: Entry) -> tuple[int, int, str]:
        top, _, rest = entry.path.partition("/")
        if top == MANIFEST:  # the newest generation first: none may lose what it builds on
            part = not rest.endswith(f"/{PLAN_FILE}")
            return _ORDER.index(top), -int(rest[:4]), f"{part:d}{rest}"
        last = {RUN_FILE: 1, REMOVED_FILE: 2}.get(top, 0)
        return (_ORDER.index(top) if top in _ORDER else len(_ORDER) + last), 0, rest

    return sorted((entry for entry in entries if entry.path not in STAYS), key=place)


_ORDER: Final = (LATEST_FILE, SNAPSHOTS, EVALUATION, SEGMENTS, STATS, MANIFEST)


def is_going(run: Run) -> bool:
    """Whether a prune that removes the whole run was stopped."""
    return run.storage.exists(REMOVED_FILE)


def remove_rest(run: Run) -> None:
    """Go on where that prune was stopped. The run is held."""
    for entry in _whole(run.storage.list()):
        run.check()
        if entry.path != REMOVED_FILE:  # it goes with the last
            _remove(run.storage, entry.path)


def _shorter(run: Run, kept: set[int]) -> tuple[Move, ...]:
    pointer = run.pointer()
    if pointer is None:
        return ()
    previous = [number for number in pointer.get("previous", ()) if number in kept]
    return (Move(run.storage, pointer, _tidy({**pointer, "previous": previous})),)


def _tidy(pointer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pointer.items() if value != []}
