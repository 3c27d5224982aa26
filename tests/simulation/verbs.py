"""The real verbs in a simulated world: only the model, the listing and Ray are made up."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import duckdb
import pyarrow as pa
import pytest

import pipeline.nightly.nightly as nightly_module
import pipeline.planning.generations as planning
import pipeline.run.lease as lease_module
import pipeline.run.stats as stats_module
import pipeline.segmentation.job as job
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.nightly.nightly import _Night, nightly
from pipeline.nightly.prune import prune as prune_storage
from pipeline.nightly.release_gate import Judged
from pipeline.nightly.rollback import rollback as roll_back
from pipeline.nightly.settings import NightlyConfig
from pipeline.planning.photo_names import LeftOut, PhotoNames
from pipeline.planning.scratch_db import Staging
from pipeline.progress import Progress, Reporter
from pipeline.run.lease import Hold
from pipeline.run.run import Run, find_run
from pipeline.run.series import PREFIX, Nights, Pinned
from pipeline.run.shard_format import Provenance, put_shard
from pipeline.run.snapshots import RunSnapshot
from pipeline.run.writing import is_nights
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.segmentation.graph import copy_shard
from pipeline.sharding import Rewrite, WorkUnit, name_hash
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import run_info, shard_row
from tests.simulation.promises import OUT, Promises
from tests.simulation.world import Object, SimulatedObjects, World

WEIGHTS = ("a", "b")
PASSES = 0.75  # part of the snapshots that the gate lets pass


@dataclass
class Field:
    """The world and the folder of images beside it."""

    world: World
    promises: Promises
    images: dict[str, str] = field(default_factory=dict)  # file name -> ETag
    failing: set[str] = field(default_factory=set)
    gate: Callable[[], bool] | None = None  # by default drawn


class SimulatedStorage(Storage):
    """`Storage` on the world's objects."""

    field: ClassVar[Field]

    def __init__(self, url: Any, options: Mapping[str, str] | None = None) -> None:
        world = self.field.world
        self.url = str(url).rstrip("/")
        self.options = {}
        self.objects = SimulatedObjects(world)
        self.root = self.url.removeprefix("sim://")
        self.clock = world.host()

    def open(self, path: str) -> IO[bytes]:
        return io.BytesIO(self.read(path))


def fingerprint(weights: str) -> str:
    return weights * 16


def info(weights: str) -> Any:
    made = run_info(SCENE_CATEGORIES, source="/photos", config={"dtype": "fp32"})
    return dataclasses.replace(made, fingerprint=fingerprint(weights))


class Listing:
    """The images as they are at this moment."""

    url, include, exclude = "/photos", (), ()
    options: ClassVar[dict[str, str]] = {}
    left_out = LeftOut()
    photos = PhotoNames()

    def tables(self, progress: Callable[[int], None]) -> Iterator[pa.Table]:
        images = SimulatedStorage.field.images
        rows = [
            {"hash": name_hash(name), "file_name": name, "uri": f"/photos/{name}", "size": 1}
            | {"etag": etag, "attempts": 0}
            for name, etag in images.items()
        ]
        yield pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


_database = duckdb.connect(config={"threads": 1})
_numbers = itertools.count()


class QuickStaging(Staging):
    """Tables in the memory of one database, each plan in a schema of its own."""

    def __enter__(self) -> QuickStaging:
        self.connection = _database.cursor()
        self._schema = f"plan{next(_numbers)}"
        self.connection.execute(f"create schema {self._schema}; set schema = '{self._schema}'")
        return self

    def close(self) -> None:
        if self._schema:
            self.connection.execute(f"drop schema {self._schema} cascade")
            self._schema = ""
            self.connection.close()

    def stage(self, name: str, tables: Iterator[pa.Table]) -> int:
        found = list(tables)
        if not found:
            return 0
        table = pa.concat_tables(found)
        self.connection.register("staged", table)
        self.connection.execute(f"create table {name} as from staged")
        self.connection.unregister("staged")
        return table.num_rows


class SimulatedNight(_Night):
    """A night without a model: the real order of steps, a made listing, a drawn verdict."""

    def __init__(
        self, nights: Nights, config: NightlyConfig, reporter: Reporter, held: ExitStack
    ) -> None:
        self.nights, self.config, self.reporter, self.held = nights, config, reporter, held
        self.hold: Hold | None = None
        self.began = 0.0
        self.started = datetime(2026, 11, 27, tzinfo=UTC)
        self.live = nights.live()
        self.device: Any = SimpleNamespace(kind="cpu", name="cpu", dtype="fp32")
        self.spec: Any = None
        self.description: Any = None
        self.name = PREFIX + fingerprint(config.weights)
        self.settings: Any = config.of_run(nights.storage.join(self.name))
        self.same_weights = self.live is None or nights.live_name() == self.name
        self._refuse_withdrawn()

    def _source(self, run: Run | None) -> Any:
        return Listing()

    def _suffixes(self) -> tuple[str, ...]:
        return ()

    def _judge(self, candidate: RunSnapshot) -> Judged:
        field = SimulatedStorage.field
        passes = field.gate() if field.gate else field.world.random.random() < PASSES
        if not passes:
            return Judged(("drawn",))
        field.promises.passed.add((self.name, candidate.number))
        return Judged((), {"images": {"scored": 0}})

    def _pin(self, candidate: RunSnapshot) -> None:
        self.nights.pin(Pinned(self.name, candidate.number, "gt"))


