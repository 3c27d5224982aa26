"""`panoptic sql`: SQL queries over a run folder's shards, by DuckDB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import typer
from rich.table import Table
from rich.text import Text

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutFolder, OutOptions, ShownSnapshot, parse_options
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.report.sql import connect, query
from pipeline.run.run import Run, open_run

_FORMATS: Final = (".parquet", ".csv")
_LONGEST_CELL: Final = 60


def sql(
    out: OutFolder,
    text: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="SQL. Without QUERY, views are listed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most rows to print; 0 prints all.")] = 50,
    output: Annotated[
        Path | None, typer.Option(help="Write all rows to this .parquet or .csv file.")
    ] = None,
    snapshot: ShownSnapshot = None,
    evaluation: Annotated[
        str | None, typer.Option(help="The evaluation that per_image shows. Default: the newest.")
    ] = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Answer an SQL query over the views images, segments, categories and per_image of OUT.

    panoptic sql runs/photos "select category, count(*) from segments group by 1 order by 2 desc"

    panoptic sql runs/photos lists the views and their columns.
    """
    run = open_run(out, parse_options(out_option, "--out-option"))
    if text is None:
        _list_views(run, snapshot, evaluation, json_output=json_output)
        return
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise UserError(f"--output {str(output)!r} must end in {' or '.join(_FORMATS)}")
    answer = query(run, text, snapshot=snapshot, evaluation=evaluation)
    if output is not None:
        _write(answer, output)
        return
    rows = answer.slice(0, limit or None)
    if json_output:
        listed = [[_plain(value) for value in row.values()] for row in rows.to_pylist()]
        print_json({"columns": answer.column_names, "rows": listed, "total": answer.num_rows})
        return
    console = plain_console()
    table = Table(box=None)
    for field in answer.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        justify = "right" if number else "left"
        table.add_column(field.name, justify=justify, overflow="fold")
    for row in rows.to_pylist():
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)
    if answer.num_rows > rows.num_rows:
        console.print(
            f"... and {answer.num_rows - rows.num_rows:,} more rows (--limit 0 prints all, "
            "--output writes them to a file)"
        )


def _list_views(
    run: Run, snapshot: int | None, evaluation: str | None, *, json_output: bool
) -> None:
    with connect(run, snapshot=snapshot, evaluation=evaluation) as connection:
        names = ("images", "segments", "categories", "per_image")
        tables = {name for (name,) in connection.execute("show tables").fetchall()}
        views = {
            name: [
                (column, kind)
                for column, kind, *_ in connection.execute(f"describe {name}").fetchall()
            ]
            for name in names
            if name in tables
        }
    if json_output:
        print_json(views)
        return
    console = plain_console()
    for name, columns in views.items():
        console.print(Text(name, style="bold"))
        for column, kind in columns:
            console.print(f"  {column}  {kind.lower()}")
    if "per_image" not in views:
        console.print("per_image is there once the run is evaluated (panoptic evaluate)")


def _write(answer: pa.Table, output: Path) -> None:
    try:
        if output.suffix.lower() == ".parquet":
            pq.write_table(answer, output, compression="zstd")
        else:
            pyarrow.csv.write_csv(answer, output)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"can't write --output {output}: {error}") from error
    plain_console().print(f"{counted(answer.num_rows, 'row')} in {output}")


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."


def _plain(value: Any) -> Any:
    """A value for JSON; dates and blobs as text."""
    return value if isinstance(value, (str, int, float, list, dict, type(None))) else str(value)
