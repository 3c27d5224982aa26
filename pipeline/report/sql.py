"""A run folder as a DuckDB database: views over the shards in the store, without a copy.

    images       one row per image: name, status, error, size, number of segments, kept columns
    segments     one row per segment: category with its name, score, area, box, RLE string
    categories   the run's label set
    per_image    one row per image of an evaluation, by default the newest

DuckDB reads only the columns of a query: a count over a million images reads no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import duckdb
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.layout import PQ_FILE, evaluations_folder
from pipeline.run.folder import Snapshot
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from pipeline.schema import SEGMENT_COLUMNS, SHARD_SCHEMA
from pipeline.storage.duckdb_fs import path_literal, url_of

MEMORY_LIMIT: Final = "2GB"


def connect(
    run: Run, *, snapshot: int | None = None, evaluation: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views of one snapshot, by default the published one.

    evaluation: the NAME in OUT/evaluation/000N/NAME, by default the newest; without an evaluation
    there is no view `per_image`. Raises UserError if the snapshot or the evaluation is missing.
    """
    live = run.snapshot(snapshot)
    connection = duckdb.connect()
    connection.execute(f"set memory_limit = '{MEMORY_LIMIT}'")
    connection.execute("set TimeZone = 'UTC'")
    connection.register("category_list", _categories(run))
    connection.execute("create view categories as from category_list")
    connection.execute(f"create view shards as {_shards(connection, run, _paths(live))}")
    connection.execute(_IMAGES)
    connection.execute(_SEGMENTS)
    chosen = choose_evaluation(run, live.number, evaluation)
    if chosen is not None and (rows := RunSnapshot(run, live.number).rows(chosen)):
        connection.execute(f"create view per_image as {_scan(connection, run, rows)}")
    return connection


def query(
    run: Run, text: str, *, snapshot: int | None = None, evaluation: str | None = None
) -> pa.Table:
    """The result of one SQL query. Raises UserError for an error of DuckDB or a missing shard."""
    try:
        with connect(run, snapshot=snapshot, evaluation=evaluation) as connection:
            answer = connection.sql(text)  # None for a statement such as `copy ... to`
            return pa.table({}) if answer is None else answer.to_arrow_table()
    except duckdb.Error as error:
        raise UserError(_sentence(error)) from error
    except FileNotFoundError as error:
        raise UserError(
            f"a shard of {run.storage.url} is missing ({error}): run the same `panoptic "
            "segment` command again to recompute it"
        ) from error


def evaluations(run: Run, snapshot: int) -> list[str]:
    """Names of the finished evaluations of a snapshot, the newest first."""
    entries = [
        entry
        for entry in run.storage.list(evaluations_folder(snapshot))
        if entry.path.endswith(f"/{PQ_FILE}")
    ]
    entries.sort(key=lambda entry: (str(entry.last_modified or ""), entry.path), reverse=True)
    return [entry.path.split("/")[2] for entry in entries]


def choose_evaluation(run: Run, snapshot: int, name: str | None = None) -> str | None:
    """The evaluation `name` if it exists; without a name the newest, or None without evaluations.

    Raises UserError for a name that doesn't exist.
    """
    names = evaluations(run, snapshot)
    if name is None:
        return names[0] if names else None
    if name not in names:
        raise UserError(
            f"snapshot {snapshot} of {run.storage.url} has no evaluation {name!r} "
            f"(there are: {', '.join(names) or 'none'})"
        )
    return name


_IMAGES: Final = f"""
create view images as
select * exclude ({", ".join(SEGMENT_COLUMNS)}), len(segment_id)::integer as segments from shards
"""
_SEGMENTS: Final = """
create view segments as
with flat as (
    select file_name, height, width, unnest(segment_id) as segment_id,
        unnest(category_id) as category_id, unnest(isthing) as isthing, unnest(score) as score,
        unnest(area) as area, unnest(bbox) as bbox, unnest(counts) as counts
    from shards where status = 'ok'
)
select file_name, segment_id, category_id, categories.name as category, flat.isthing, score, area,
    area / (height::bigint * width) as share,
    bbox[1] as x, bbox[2] as y, bbox[3] as w, bbox[4] as h, counts
from flat left join categories on categories.id = flat.category_id
"""


def _categories(run: Run) -> pa.Table:
    rows = [
        {"id": category.id, "name": category.name, "isthing": category.isthing}
        for category in run.info.categories
    ]
    schema = pa.schema([("id", pa.int32()), ("name", pa.string()), ("isthing", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=schema)


def _paths(snapshot: Snapshot) -> list[str]:
    if not snapshot.shards:
        raise UserError(f"snapshot {snapshot.number} holds no images")
    return [shard.path for shard in snapshot.shards]


def _shards(connection: duckdb.DuckDBPyConnection, run: Run, paths: Sequence[str]) -> str:
    """The SQL of the rows of all shards; columns of SHARD_SCHEMA that older shards lack are null.

    The first and the last shard of each generation show whether any column is lacking: to match
    columns by name, DuckDB opens every shard before each query.
    """
    generations = groupby(sorted(paths), key=lambda path: path.rpartition("/")[0])
    ends = {end for _, (first, *rest) in generations for end in (first, *rest[-1:])}
    schemas = connection.execute(
        f"select list(name) from parquet_schema({_files(connection, run, sorted(ends))}) "
        "group by file_name"
    ).fetchall()
    newer = [f for f in SHARD_SCHEMA if any(f.name not in names for (names,) in schemas)]
    rows = _scan(connection, run, paths, by_name=bool(newer))
    if not newer:
        return rows
    connection.register("newer_columns", pa.schema(newer).empty_table())
    return f"{rows} union all by name from newer_columns"


def _scan(
    connection: duckdb.DuckDBPyConnection, run: Run, paths: Sequence[str], *, by_name: bool = False
) -> str:
    """The SQL `from read_parquet(...)` of objects of the run folder. by_name: match columns so."""
    # DuckDB would take a folder above, such as generation=7, for a Hive partition and overwrite
    # the column of that name.
    options = f"hive_partitioning = false, union_by_name = {str(by_name).lower()}"
    return f"from read_parquet({_files(connection, run, paths)}, {options})"


def _files(connection: duckdb.DuckDBPyConnection, run: Run, paths: Sequence[str]) -> str:
    """The SQL list of objects of the run folder."""
    urls = (path_literal(url_of(connection, run.storage, path)) for path in paths)
    return f"[{', '.join(urls)}]"


def _sentence(error: duckdb.Error) -> str:
    first = str(error).strip()
    if "per_image" in first and isinstance(error, duckdb.CatalogException):
        return "the run isn't evaluated, so there is no per_image: run `panoptic evaluate` first"
    return f"the query can't be answered: {first}"
