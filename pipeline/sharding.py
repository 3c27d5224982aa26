"""Which image goes into which shard, and which shards a generation still owes. Pure.

The hash of a file name decides everything: shard = hash * n >> 64. So each shard is a uniform
random sample of the images, an image is found without an index, and truth sorted by the same hash
joins a shard with one row range.
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
# A small job is cut into so many shards, so that little is lost when it is stopped.
LEAST_SHARDS: Final = 8
WORTH_CUTTING: Final = 64  # images
BYTES_PER_SHARD: Final = 96_000_000
# More shards than this burden the driver (10 ms and 15 KB each) before they help anybody...
MAX_SHARDS: Final = 8_000
# ...unless a shard's encoded images would then no longer fit a worker's memory comfortably.
MAX_BYTES_PER_SHARD: Final = 400_000_000
SHARDS_PER_PART: Final = 64


def name_hash(file_name: str) -> int:
    """The first 8 bytes, big-endian, of blake2b(file_name, digest_size=8): a uint64."""
    return int.from_bytes(hashlib.blake2b(file_name.encode(), digest_size=8).digest(), "big")


def shard_of(name_hash: int, shards: int) -> int:
    """The shard, of `shards`, that holds this hash: equal ranges of the hash, in order."""
    return name_hash * shards >> 64


def shard_start(index: int, shards: int) -> int:
    """The smallest hash of shard `index`; its largest is one less than the next one's smallest."""
    return -(-(index << 64) // shards)


def shard_count(images: int, total_bytes: int, images_per_shard: int | None = None) -> int:
    """How many shards a generation of this many images and encoded bytes is packed into.

    images_per_shard: somebody's choice, kept at any number; None: `IMAGES_PER_SHARD`, and at least
    `LEAST_SHARDS` from `WORTH_CUTTING` images on.
    """
    per_shard = images_per_shard or IMAGES_PER_SHARD
    wanted = max(math.ceil(images / per_shard), math.ceil(total_bytes / BYTES_PER_SHARD), 1)
    if images_per_shard is None and images >= WORTH_CUTTING:
        wanted = max(wanted, LEAST_SHARDS)
    if per_shard != IMAGES_PER_SHARD:
        return wanted
    return min(wanted, max(MAX_SHARDS, math.ceil(total_bytes / MAX_BYTES_PER_SHARD)))


def unit_key(generation: int, shard: int) -> str:
    """A shard's short name, as the progress actor and the watchdog use it: `1/42`."""
    return f"{generation}/{shard}"


@dataclass(frozen=True)
class WorkUnit:
    """One shard to compute: where its manifest rows are, and where its rows go."""

    generation: int
    shard: int
    images: int
    part: str  # manifest part, relative to the run folder
    row_group: int
    path: str  # the shard's object, relative to the run folder

    @property
    def key(self) -> str:
        """How stages name the shard to each other."""
        return unit_key(self.generation, self.shard)


@dataclass(frozen=True)
class Rewrite:
    """A live shard that loses rows: copied without them, under a new name."""

    source: str
    path: str
    generation: int  # the generation whose `dropped` list names the rows that go
    origin: int  # the generation that computed the shard
    shard: int
    rows: int  # what must be left


@dataclass(frozen=True)
class Generation:
    """`manifest/000G/generation.json`: one planned piece of work. Written last, never changed.

    plan: part of the names of this plan's other objects, so that two plans of one number, of which
    one is committed, don't share any. Older plans have none.
    """

    number: int
    reason: str  # "first", "retry" or "refresh"
    rows: tuple[int, ...]  # images of each shard, empty shards included
    bytes: int  # encoded bytes, as far as the listing knows them
    base: int | None = None  # the snapshot that the new one is made from
    dropped: int = 0  # rows that leave the base: see manifest/000G/dropped.parquet
    rewrites: tuple[Rewrite, ...] = ()
    gone: tuple[str, ...] = ()  # base shards of which no row is left
    counts: dict[str, int] = field(default_factory=dict)  # images by reason, for people
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
        """The manifest's parts, 64 shards each, relative to the run folder."""
        return [
            part_path(self.number, first // SHARDS_PER_PART, self.plan)
            for first in range(0, self.shards, SHARDS_PER_PART)
            if any(self.rows[first : first + SHARDS_PER_PART])
        ]

    @property
    def dropped_path(self) -> str:
        """The list of rows that leave the base, where any do."""
        return dropped_path(self.number, self.plan)

    def units(self) -> Iterator[WorkUnit]:
        """Every shard that has images. An empty shard has no row group and no object."""
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
        rewrites = tuple(Rewrite(**rewrite) for rewrite in data["rewrites"])
        return cls(
            **{
                **data,
                "rows": tuple(data["rows"]),
                "gone": tuple(data["gone"]),
                "rewrites": rewrites,
            }
        )


def missing(generation: Generation, present: Collection[str]) -> list[WorkUnit]:
    """The shards of a generation that are not there yet, in order."""
    return [unit for unit in generation.units() if unit.path not in present]


def rewrites_for(
    number: int,
    live: Sequence[tuple[str, int]],
    losses: dict[tuple[int, int], int],
) -> tuple[tuple[Rewrite, ...], tuple[str, ...]]:
    """Which live shards must be copied without some rows, and which lose their last row.

    `live` gives path and rows of each live shard; `losses` counts the leaving rows by
    (generation that computed them, shard there). A live shard is either that shard's own object
    or an earlier rewrite of it; its name tells which.
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
    """The generation that computed a live shard's rows, and the shard's number there."""
    match = re.fullmatch(SHARD_PATTERN, path) or re.fullmatch(KEPT_PATTERN, path)
    if match is None:
        raise UserError(f"{path!r} is not the name of a shard: the snapshot was edited by hand")
    return int(match[1]), int(match[2])


def parse_shards(text: str | None, shards: int) -> range:
    """`--shards 0:8` as a range within the generation. Raises UserError."""
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
