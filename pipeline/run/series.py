"""A folder of nights: run folders by fingerprint, and the one pointer that says which is live.

    OUT/latest.json              {"run": "run-0123456789abcdef"}: moves last
    OUT/run-0123456789abcdef/    a run folder, with a `latest.json` of its own
    OUT/baseline.json            the snapshot that new weights must hold their own against
    OUT/nights/TIME.json .txt    what each call did

New weights get a run folder of their own, so old rows stay whole while the new ones are made. What
a night publishes is one PUT: the run's pointer, or, where the fingerprint changed, this folder's
(the new run's own pointer is set before, while nobody reads it). Every reader that is given OUT
follows both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from pipeline.errors import UserError
from pipeline.layout import BASELINE_FILE, LATEST_FILE, NIGHTS, RUN_FILE, night_path
from pipeline.run import fenced
from pipeline.run.fenced import Change, Fence
from pipeline.run.folder import read_pointer
from pipeline.run.latest import forward
from pipeline.run.run import Run, find_run
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.storage import Storage

PREFIX: Final = "run-"
SUMMARY: Final = re.compile(r"nights/\d{4}-\d\d-\d\dT[^/]+\.(json|txt)")


@dataclass(frozen=True)
class Pinned:
    """`baseline.json`: a run folder of this folder, a snapshot of it, and its evaluation."""

    run: str
    snapshot: int
    evaluation: str


class Nights:
    """The folder. It need not exist yet.

    fence: the lease under which it is written; None to read it, or where nobody else can write.
    """

    def __init__(self, storage: Storage, fence: Fence | None = None) -> None:
        self.storage = storage
        self.fence = fence
        if storage.exists(RUN_FILE):
            raise self._is_run()

    # -- run folders

    def run_names(self) -> list[str]:
        """Every run folder in it, published or not."""
        tops = {entry.path.split("/")[0] for entry in self.storage.list() if "/" in entry.path}
        return sorted(top for top in tops if top.startswith(PREFIX))

    def url(self, name: str) -> str:
        return self.storage.join(name)

    def run_storage(self, name: str) -> Storage:
        return self.storage.below(name)

    def run(self, name: str) -> Run | None:
        return find_run(self.run_storage(name))

    # -- what is live

    def pointer(self) -> dict[str, Any] | None:
        """Raises UserError if a run was made in this folder meanwhile."""
        pointer = read_pointer(self.storage)
        if pointer is not None and "run" not in pointer:
            raise self._is_run()
        return pointer

    def _is_run(self) -> UserError:
        return UserError(
            f"{self.storage.url} is a run folder; nights need a folder of their own, in which run "
            "folders are made: give another out"
        )

    def live(self) -> RunSnapshot | None:
        """What readers see, None before the first publishing."""
        pointer = self.pointer()
        run = self.run(pointer["run"]) if pointer else None
        number = run.latest() if run else None
        return RunSnapshot(run, number) if run and number is not None else None

    def live_name(self) -> str | None:
        return (self.pointer() or {}).get("run")

    def publish(self, name: str, run: Run, number: int) -> None:
        """Readers see this snapshot from now on. run: under its own lease."""
        if run.latest() != number:
            run.publish(number)
        run.mark_success(True)
        if self.live_name() != name:
            self.move(lambda pointer: forward(pointer, "run", name))

    def move(self, change: Change) -> None:
        """Put what `change` makes of `latest.json` in its place. Raises LeaseError (fenced.py)."""
        fenced.move(self.storage, LATEST_FILE, change, self.fence)

    def published(self) -> Iterator[tuple[str, int]]:
        """(run folder, snapshot) of what was published and a rollback can reach, oldest first."""
        pointer = self.pointer() or {}
        for name in [*pointer.get("previous", ()), *([pointer["run"]] if pointer else [])]:
            run = self.run(name)
            own = run.pointer() if run else None
            for number in [*own.get("previous", ()), own["snapshot"]] if own else ():
                yield name, int(number)

    # -- the baseline

    def pinned(self) -> Pinned | None:
        pinned = fenced.read(self.storage, BASELINE_FILE)
        return None if pinned is None else Pinned(**pinned)

    def pin(self, pinned: Pinned) -> None:
        fenced.move(self.storage, BASELINE_FILE, lambda _: asdict(pinned), self.fence)

    def pinned_snapshot(self, pinned: Pinned) -> RunSnapshot:
        run = self.run(pinned.run)
        if run is None:
            raise UserError(
                f"{self.storage.join(BASELINE_FILE)} names {pinned.run}, which is gone: delete it, "
                "and the next published night becomes the baseline"
            )
        return RunSnapshot(run, pinned.snapshot)

    def last_summary(self) -> dict[str, Any] | None:
        """What the call before said (its names are times), None before the first."""
        names = (entry.path for entry in self.storage.list(NIGHTS))
        newest = max((name for name in names if name.endswith(".json")), default=None)
        return None if newest is None else json.loads(self.storage.read(newest))

    def write_summary(self, stamp: str, facts: dict[str, Any], text: str) -> None:
        self.storage.write(night_path(stamp, ".json"), _json(facts))
        self.storage.write(night_path(stamp, ".txt"), text.encode())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
