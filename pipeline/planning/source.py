"""The images of a source (folder, list, COCO JSON or S3 Inventory) as a stream of manifest rows.

Rows come in tables of at most 10,000, so memory does not grow with the number of images.
`file_name` (COCO's term) is the path within the source; for a list it is the URI, unless
--name-column is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.planning.archives import Archive, Each, in_threads, list_archive, member_table
from pipeline.planning.coco_panoptic import CocoFile, file_name_of
from pipeline.planning.lists import CHUNK, Columns, read_list, refuse_taken
from pipeline.planning.manifest import manifest_table
from pipeline.planning.photo_names import LeftOut, PhotoNames, is_companion, rule_of, suffix_of
from pipeline.planning.s3_inventory import (
    SOURCE_BUCKET,
    Inventory,
    is_dated,
    is_inventory,
    newest_manifest,
)
from pipeline.secrets import is_signed, refuse_user_info, without_query
from pipeline.sharding import name_hash
from pipeline.storage.archive_folder import ArchiveFolder, is_archive
from pipeline.storage.archives import is_compressed_tar, kind_of
from pipeline.storage.entry import Entry, as_lost, as_user_error, of_storage
from pipeline.storage.node_cache import local_copy
from pipeline.storage.objects import open_object, place_of
from pipeline.storage.storage import Storage, normalize_url

T = TypeVar("T")
LIST_SUFFIXES: Final = ("txt", "csv", "parquet")


@dataclass(frozen=True)
class Source:
    """The images to segment: a URL and the filters."""

    url: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_root: str | None = None
    uri_column: str | None = None
    name_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    output_url: str = ""  # of the run folder, whose files are no images
    keep_signed_urls: bool = False
    photos: PhotoNames = field(default_factory=PhotoNames)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)  # filled while listing
    each: Each = field(default=in_threads, compare=False)  # lists archives, in parallel or not

    @classmethod
    def of(
        cls,
        config: RunConfig,
        recorded: dict[str, Any] | None = None,
        each: Each = in_threads,
    ) -> Source:
        """The source of a config. recorded: `RunInfo.source` of an existing run."""
        photos = PhotoNames(any_suffix=config.any_suffix)
        if recorded is not None:
            photos = rule_of(
                recorded.get("suffixes"),
                config.any_suffix,
                archives=bool(recorded.get("archives")),
            )
        return cls(
            photos=photos,
            each=each,
            url=normalize_url(config.source),
            include=config.include,
            exclude=config.exclude,
            image_root=config.image_root,
            uri_column=config.uri_column,
            name_column=config.name_column,
            keep_columns=config.keep_columns,
            options=config.source_options,
            output_url=normalize_url(config.out),
            keep_signed_urls=config.keep_signed_urls,
        )

    @property
    def kind(self) -> str:
        suffix = suffix_of(self.url)
        if "://" not in self.url and Path(self.url).is_dir():
            return "folder"  # also one named x.json
        if suffix in LIST_SUFFIXES:
            return "list"
        if self.photos.archives and (kind_of(self.url) or is_compressed_tar(self.url)):
            return "archive"
        return "coco" if suffix == "json" else "folder"

    def tables(self, progress: Callable[[int], None] = lambda count: None) -> Iterator[pa.Table]:
        """Manifest rows (`MANIFEST_SCHEMA` and kept columns), unsorted.

        progress: gets the number of rows so far. Raises UserError if the source can't be read:
        for an exception of a storage client about the store, for others about the list.
        """
        refuse_taken(self.keep_columns)
        count = 0
        try:
            reader = {
                "folder": self._folder,
                "archive": self._archive,
                "list": self._list,
                "coco": self._coco,
            }[self.kind]
            for table in map(self._without_secrets, reader()):
                count += table.num_rows
                progress(count)
                yield table
        except (UserError, GeneratorExit):
            raise
        except FileNotFoundError as error:
            raise UserError(f"SOURCE {self.url} does not exist: check the path") from error
        except Exception as error:
            if not of_storage(error) and self.kind not in ("folder", "archive"):
                reason = str(error).split("\n", 1)[0]
                if isinstance(error, KeyError):
                    reason = f"it lacks {reason}"
                raise UserError(f"{self.url} can't be read: {reason}") from error
            as_sentence = as_lost if count else as_user_error
            raise as_sentence(error, f"can't list {self.url}") from error

    def _without_secrets(self, rows: pa.Table) -> pa.Table:
        """The rows with signatures removed from names; the keys of a folder stay as they are.

        Raises UserError for a signed URL without --keep-signed-urls, or with a password.
        """
        if self.kind in ("folder", "archive"):
            return rows
        for column in rows.column_names:
            if not pa.types.is_string(rows[column].type):
                continue
            urls = rows[column].to_pylist()
            signed = next((url for url in urls if url and is_signed(url)), None)
            if signed and (not self.keep_signed_urls or column in self.keep_columns):
                raise UserError(
                    f"{self.url} holds signed URLs ({column} {without_query(signed)}): let a role "
                    "or a profile read the bucket, and list plain URLs or name the images with "
                    "--name-column; or take them with --keep-signed-urls, in uri alone"
                )
            if signed and column == "file_name":
                rows = _renamed(rows, [without_query(name) for name in urls])
            if column in ("file_name", "uri"):
                for url in urls:
                    refuse_user_info(url, self.url)
        return rows

    def _folder(self) -> Iterator[pa.Table]:
        if self.output_url == self.url:
            raise UserError(
                f"--out is SOURCE itself, {self.url}: choose another folder, such as "
                f"{self.url}/panoptic"
            )
        if self._holds_output(self.url):
            self.left_out.run_folder = self.output_url
        storage = Storage(self.url, self.options)
        if storage.is_local:
            folder = Path(storage.url)
            if folder.is_file():
                raise UserError(
                    f"{self.url} is one file: give its folder, an archive (.zip .tar), a list "
                    "(.txt .csv .parquet), a COCO .json, or use `panoptic view` for one photo"
                )
            if not folder.is_dir():
                raise FileNotFoundError(self.url)
        listed = storage.list()
        if (first := next(listed, None)) is None:
            return
        listed = chain((first,), listed)
        if is_dated(first.path):  # the folder of an inventory: dated keys are the first
            if (path := newest_manifest(listed)) is None:
                raise UserError(
                    f"{self.url} has no complete inventory yet: S3 writes the first in a day or two"
                )
            yield from self._inventory(json.loads(storage.read(path)))
            return
        archives: list[Archive] = []

        def counts(entry: Entry) -> bool:
            if storage.is_local and entry.path.endswith("/"):
                return self._counts_closed(entry.path)
            return self._counts(entry.path, self.url)

        loose = self._without_archives(listed, storage.url, archives)
        for chunk in _chunks(filter(counts, loose)):
            yield manifest_table(chunk, [storage.join(entry.path) for entry in chunk])
        yield from self._members(archives)

    def without_counts(self) -> Source:
        """The same source, to be sent to a task that counts for itself."""
        return replace(self, left_out=LeftOut(), each=in_threads)

    def _archive(self) -> Iterator[pa.Table]:
        if is_compressed_tar(self.url):
            raise UserError(
                f"{self.url} is compressed as a whole, so no image in it can be read alone: unpack "
                "it to a plain .tar (such as by gunzip), or to a folder"
            )
        storage, name = open_object(self.url, self.options)
        entry = storage.info(name)
        yield from self._members([Archive(self.url.rpartition("/")[2], self.url, entry)])

    def _without_archives(
        self, entries: Iterable[Entry], root: str, archives: list[Archive]
    ) -> Iterator[Entry]:
        """The entries that are no archives; appends the others to `archives`."""
        for entry in entries:
            if not self.photos.archives or entry.path.endswith("/"):
                yield entry
            elif is_compressed_tar(entry.path):
                self.left_out.compressed[entry.path.rpartition(".")[2].lower()] += 1
            elif kind_of(entry.path) is None:
                yield entry
            elif is_companion(entry.path):
                self.left_out.companions += 1
            elif not any(_matches(entry.path, pattern) for pattern in self.exclude):
                archives.append(Archive(entry.path, f"{root}/{entry.path}", entry))

    def _members(self, archives: Iterable[Archive]) -> Iterator[pa.Table]:
        """Manifest rows of the members of archives, one listing for each."""
        for table, left_out in self.each(partial(list_archive, self.without_counts()), archives):
            self.left_out.add(left_out)
            yield from _slices(table)

    def _counts(self, path: str, root: str) -> bool:
        """Whether a path under `root` is `wanted` and is not in the run folder."""
        in_run = f"{root}/{path}".startswith(self.output_url + "/") and self._holds_output(root)
        return not in_run and self.wanted(path)

    def _holds_output(self, root: str) -> bool:
        return self.output_url.startswith(root + "/")

    def _counts_closed(self, folder: str) -> bool:
        """Whether an unreadable folder becomes an error row; else nobody would miss its photos."""
        if self.photos.leave_companions and is_companion(f"{folder}x"):
            self.left_out.companions += 1
            return False
        return not any(_matches(folder, pattern) for pattern in self.exclude)

    def wanted(self, path: str) -> bool:
        """Whether a path passes `exclude`, then `include` or, without `include`, `photos`.

        Counts in `left_out` what is left out for its suffix or as a companion.
        """
        if any(_matches(path, pattern) for pattern in self.exclude):
            return False
        if self.include and not any(_matches(path, pattern) for pattern in self.include):
            return False
        if self.photos.leave_companions and is_companion(path):
            self.left_out.companions += 1
            return False
        if self.include or self.photos.takes(path):
            return True
        self.left_out.suffixes[suffix_of(path)] += 1
        return False

    def _coco(self) -> Iterator[pa.Table]:
        file = CocoFile(self.url, self.options)
        root = self._image_root()
        rows = self._coco_rows(root)
        seen: set[str] = set()
        has_images = False
        chunk: list[str] = []
        for key, item in file.items():
            if key == SOURCE_BUCKET:
                data = json.loads(local_copy(self.url, self.options).read_bytes())
                if is_inventory(data):
                    yield from self._inventory(data)
                    return
            if key != "images":
                continue
            has_images = True
            name = file_name_of(item, file)
            if name in seen:
                continue  # one photo
            seen.add(name)
            chunk.append(name)
            if len(chunk) == CHUNK:
                yield rows(chunk)
                chunk = []
        if not has_images:
            raise UserError(f"{self.url} is not a COCO JSON: it has no list `images` with an entry")
        if chunk:
            yield rows(chunk)

    def _coco_rows(self, root: str) -> Callable[[list[str]], pa.Table]:
        """From names to manifest rows: of files, or of members if `root` is an archive."""
        if not (self.photos.archives and is_archive(root, self.options)):
            return lambda names: _named_table(root, names, names)
        folder = ArchiveFolder(root, self.options)
        archive = Archive("", root, folder.entry)
        members = folder.members

        def rows(names: list[str]) -> pa.Table:
            listed = [members.get(folder.named(name) or "") for name in names]
            return member_table(archive, listed, names)

        return rows

    def _inventory(self, data: dict[str, Any]) -> Iterator[pa.Table]:
        """Rows of the keys under --image-root, by default all; names are relative to it."""
        inventory = Inventory.of(data, self.url)
        root = normalize_url(self.image_root) if self.image_root else f"s3://{inventory.bucket}"
        bucket, _, folder = root.removeprefix("s3://").partition("/")
        if bucket != inventory.bucket or not root.startswith("s3://"):
            raise UserError(
                f"--image-root {root} is not in s3://{inventory.bucket}, which {self.url} lists"
            )
        start = len(folder) + 1 if folder else 0
        named = (
            entry._replace(path=entry.path[start:])
            for entry in inventory.entries(self.options)
            if not folder or entry.path.startswith(folder + "/")
        )
        archives: list[Archive] = []
        photos = self._without_archives(named, root, archives)
        for chunk in _chunks(entry for entry in photos if self._counts(entry.path, root)):
            yield manifest_table(chunk, [f"{root}/{entry.path}" for entry in chunk])
        yield from self._members(archives)

    def _list(self) -> Iterator[pa.Table]:
        columns = Columns(self.uri_column, self.name_column, self.keep_columns)
        root = self._image_root()
        for rows in read_list(Path(local_copy(self.url, self.options)), self.url, columns):
            if None in rows.names or None in rows.uris or "" in rows.names or "" in rows.uris:
                raise UserError(f"{self.url} has an empty name or URI: fill it or take the row out")
            uris = [place_of(root, str(uri)) for uri in rows.uris]
            packed = {
                number
                for number, uri in enumerate(uris)
                if self.photos.archives and kind_of(uri) and not is_signed(uri)
            }
            if packed and rows.kept:
                raise UserError(
                    f"{self.url} lists archives ({uris[min(packed)]}), whose images have no values "
                    "of --keep-columns: list the images themselves, or keep no columns"
                )
            loose = [number for number in range(len(uris)) if number not in packed]
            names = [str(name) for name in rows.names]
            yield _named_table(root, [names[n] for n in loose], [uris[n] for n in loose], rows.kept)
            yield from self._members(Archive(names[n], uris[n], None) for n in sorted(packed))

    def _image_root(self) -> str:
        return normalize_url(self.image_root) if self.image_root else self.url.rpartition("/")[0]


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    for first in range(0, table.num_rows, CHUNK):
        yield table.slice(first, CHUNK)


def _named_table(
    root: str, names: Iterable[Any], uris: Iterable[Any], kept: dict[str, Any] | None = None
) -> pa.Table:
    """Manifest rows of images that a file names. uris: absolute, or relative to `root`."""
    entries = [Entry(str(name), -1, None, None) for name in names]
    return manifest_table(entries, [place_of(root, str(uri)) for uri in uris], kept)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _renamed(rows: pa.Table, names: list[str]) -> pa.Table:
    """Manifest rows with other file names, and the hashes of these names."""
    for column, values in (
        ("file_name", pa.array(names, pa.string())),
        ("hash", pa.array(np.array([name_hash(name) for name in names], np.uint64))),
    ):
        at = rows.column_names.index(column)
        rows = rows.set_column(at, rows.schema.field(at), values)
    return rows


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path.rpartition("/")[2], pattern)
