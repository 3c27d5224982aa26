"""Archives of a source: the manifest rows of their members.

A member's file name is the archive's, a slash, and the member's name; its URI is the archive's with
the member's name as fragment. A tar is read whole to be listed, so a job lists many tars in
parallel, by Ray tasks (`cluster/archive_tasks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple, Protocol, Self

import pyarrow as pa

from pipeline.planning.manifest import manifest_table
from pipeline.planning.photo_names import LeftOut
from pipeline.storage.archives import Member, kind_of, list_members, member_uri
from pipeline.storage.entry import Entry, classify, of_storage, passes
from pipeline.storage.objects import open_object

# Calls a function with each archive; gives the results in any order.
Each = Callable[
    [Callable[["Archive"], tuple[pa.Table, LeftOut]], Iterable["Archive"]],
    Iterator[tuple[pa.Table, LeftOut]],
]
LISTING_THREADS: Final = 8


class Archive(NamedTuple):
    """An archive to list. name: of its images' file names; entry: its object info, None: to ask."""

    name: str
    uri: str
    entry: Entry | None


class Chooses(Protocol):
    """What decides which members are listed, and counts the others; it is sent to tasks."""

    @property
    def options(self) -> dict[str, str]: ...
    @property
    def left_out(self) -> LeftOut: ...
    def without_counts(self) -> Self: ...
    def wanted(self, path: str) -> bool: ...


def list_archive(source: Chooses, archive: Archive) -> tuple[pa.Table, LeftOut]:
    """Manifest rows of the members of an archive that `source` takes, and what it left out.

    What is wrong with the archive becomes a row of the archive's own name.
    """
    source = source.without_counts()
    members: Sequence[Member] = ()
    fault = None
    try:
        storage, name = open_object(archive.uri, source.options)
        entry = archive.entry or storage.info(name)
        archive = archive._replace(entry=entry._replace(path=name))
        listing = list_members(
            storage, entry._replace(path=name), lambda m: source.wanted(f"{archive.name}/{m}")
        )
    except Exception as error:
        if not of_storage(error) or passes(error):
            raise
        fault = ": ".join(classify(error))
    else:
        source.left_out.members.update(+listing.skipped)
        members = listing.members
        if listing.fault is not None:
            fault = f"{listing.code}: {listing.fault}"
    table = member_table(archive, members)
    if fault is not None:
        table = pa.concat_tables([table, _fault_table(archive, fault)])
    return table, source.left_out


def member_table(
    archive: Archive, members: Sequence[Member | None], names: Sequence[str] | None = None
) -> pa.Table:
    """Manifest rows of members. names: the file names; None in `members`: it is not there."""
    etag, time = (
        (archive.entry.etag, archive.entry.last_modified) if archive.entry else (None, None)
    )
    found = [m.name if m else str(n) for m, n in zip(members, names or members, strict=True)]
    names = names or [f"{archive.name}/{name}" for name in found]
    entries = [
        Entry(name, member.size if member else -1, etag, time)
        for name, member in zip(names, members, strict=True)
    ]
    kind = kind_of(archive.uri)
    return manifest_table(
        entries,
        [member_uri(archive.uri, name) for name in found],
        member={
            "archive": [kind] * len(entries),
            "offset": [m.offset if m else None for m in members],
            "length": [m.length if m else None for m in members],
            "crc32": [m.crc32 if m else None for m in members],
            "fault": [None if m else "not_found: the archive has no such member" for m in members],
        },
    )


def _fault_table(archive: Archive, fault: str) -> pa.Table:
    entry = archive.entry or Entry("", -1, None, None)
    member = {"archive": [kind_of(archive.uri)], "fault": [fault]}
    return manifest_table([entry._replace(path=archive.name)], [archive.uri], member=member)


def in_threads(
    function: Callable[[Archive], tuple[pa.Table, LeftOut]], archives: Iterable[Archive]
) -> Iterator[tuple[pa.Table, LeftOut]]:
    """`Each` on this machine; few results are held at a time."""
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        remaining = iter(archives)
        while group := list(islice(remaining, LISTING_THREADS)):
            yield from pool.map(function, group)
