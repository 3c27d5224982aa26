"""`Run`, a run folder whose rows are read by name or as a table, and how to open or create it."""

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
from pipeline.run.lookup import NoImageError, find_row
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from pipeline.run.reader import ImageRow


class Run(RunFolder):
    """A run folder that exists. Pickles without its lease."""

    def __getitem__(self, file_name: str) -> ImageRow:
        """One image of the published snapshot. Raises NoImageError if the snapshot lacks it."""
        from pipeline.run.reader import ImageRow  # imports numba

        return ImageRow(find_row(self, file_name), self.info.categories)

    def __contains__(self, file_name: str) -> bool:
        """Raises UserError for an unreadable shard."""
        try:
            find_row(self, file_name)
        except NoImageError:
            return False
        return True

    __iter__ = None  # else Python would iterate by run[0], run[1] ...

    def table(
        self, columns: Sequence[str] | None = None, *, snapshot: int | None = None
    ) -> pa.Table:
        """The rows of a snapshot (by default the published one). columns: all but `counts`."""
        from pipeline.run.reader import read_table

        return read_table(self, self.snapshot(snapshot), columns)


def open_run(url: str, options: Mapping[str, str] | None = None) -> Run:
    """The run at `url`: a run folder, or a folder of nights, whose published run is opened.

    Raises UserError if there is no run, or one of a newer schema version.
    """
    run = find_run(Storage(url, options))
    if run is None:
        raise UserError(f"{url} is not a run folder: it has no {RUN_FILE}")
    return run


def find_run(storage: Storage) -> Run | None:
    """`open_run` of a storage; None if the folder holds no run."""
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
    """Write `run.json`; the caller makes sure that an existing one has no generation yet.

    Raises LeaseError if another job wrote `run.json` at the same moment.
    """
    values = dataclasses.asdict(info)
    if not info.withheld:  # older versions don't know the field
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
