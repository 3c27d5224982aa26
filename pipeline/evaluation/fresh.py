"""Fresh folders for what is written in many objects and counts only once it is complete.

An evaluation writes its rows and its truth into a folder that nobody else writes, and names it in
one object that is written last. So two evaluations of one name never mix, and a reader sees the
rows of one of them.
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
    """A folder name that nobody else has: the time, which says its age, and random digits."""
    return f"{datetime.now(UTC).strftime(STAMP)}-{uuid.uuid4().hex[:8]}"


def sweep(storage: Storage, folder: str, *, keep: str, replaced: str | None = None) -> None:
    """Delete the fresh folders in `folder` but `keep`: `replaced`, and those of a day ago or more.

    keep, replaced: names. Younger ones may belong to an evaluation that is still at work.
    """
    now = datetime.now(UTC)
    for entry in list(storage.list(folder)):
        name, below, _ = entry.path[len(folder) + 1 :].partition("/")
        match = _NAME.fullmatch(name)
        if match is not None and below and name != keep:
            age = now - datetime.strptime(match[1], STAMP).replace(tzinfo=UTC)
            gone = name == replaced or age > KEPT
        else:  # older versions wrote without such a folder
            gone = not below and name.endswith(".parquet")
        if gone:
            storage.delete(entry.path)
