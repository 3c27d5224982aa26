"""Old shards leave, once no edition that is kept names them.

Kept are the last published editions (a rollback can reach them), the pinned baseline, and what the
newest generation of each run needs to be finished. Manifests always stay: the list of images is
their sum, and they are small. A run folder of other weights goes whole when none of its editions is
kept, in an order that leaves, wherever it is stopped, a folder that the next night can work with.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.run.layout import LATEST_FILE, RUN_FILE
from pipeline.run.lease import lease
from pipeline.run.run import Run, open_run
from pipeline.run.series import Nights
from pipeline.sharding import segments_folder
from pipeline.storage.entry import Entry
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Pruning:
    """What `prune` removes, or would: paths in the folder, in the order in which they go."""

    out: str
    kept: tuple[str, ...]
    objects: tuple[Entry, ...]
    pointers: tuple[tuple[Storage, dict[str, Any]], ...]  # with a history as long as what is kept

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.objects)


def plan_prune(out: str, keep: int, options: Mapping[str, str] | None = None) -> Pruning:
    """What no kept edition names, with the last `keep` publications kept. Changes nothing."""
    storage = Storage(out, options)
    if storage.exists(RUN_FILE):
        run = open_run(out, options)
        pointer = run.pointer() or {}
        numbers = [*pointer.get("previous", ()), *([pointer["snapshot"]] if pointer else [])]
        kept = set(numbers[-keep:])
        found = tuple(_of_run(run, kept))
        names = tuple(f"snapshots/{number:04d}" for number in sorted(kept))
        return Pruning(storage.url, names, found, _shorter(run, kept))
    nights = Nights(storage)
    published = list(nights.published())
    kept_of: dict[str, set[int]] = defaultdict(set)
    for name, number in published[-keep:]:
        kept_of[name].add(number)
    pinned = nights.pinned()
    if pinned:
        kept_of[pinned.run].add(pinned.snapshot)
    objects: list[Entry] = []
    pointers: list[tuple[Storage, dict[str, Any]]] = []
    once_live = {name for name, _ in published}
    once_live |= set((nights.pointer() or {}).get("withdrawn", ()))
    for name in nights.run_names():
        run = nights.run(name)
        if run is None or (name in once_live and name not in kept_of):
            found = list(Storage(nights.url(name), storage.options).list())
            own = sorted(found, key=_last_what_the_rest_needs)
        else:
            own = _of_run(run, kept_of.get(name, set()))
            pointers += _shorter(run, kept_of.get(name, set()))
        objects += [entry._replace(path=f"{name}/{entry.path}") for entry in own]
    pointer = nights.pointer()
    if pointer is not None:
        live = {**pointer, "previous": [n for n in pointer.get("previous", ()) if n in kept_of]}
        pointers.append((storage, _tidy(live)))
    names = tuple(f"{n}/snapshots/{s:04d}" for n in sorted(kept_of) for s in sorted(kept_of[n]))
    return Pruning(storage.url, names, tuple(objects), tuple(pointers))


def prune(out: str, keep: int, options: Mapping[str, str] | None = None) -> Pruning:
    """Remove it. Raises LeaseError while a job writes; stopped half-way, run it again."""
    storage = Storage(out, options)
    with lease(storage):
        pruning = plan_prune(out, keep, options)
        for where, pointer in pruning.pointers:  # first: no history names what is gone
            where.write(LATEST_FILE, _json(pointer))
        for entry in pruning.objects:
            storage.delete(entry.path)
    return pruning


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
        if top == "segments":
            making = under_way is not None and path.startswith(f"{segments_folder(under_way)}/")
            return making or path in named
        if top == "snapshots":
            return int(rest.removesuffix(".parquet")) in kept
        if top == "evaluation":
            return int(rest.partition("/")[0]) in kept
        return True

    return [entry for entry in run.storage.list() if not stays(entry.path)]


def _last_what_the_rest_needs(entry: Entry) -> tuple[int, str]:
    """Shards first: as long as the plan stands, lost ones are computed again."""
    order = ("segments", "evaluation", "snapshots", "stats", "manifest")
    top = entry.path.split("/")[0]
    if top == "manifest":  # the newest generation first: none may lose what it builds on
        number = 9999 - int(entry.path.split("/")[1])
        return order.index(top), f"{number:04d}{not entry.path.endswith('generation.json')}"
    return (order.index(top) if top in order else len(order) + (top == RUN_FILE)), entry.path


def _shorter(run: Run, kept: set[int]) -> tuple[tuple[Storage, dict[str, Any]], ...]:
    pointer = run.pointer()
    if pointer is None:
        return ()
    previous = [number for number in pointer.get("previous", ()) if number in kept]
    return ((run.storage, _tidy({**pointer, "previous": previous})),)


def _tidy(pointer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pointer.items() if value != []}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
