"""Which image goes into which shard, and which shards of a generation are missing. Pure.

The hash of a file name gives its shard: hash * shards >> 64. So each shard is a uniform random
sample of the images, an image is found without an index, and the truth of a shard is one range of
rows of a truth that is sorted by the same hash.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.layout import (
    KEPT_PATTERN,
    SHARD_PATTERN,
    dropped_path,
    kept_path,
    part_path,
    shard_path,
)

IMAGES_PER_SHARD: Final = 512
# Of a job of `WORTH_CUTTING` images or more, so that little is lost when it is stopped.
LEAST_SHARDS: Final = 8
WORTH_CUTTING: Final = 64
BYTES_PER_SHARD: Final = 96_000_000
# Each shard costs the driver 10 ms and 15 KB, so a job has no more shards than this...
MAX_SHARDS: Final = 8_000
# ...unless a shard would then have more encoded bytes than a worker can hold.
MAX_BYTES_PER_SHARD: Final = 400_000_000
SHARDS_PER_PART: Final = 64


def name_hash(file_name: str) -> int:
    """The first 8 bytes, big-endian, of blake2b(file_name, digest_size=8): a uint64."""
    return int.from_bytes(hashlib.blake2b(file_name.encode(), digest_size=8).digest(), "big")


def shard_of(name_hash: int, shards: int) -> int:
    """The index, below `shards`, of the shard with this hash: shards are equal ranges of hashes."""
    return name_hash * shards >> 64


def shard_start(index: int, shards: int) -> int:
    """The smallest hash of shard `index`; the largest is shard_start(index + 1, shards) - 1."""
    return -(-(index << 64) // shards)


def shard_count(images: int, total_bytes: int, images_per_shard: int | None = None) -> int:
    """The number of shards for so many images and encoded bytes.

    images_per_shard: the user's choice, which `MAX_SHARDS` does not bound; None:
    `IMAGES_PER_SHARD`, and at least `LEAST_SHARDS` from `WORTH_CUTTING` images on.
    """
    per_shard = images_per_shard or IMAGES_PER_SHARD
    wanted = max(math.ceil(images / per_shard), math.ceil(total_bytes / BYTES_PER_SHARD), 1)
    if images_per_shard is None and images >= WORTH_CUTTING:
        wanted = max(wanted, LEAST_SHARDS)
    if per_shard != IMAGES_PER_SHARD:
        return wanted
    return min(wanted, max(MAX_SHARDS, math.ceil(total_bytes / MAX_BYTES_PER_SHARD)))


def unit_key(generation: int, shard: int) -> str:
    """A shard's short name in the progress actor and the watchdog: `1/42`."""
    return f"{generation}/{shard}"


def unit_name(key: str) -> str:
    """A shard's name in sentences, such as `42 of generation 1`. key: `unit_key`."""
    generation, _, shard = key.partition("/")
    return f"{shard} of generation {generation}"


@dataclass(frozen=True)
class WorkUnit:
    """One shard to compute: where its manifest rows are, and the path of its object."""

    generation: int
    shard: int
    images: int
    part: str  # manifest part, relative to the run folder
    row_group: int
    path: str  # the shard's object, relative to the run folder

    @property
    def key(self) -> str:
        """The shard's `unit_key`."""
        return unit_key(self.generation, self.shard)


@dataclass(frozen=True)
class Rewrite:
    """A live shard that loses rows: `source` is copied to `path` without them."""

    source: str
    path: str
    generation: int  # whose list at `dropped_path` names the lost rows
    origin: int  # the generation that computed the shard
    shard: int
    rows: int  # of the copy