def execute(
    run: Run,
    units: Mapping[int, list[WorkUnit]],
    rewrites: list[Rewrite],
    *,
    done: Callable[[Progress], None],
    **_: Any,
) -> Progress:
    """What the workers do, one after the other."""
    provenance = Provenance(run.info.fingerprint, run.info.weights_sha256, "cpu")
    computed = 0
    for number, owed in units.items():
        for unit in owed:
            rows = [_row(listed, number) for listed in run.read_unit(unit).to_pylist()]
            table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
            put_shard(run.storage, unit.path, table, provenance)
            computed += unit.images
    for rewrite in rewrites:
        copy_shard(run, rewrite, run.generation(rewrite.generation).dropped_path)
    progress = Progress(total=computed, done=computed, ok=computed)
    done(progress)
    return progress


def _row(listed: dict[str, Any], generation: int) -> dict[str, Any]:
    name = listed["file_name"]
    fails = name in SimulatedStorage.field.failing and listed["attempts"] == 0
    row = shard_row(name, "timeout", uri=listed["uri"], generation=generation)
    if not fails:
        row |= {"status": "ok", "error_code": None, "height": 1, "width": 1}
    return {**row, "etag": listed["etag"], "attempts": listed["attempts"] + 1}


class Spec:
    """Stands for a model's description."""

    @classmethod
    def of(cls, config: Any, **_: Any) -> Spec:
        return cls()

    def describe(self) -> None:
        return None

    def expecting(self, description: None) -> Spec:
        return self


@contextmanager
def installed(field: Field) -> Iterator[None]:
    """The verbs of this process work in this world."""
    patch = pytest.MonkeyPatch()
    SimulatedStorage.field = field
    for module in (nightly_module, job):
        patch.setattr(module, "Storage", SimulatedStorage)
        patch.setattr(module, "Staging", QuickStaging)
        patch.setattr(module, "check_same", lambda *_: None)
        patch.setattr(module, "ModelSpec", Spec)
        patch.setattr(module, "describe_run", lambda config, *_: info(config.weights))
    patch.setattr(planning, "Staging", QuickStaging)
    patch.setattr(nightly_module, "_Night", SimulatedNight)
    patch.setattr(lease_module, "Process", field.world.host)
    patch.setattr(stats_module, "versions", dict)
    patch.setattr(job, "Source", SimpleNamespace(of=lambda *_: Listing()))
    patch.setattr(job, "join_ray", lambda *_: None)
    patch.setattr(job, "capacity", lambda *_: SimpleNamespace(ceiling=lambda kind: 0))
    patch.setattr(job, "place", lambda *_, **__: SimpleNamespace(device="cpu"))
    patch.setattr(job, "execute", execute)
    patch.setattr(job, "decide_device", lambda *_: SimulatedDevice)
    try:
        yield
    finally:
        patch.undo()


SimulatedDevice = SimpleNamespace(kind="cpu", name="cpu", dtype="fp32")
_SETTINGS = {
    "source": "/photos",
    "images_per_shard": 3,
    "max_removed_rate": 1.0,
    "threshold": 0.5,  # the description that stands for the model's recommends none
}
_SETTINGS |= {"max_error_rate": 1.0, "device": "cpu"}
NIGHTS = {
    weights: load_config(
        NightlyConfig, {**_SETTINGS, "out": f"sim://{OUT}", "weights": weights, "allow_full": True}
    )
    for weights in WEIGHTS
}


def night(weights: str) -> Callable[[], Any]:
    return lambda: nightly(NIGHTS[weights])


def retry(path: str) -> Callable[[], Any]:
    def work() -> Any:
        if find_run(SimulatedStorage(f"sim://{path}")) is None:
            raise UserError("there is no run")  # as the command line says
        return job.retry(NIGHTS["a"].of_run(f"sim://{path}"), ())

    return work


def segment(path: str, *, refresh: bool) -> Callable[[], Any]:
    config = NIGHTS["a"].of_run(f"sim://{path}").model_copy(update={"refresh": refresh})

    def work() -> Any:
        storage = SimulatedStorage(f"sim://{path}")
        if find_run(storage) is None and not is_nights(storage):
            raise UserError("it would make a run folder there, which is another story")
        return job.segment(config)

    return work


def rollback(path: str, to: str | None = None) -> Callable[[], Any]:
    return lambda: roll_back(SimulatedStorage(f"sim://{path}"), to)


def prune(path: str, keep: int) -> Callable[[], Any]:
    return lambda: prune_storage(SimulatedStorage(f"sim://{path}"), keep)


def fresh(images: Mapping[str, str], objects: dict[str, Object], seed: int = 0) -> Field:
    world = World(seed, objects)
    return Field(world, Promises(world), dict(images))
