"""Hashes, shards and rewrites, against the written definitions."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.sharding import (
    Generation,
    missing,
    name_hash,
    origin_of,
    parse_shards,
    rewrites_for,
    shard_count,
    shard_of,
    shard_start,
)

HASHES = st.integers(0, 2**64 - 1)
SHARDS = st.integers(1, 50_000)


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_the_hash_is_the_first_8_bytes_of_blake2b_big_endian(name: str) -> None:
    [expected] = struct.unpack(">Q", hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest())
    assert name_hash(name) == expected


@given(HASHES, SHARDS)
def test_a_hash_lies_between_its_shard_s_start_and_the_next_one_s(value: int, shards: int) -> None:
    shard = shard_of(value, shards)
    assert 0 <= shard < shards
    assert shard_start(shard, shards) <= value
    assert shard == shards - 1 or value < shard_start(shard + 1, shards)


def test_shards_hold_about_512_images_and_96_megabytes() -> None:
    assert shard_count(1, 0) == 1
    assert shard_count(4097, 0) == 9
    assert shard_count(10, 960_000_000) == 10
    assert shard_count(1_000_000, 0) == 1954


@pytest.mark.parametrize(
    ("images", "chosen", "shards"),
    [
        (63, None, 1),
        (64, None, 8),
        (4096, None, 8),
        (100, 512, 1),  # somebody's choice
        (100, 50, 2),
        (100_000_000, 512, 8_000),  # runs recorded that before it could be left open
        (100_000_000, 1000, 100_000),
    ],
)
def test_a_small_job_has_eight_shards_unless_somebody_chose(
    images: int, chosen: int | None, shards: int
) -> None:
    assert shard_count(images, 0, chosen) == shards


def test_large_runs_are_bounded_to_8000_shards_unless_shards_would_not_fit_memory() -> None:
    assert shard_count(100_000_000, 0) == 8_000
    assert shard_count(100_000_000, 10**13) == 25_000


def test_units_skip_empty_shards_and_count_row_groups_within_their_part() -> None:
    rows = (1, 0, *([2] * 62), 3)  # the 65th shard begins the second part
    units = list(Generation(1, "first", rows, 0).units())
    assert [unit.shard for unit in units] == [0, *range(2, 65)]
    assert (units[1].part, units[1].row_group) == ("manifest/0001/part-00000.parquet", 1)
    assert (units[-1].part, units[-1].row_group) == ("manifest/0001/part-00001.parquet", 0)
    assert units[-1].path == "segments/0001/shard-000064-of-000065.parquet"


def test_missing_shards_are_those_without_an_object() -> None:
    generation = Generation(1, "first", (1, 1, 0, 1), 0)
    present = {generation.shard_path(0)}
    assert [unit.shard for unit in missing(generation, present)] == [1, 3]


def test_a_generation_survives_json() -> None:
    rewrites, gone = rewrites_for(
        2, [("segments/0001/shard-000000-of-000001.parquet", 5)], {(1, 0): 2}
    )
    generation = Generation(2, "retry", (3,), 99, 1, 2, rewrites, gone, {"retry": 2})
    assert Generation.from_json(generation.to_json()) == generation


def test_only_shards_that_lose_rows_are_rewritten_and_emptied_ones_are_gone() -> None:
    live = [
        ("segments/0001/shard-000000-of-000003.parquet", 4),
        ("segments/0001/shard-000001-of-000003.parquet", 4),
        ("segments/0002/kept-0001-000002.parquet", 2),
    ]
    rewrites, gone = rewrites_for(3, live, {(1, 0): 1, (1, 2): 2})
    assert [(r.source, r.path, r.rows) for r in rewrites] == [
        (live[0][0], "segments/0003/kept-0001-000000.parquet", 3)
    ]
    assert gone == (live[2][0],)


def test_the_name_of_a_live_shard_tells_who_computed_it() -> None:
    assert origin_of("segments/0004/shard-000007-of-000009.parquet") == (4, 7)
    assert origin_of("segments/0004/kept-0002-000005.parquet") == (2, 5)
    with pytest.raises(UserError, match="edited by hand"):
        origin_of("segments/0004/other.parquet")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, range(9)), ("0:4", range(4)), (":4", range(4)), ("7:", range(7, 9))],
)
def test_chosen_shards(text: str | None, expected: range) -> None:
    assert parse_shards(text, 9) == expected


@pytest.mark.parametrize("text", ["9:12", "4:4", "x", "3", "5:2"])
def test_shards_that_choose_nothing_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--shards"):
        parse_shards(text, 9)
