"""What must hold after each change of the store, counted from its objects by plain Python."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Any

import pyarrow.parquet as pq

from pipeline.sharding import Generation
from tests.simulation.world import Driver, World

OUT = "out"
Images = dict[str, str]  # file name -> ETag


class Broken(AssertionError):
    """A promise that was not kept."""


@lru_cache(maxsize=4096)
def rows_of(data: bytes) -> tuple[tuple[str, str], ...]:
    """(file name, ETag) of each row of a shard or a manifest part."""
    table = pq.read_table(io.BytesIO(data), columns=["file_name", "etag"])
    return tuple(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))


@lru_cache(maxsize=4096)
def shards_of(data: bytes) -> tuple[str, ...]:
    return tuple(pq.read_table(io.BytesIO(data), columns=["path"])[0].to_pylist())


@lru_cache(maxsize=4096)
def names_of(data: bytes) -> frozenset[str]:
    return frozenset(pq.read_table(io.BytesIO(data), columns=["file_name"])[0].to_pylist())


class Promises:
    """Watches a world. passed: snapshots (run, snapshot) that a gate or a person let through."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.passed: set[tuple[str, int]] = set()
        self.planned: dict[tuple[str, int], Images] = {}
        self.known: dict[str, set[Any]] = {}  # what each pointer must remember
        self.epochs: dict[str, int] = {}
        self.shards: dict[str, bytes] = {}
        for run in self.runs():  # what a world begins with was published rightly
            pointer = self.json(f"{OUT}/{run}/latest.json") or {}
            shown = [*pointer.get("previous", ()), pointer.get("snapshot")]
            self.passed |= {(run, number) for number in shown}
        for key in sorted(world.objects):
            self._remember(key)
        for key in sorted(world.objects):
            if "/segments/" in key:
                self.shards[key] = world.objects[key].data
            if key.endswith("latest.json"):
                self._pointer(key, None)
        world.watch = self.watch

    # -- reading, as a reader does

    def json(self, key: str) -> dict[str, Any] | None:
        found = self.world.objects.get(key)
        return None if found is None else json.loads(found.data)

    def runs(self) -> list[str]:
        tops = {key.split("/")[1] for key in self.world.objects if key.startswith(f"{OUT}/run-")}
        return sorted(tops)

    def live(self) -> tuple[str, int] | None:
        outer = self.json(f"{OUT}/latest.json")
        inner = self.json(f"{OUT}/{outer['run']}/latest.json") if outer else None
        if outer and not inner:
            raise Broken(f"readers find {outer['run']} without a snapshot")
        return (outer["run"], inner["snapshot"]) if outer and inner else None

    def images(self, run: str, number: int) -> Images:
        """What a reader of this snapshot gets. Raises Broken if it is not whole."""
        snapshot = self.world.objects.get(f"{OUT}/{run}/snapshots/{number:04d}.parquet")
        if snapshot is None:
            raise Broken(f"snapshot {number} of {run} is named, and gone")
        found: Images = {}
        for path in shards_of(snapshot.data):
            shard = self.world.objects.get(f"{OUT}/{run}/{path}")
            if shard is None:
                raise Broken(f"snapshot {number} of {run} lacks {path}")
            for name, etag in rows_of(shard.data):
                if name in found:
                    raise Broken(f"snapshot {number} of {run} has {name} twice")
                found[name] = etag
        return found

    # -- what is checked when

    def watch(self, key: str, driver: Driver | None) -> None:
        try:
            self._changed(key, driver)
        except Broken as error:
            self.world.broken = self.world.broken or str(error)

    def _changed(self, key: str, driver: Driver | None) -> None:
        self._remember(key)
        top, _, rest = key.removeprefix(f"{OUT}/").partition("/")
        if key.endswith("/latest.json"):
            self._pointer(key, driver)
        if rest.startswith("segments/") and key in self.world.objects:
            before = self.shards.setdefault(key, self.world.objects[key].data)
            if rows_of(before) != rows_of(self.world.objects[key].data):
                raise Broken(f"{key} was written over")
        elif rest.startswith("segments/"):
            self.shards.pop(key, None)
        if rest.startswith(("segments/", "snapshots/")):
            self._all_whole(top, rest)

    def _remember(self, key: str) -> None:
        """The images of a generation, from its plan at the moment it is committed."""
        if not key.endswith("/generation.json"):
            return
        run, number = key.split("/")[1], int(key.split("/")[3])
        if key not in self.world.objects:
            self.planned.pop((run, number), None)
            return
        plan = Generation.from_json(json.loads(self.world.objects[key].data))
        images: Images = {}
        if plan.base is not None:
            images.update(self.planned[run, plan.base])
        objects = self.world.objects
        if plan.dropped:
            dropped = objects.get(f"{OUT}/{run}/{plan.dropped_path}")
            if dropped is None:
                raise Broken(f"generation {number} of {run} lacks its list of what leaves")
            for name in names_of(dropped.data):
                if images.pop(name, None) is None:
                    raise Broken(f"generation {number} of {run} drops {name}, which isn't there")
        new: list[tuple[str, str]] = []
        for part in plan.parts():
            if f"{OUT}/{run}/{part}" not in objects:
                raise Broken(f"generation {number} of {run} lacks {part}")
            new += rows_of(objects[f"{OUT}/{run}/{part}"].data)
        if len(new) != plan.images or {name for name, _ in new} & images.keys():
            raise Broken(f"generation {number} of {run} is not of one piece")
        self.planned[run, number] = {**images, **dict(new)}

    def _pointer(self, key: str, driver: Driver | None) -> None:
        pointer = self.json(key)
        if pointer is None:  # of a run that is removed
            self.known.pop(key, None)
            self.epochs.pop(key, None)
            return self._live()
        epoch = pointer.get("epoch", 0)
        if epoch < self.epochs.get(key, 0):
            raise Broken(f"{key} moved from epoch {self.epochs[key]} to {epoch}")
        self.epochs[key] = epoch
        current = pointer["run"] if "run" in pointer else pointer["snapshot"]
        history = {current, *pointer.get("previous", ()), *pointer.get("withdrawn", ())}
        lost = self.known.get(key, set()) - history
        pruned = driver is not None and driver.name.startswith("prune")
        if lost and not pruned:
            raise Broken(f"{key} has forgotten {sorted(lost)}")
        self.known[key] = history
        if "snapshot" in pointer:
            run = key.split("/")[1]
            if self.images(run, current) != self.planned[run, current]:
                raise Broken(f"snapshot {current} of {run} is not what was planned")
        self._live()
        return None

    def _live(self) -> None:
        live = self.live()
        if live is not None and live not in self.passed:
            raise Broken(f"readers see snapshot {live[1]} of {live[0]}, which no gate let pass")

    def _all_whole(self, run: str, rest: str) -> None:
        """No snapshot that is there names a shard that is gone, and no pointer such a snapshot."""
        pointer = self.json(f"{OUT}/{run}/latest.json")
        if pointer is not None:
            self.images(run, pointer["snapshot"])
        for key, found in self.world.objects.items():
            if key.startswith(f"{OUT}/{run}/snapshots/"):
                gone = [
                    s for s in shards_of(found.data) if f"{OUT}/{run}/{s}" not in self.world.objects
                ]
                if gone:
                    raise Broken(f"{key} names {gone[0]}, which is gone")
