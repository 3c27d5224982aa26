"""The leases that a verb needs to write in a run folder or a folder of nights.

1. A writer holds the lease of the run folder. If the run folder lies in a folder of nights, the
   writer takes the lease of the folder of nights first, whichever of the two paths the user gave.
2. In a folder of nights only `nightly`, `rollback` and `prune` change what readers see: `segment`
   and `retry` compute, and the next night checks and publishes.
3. `latest.json` and `baseline.json` are replaced only if they hold what was read, and hold the
   lease's epoch (fenced.py). Plans and shards are created only if absent: the objects of a plan
   have unique names and are valid once `generation.json` is written; a shard's name follows from
   the plan.

`evaluate`, `report` and `export` write other objects, and hold no lease.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pipeline.errors import LeaseError, UserError
from pipeline.layout import BASELINE_FILE, RUN_FILE
from pipeline.run.folder import read_pointer
from pipeline.run.lease import Hold, Host, lease, of_nights
from pipeline.run.run import Run, find_run
from pipeline.run.series import PREFIX, SUMMARY, Nights
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Place:
    """A run folder, and the folder of nights that holds it, if any. typed: as the user gave it."""

    typed: Storage
    run: Storage
    nights: Storage | None
    name: str = ""  # of the run folder in the folder of nights

    @property
    def urls(self) -> tuple[str, str | None]:
        return self.run.url, self.nights.url if self.nights is not None else None


@dataclass(frozen=True)
class Writer:
    """A `Place` whose leases this process holds."""

    place: Place
    hold: Hold  # of the run folder
    nights: Nights | None

    @property
    def may_publish(self) -> bool:
        """Whether `segment` and `retry` publish here: not in a folder of nights."""
        return self.nights is None

    def run(self) -> Run | None:
        """The run, read anew; None if there is none yet."""
        run = find_run(self.place.run)
        return None if run is None else run.held(self.hold)


def locate(storage: Storage) -> Place:
    """The run folder and the folder of nights of a path that the user gave.

    An absent path is a run folder to be made. Raises UserError for a folder of nights without a
    published run.
    """
    if not is_run(storage):
        name = (read_pointer(storage) or {}).get("run")
        if name:
            return Place(storage, storage.below(name), storage, name)
        if is_nights(storage):
            raise UserError(
                f"{storage.url} is a folder of nights with nothing published yet: let `panoptic "
                "nightly` finish a night, or name one of its run folders (run-...)"
            )
    # A symbolic link may lead to a run folder, or lie in the folder of nights.
    for named in (storage.resolved(), storage):
        name = named.url.rpartition("/")[2]
        above = named.above() if name.startswith(PREFIX) else None
        if above is None:
            continue
        run = find_run(storage)
        of_a_night = run is not None and name == f"{PREFIX}{run.info.fingerprint}"
        if of_a_night or is_nights(above):
            return Place(storage, storage, above, name)
    return Place(storage, storage, None)


def is_run(storage: Storage) -> bool:
    try:
        return storage.exists(RUN_FILE)
    except Exception as error:
        raise as_user_error(error, f"can't read {storage.join(RUN_FILE)}") from error


def is_nights(storage: Storage) -> bool:
    """Whether `storage` is a folder of nights, also during its first night."""
    if is_run(storage):
        return False
    return (
        of_nights(storage)
        or "run" in (read_pointer(storage) or {})
        or storage.look(BASELINE_FILE) is not None
        or _has_summaries(storage)  # by an older version
    )


def _has_summaries(storage: Storage) -> bool:
    """Whether `nights/` holds summaries of nights, not other files."""
    first = next(iter(storage.list("nights")), None)
    return first is not None and SUMMARY.fullmatch(first.path) is not None


@contextmanager
def writing(place: Place, *, host: Host | None = None) -> Iterator[Writer]:
    """Hold the leases of `place` within the block.

    Raises LeaseError naming another holder, or if the path meant another run before the leases were
    taken.
    """
    with ExitStack() as held:
        nights = None
        if place.nights is not None:
            outer = held.enter_context(lease(place.nights, of_nights=True, host=host))
            nights = Nights(place.nights, outer)
        hold = held.enter_context(lease(place.run, host=host))
        if locate(place.typed).urls != place.urls:
            raise LeaseError(
                f"{place.typed.url}: another job made or published a run there meanwhile: run the "
                "same command again"
            )
        yield Writer(place, hold, nights)
