"""A run as its readers hold it: its objects, and its rows by name or as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import LeaseError, UserError
from pipeline.layout import RUN_FILE
from pipeline.run.fenced import Fence, undamaged
from pipeline.run.folder import RunFolder, RunInfo, json_bytes, read_pointer
from pipeline.run.lookup import has_row
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.run.reader import ImageRow


class Run(RunFolder):
    """A run folder that exists. Pickles as its storage."""

    def __getitem__(self, file_name: str) -> ImageRow:
        """One image of the published snapshot. Raises UserError if the run hasn't got it."""
        from pipeline.run.reader import read_image  # here: it loads compiled code

        return read_image(self, file_name)

    def __contains__(self, file_name: str) -> bool:
        return has_row(self, file_name)

    __iter__ = None  # millions of rows are read by `table`; Python would ask for run[0], run[1] ...

    def table(
        self, columns: Sequence[str] | None = None, *, snapshot: int | None = None
    ) -> pa.Table:
        """The rows of a snapshot, by default the published one; masks (`counts`) if asked for."""
        from pipeline.run.reader import read_table

        return read_table(self, self.snapshot(snapshot), columns)


def open_run(url: str, options: Mapping[str, str] | None = None) -> Run:
    """The run folder at `url`. Raises UserError if it isn't one, or is of a newer schema."""
    run = find_run(Storage(url, options))
    if run is None:
        raise UserError(f"{url} is not a run folder: it has no {RUN_FILE}")
    return run


def find_run(storage: Storage) -> Run | None:
    """The run in this folder, or the published one of a folder of nights; None if there is none."""
    try:
        data = json.loads(storage.read(RUN_FILE))
    except (FileNotFoundError, NotADirectoryError):
        name = (read_pointer(storage) or {}).get("run")
        return find_run(storage.below(name)) if name else None
    except ValueError as error:
        raise UserError(f"{storage.join(RUN_FILE)} is not JSON: {error}") from error
    except Exception as error:
        raise as_user_error(error, f"can't read {storage.join(RUN_FILE)}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{storage.join(RUN_FILE)} is not a run's: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{storage.url} has schema version {version}, this program reads up to "
            f"{SCHEMA_VERSION}: install a newer version"
        )
    with undamaged(storage, RUN_FILE):
        return Run(storage, RunInfo(**data))


def create_run(storage: Storage, info: RunInfo, fence: Fence | None = None) -> Run:
    """Write `run.json`. One that was written before anything was planned is replaced.

    Raises LeaseError if another job wrote it just now.
    """
    values = dataclasses.asdict(info)
    if not info.withheld:  # so that older versions read it
        del values["withheld"]
    data = json_bytes(values)
    before = storage.look(RUN_FILE)
    if fence is not None:
        fence.check()
    done = (
        storage.write_if_absent(RUN_FILE, data)
        if before is None
        else storage.swap(RUN_FILE, before, data)
    )
    if not done:
        raise LeaseError(f"{storage.url}: another job made this run at the same moment")
    return Run(storage, info, fence)
