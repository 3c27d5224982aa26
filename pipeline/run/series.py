"""A folder of nights: run folders by fingerprint, and a pointer to the published one.

    OUT/latest.json              {"run": "run-0123456789abcdef"}: written last
    OUT/run-0123456789abcdef/    a run folder, with its own `latest.json`
    OUT/baseline.json            the snapshot that new weights are compared with
    OUT/nights/TIME.json .txt    summary of each call

New weights get a new run folder, so the old rows stay complete while the new ones are computed. A
night publishes by one PUT: of the run's `latest.json`, or, if the fingerprint changed, of OUT's
(the new run's `latest.json` is written before, while nobody reads it). Readers of OUT follow both.
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
from pipeline.run.folder import json_bytes, read_pointer
from pipeline.run.latest import forward
from pipeline.run.run import Run, find_run
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.storage import Storage

PREFIX: Final = "run-"
SUMMARY: Final = re.compile(r"nights/\d{4}-\d\d-\d\dT[^/]+\.(json|txt)")


@dataclass(frozen=True)
class Pinned:
    """`baseline.json`: the name of a run folder, a snapshot of it, and an evaluation of that."""

    run: str
    snapshot: int
    evaluation: str


class Nights:
    """A folder of nights, which need not exist yet. Raises UserError for a run folder.

    fence: the lease of the writer; None to read, or where nobody else can write.
    """

    def __init__(self, storage: Storage, fence: Fence | None = None) -> None:
        self.storage = storage
        self.fence = fence
        if storage.exists(RUN_FILE):
            raise self._is_run()

    # -- run folders

    def run_names(self) -> list[str]:
        """Names of the run folders, published or not, sorted."""
        tops = {entry.path.split("/")[0] for entry in self.storage.list() if "/" in entry.path}
        return sorted(top for top in tops if top.startswith(PREFIX))

    def run(self, name: str) -> Run | None:
        return find_run(self.storage.below(name))

    # -- what is live

    def pointer(self) -> dict[str, Any] | None:
        """`latest.json`, None if absent. Raises UserError if the folder is now a run folder."""
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
        """The published snapshot; None before the first."""
        pointer = self.pointer()
        run = self.run(pointer["run"]) if pointer else None
        number = run.latest() if run else None
        return RunSnapshot(run, number) if run and number is not None else None

    def live_name(self) -> str | None:
        return (self.pointer() or {}).get("run")

    def publish(self, name: str, run: Run, number: int) -> None:
        """Publish a snapshot of the run folder `name`. run: held under its own lease."""
        if run.latest() != number:
            run.publish(number)
        run.mark_success(True)
        if self.live_name() != name:
            self.move(lambda pointer: forward(pointer, "run", name))

    def move(self, change: Change) -> None:
        """Replace `latest.json` by change(content), as `fenced.move`."""
        fenced.move(self.storage, LATEST_FILE, change, self.fence)

    def published(self) -> Iterator[tuple[str, int]]:
        """(run folder, snapshot) of every snapshot that a rollback can publish, oldest first."""
        pointer = self.pointer() or {}
        for name in [*pointer.get("previous", ()), *([pointer["run"]] if pointer else [])]:
            run = self.run(name)
            latest = run.pointer() if run else None
            for number in [*latest.get("previous", ()), latest["snapshot"]] if latest else ():
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
        """The summary of the newest call, by its name, which is a time; None before the first."""
        names = (entry.path for entry in self.storage.list(NIGHTS))
        newest = max((name for name in names if name.endswith(".json")), default=None)
        return None if newest is None else json.loads(self.storage.read(newest))

    def write_summary(self, stamp: str, facts: dict[str, Any], text: str) -> None:
        self.storage.write(night_path(stamp, ".json"), json_bytes(facts))
        self.storage.write(night_path(stamp, ".txt"), text.encode())