@dataclass(frozen=True)
class Generation:
    """`manifest/000G/generation.json`: one planned piece of work. Written last, never changed.

    plan: part of the names of the manifest parts and the dropped list, so that two plans of one
    number, of which only one is committed, share no object. Empty in older runs.
    """

    number: int
    reason: str  # "first", "retry" or "refresh"
    rows: tuple[int, ...]  # images of each shard, empty shards included
    bytes: int  # encoded bytes, as far as sizes are known
    base: int | None = None  # number of the snapshot that the next one is made from
    dropped: int = 0  # number of rows in the list at `dropped_path`
    rewrites: tuple[Rewrite, ...] = ()
    gone: tuple[str, ...] = ()  # paths of base shards that lose all rows
    counts: dict[str, int] = field(default_factory=dict)  # images by reason; only shown
    plan: str = ""

    @property
    def shards(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> int:
        return sum(self.rows)

    def shard_path(self, index: int) -> str:
        return shard_path(self.number, index, self.shards)

    def parts(self) -> list[str]:
        """Paths of the manifest parts that have rows, in the run folder; 64 shards each."""
        return [
            part_path(self.number, first // SHARDS_PER_PART, self.plan)
            for first in range(0, self.shards, SHARDS_PER_PART)
            if any(self.rows[first : first + SHARDS_PER_PART])
        ]

    @property
    def dropped_path(self) -> str:
        """Path of the rows that leave the base (`DROPPED_SCHEMA`); written if `dropped` > 0."""
        return dropped_path(self.number, self.plan)

    def units(self) -> Iterator[WorkUnit]:
        """The shards that have images, in order. An empty shard has no row group and no object."""
        group = 0
        for index, images in enumerate(self.rows):
            if index % SHARDS_PER_PART == 0:
                group = 0
            if not images:
                continue
            part = part_path(self.number, index // SHARDS_PER_PART, self.plan)
            yield WorkUnit(self.number, index, images, part, group, self.shard_path(index))
            group += 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Generation:
        lists = {name: tuple(data[name]) for name in ("rows", "gone")}
        rewrites = tuple(Rewrite(**rewrite) for rewrite in data["rewrites"])
        return cls(**{**data, **lists, "rewrites": rewrites})


def missing(generation: Generation, present: Collection[str]) -> list[WorkUnit]:
    """The shards of a generation whose objects are not among the paths `present`, in order."""
    return [unit for unit in generation.units() if unit.path not in present]


def rewrites_for(
    number: int,
    live: Sequence[tuple[str, int]],
    losses: dict[tuple[int, int], int],
) -> tuple[tuple[Rewrite, ...], tuple[str, ...]]:
    """The copies of live shards without their dropped rows, and the paths of shards that lose all.

    number: of the new generation; live: (path, rows) of each live shard; losses: dropped rows by
    (origin, shard), as `origin_of` reads them from a path.
    """
    rewrites: list[Rewrite] = []
    gone: list[str] = []
    for path, rows in live:
        origin, shard = origin_of(path)
        lost = losses.get((origin, shard), 0)
        if not lost:
            continue
        assert lost <= rows, (path, lost, rows)
        if lost == rows:
            gone.append(path)
            continue
        target = kept_path(number, origin, shard)
        rewrites.append(Rewrite(path, target, number, origin, shard, rows - lost))
    return tuple(rewrites), tuple(gone)


def origin_of(path: str) -> tuple[int, int]:
    """(generation that computed the rows, shard number there) of a live shard. Raises UserError."""
    match = re.fullmatch(SHARD_PATTERN, path) or re.fullmatch(KEPT_PATTERN, path)
    if match is None:
        raise UserError(f"{path!r} is not the name of a shard: the snapshot was edited by hand")
    return int(match[1]), int(match[2])


def parse_shards(text: str | None, shards: int) -> range:
    """The shard numbers that `--shards` chooses, such as `0:8`. Raises UserError if none.

    text: None for all; shards: of the generation.
    """
    if text is None:
        return range(shards)
    match = re.fullmatch(r"(\d*):(\d*)", text)
    chosen = range(int(match[1] or 0), min(int(match[2] or shards), shards)) if match else range(0)
    if not chosen:
        raise UserError(
            f"--shards {text!r} chooses none of this run's {counted(shards, 'shard')}: write "
            f"FIRST:END, for example 0:{min(8, shards)}"
        )
    return chosen
