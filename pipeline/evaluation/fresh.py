"""Fresh folders: many objects that readers see at once, when one object names their folder.

An evaluation writes its rows and its truth into a new folder of its own, and then one object with
the name of this folder. So two evaluations of one name never mix their files, and a reader sees the
rows of one evaluation only.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

from pipeline.storage.storage import Storage

STAMP: Final = "%Y-%m-%dT%H%M%S.%fZ"
KEPT: Final = timedelta(days=1)  # longer than any evaluation takes
_NAME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d{6}\.\d+Z)-[0-9a-f]{8}")


def fresh_name() -> str:
    """A unique folder name: the time (UTC), from which `sweep` reads the age, and random digits."""
    return f"{datetime.now(UTC).strftime(STAMP)}-{uuid.uuid4().hex[:8]}"


def sweep(storage: Storage, folder: str, *, keep: str, replaced: str | None = None) -> None:
    """Delete from `folder` the fresh folder `replaced`, and each fresh folder older than KEPT.

    The fresh folder `keep` always stays, and younger ones may belong to an evaluation that still
    runs. Parquet files directly in `folder`, which older versions wrote, are deleted, too.
    """
    now = datetime.now(UTC)
    for entry in list(storage.list(folder)):
        name, below, _ = entry.path[len(folder) + 1 :].partition("/")
        match = _NAME.fullmatch(name)
        if match is not None and below and name != keep:
            age = now - datetime.strptime(match[1], STAMP).replace(tzinfo=UTC)
            gone = name == replaced or age > KEPT
        else:  # older versions wrote Parquet files without a fresh folder
            gone = not below and name.endswith(".parquet")
        if gone:
            storage.delete(entry.path)
