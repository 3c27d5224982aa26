"""The rows of a list: `.txt`, one URI a line; `.csv` and `.parquet`, with columns to choose from.

Values of a CSV stay text: `000042` and `1e5` are names, and kept columns are strings. Kept columns
of a Parquet list have the types of the file. A list that can't be read raises one sentence with the
line or the column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from detr.inference.formats import known_format
from pipeline.errors import UserError
from pipeline.panoptic.per_image import PER_IMAGE_SCHEMA
from pipeline.schema import INTERNAL_COLUMNS, MANIFEST_SCHEMA, SHARD_SCHEMA

CHUNK: Final = 10_000
URI_COLUMNS: Final = ("uri", "url", "path", "file_name", "image")
DELIMITERS: Final = (",", ";", "\t", "|")
CSV_BLOCK: Final = 4 << 20
DECIMAL_DIGITS: Final = 38  # of DuckDB's widest type
# Column names of the pipeline, in lower case: DuckDB takes `Width` for `width`.
TAKEN: Final = frozenset(
    name.lower()
    for schema in (SHARD_SCHEMA, MANIFEST_SCHEMA, PER_IMAGE_SCHEMA)
    for name in (*schema.names, *INTERNAL_COLUMNS)
)


class Columns(NamedTuple):
    """The columns to read. uri: None for the first of `URI_COLUMNS`; name: None for that of uri."""

    uri: str | None
    name: str | None
    kept: tuple[str, ...]

    def wanted(self) -> list[str]:
        """The distinct names, in order."""
        return list(dict.fromkeys(name for name in (self.uri, self.name, *self.kept) if name))


class Rows(NamedTuple):
    """A chunk of rows of a list. kept: values by column name."""

    names: list[str | None]
    uris: list[str | None]
    kept: dict[str, pa.Array]


def read_list(path: Path, url: str, columns: Columns) -> Iterator[Rows]:
    """The rows of the list at `path`, at most `CHUNK` at a time. url: the list's name in messages.

    Raises UserError with the line or the column that can't be read.
    """
    if path.is_dir():
        raise UserError(f"{url} is a folder with the name of a list: give a file, or rename it")
    suffix = url.lower().rpartition(".")[2]
    read = {"txt": _text, "csv": _csv, "parquet": _parquet}[suffix]
    yield from read(path, url, columns)


def refuse_taken(kept: Sequence[str]) -> None:
    """Raises UserError for a name in --keep-columns that is empty, repeated or in `TAKEN`."""
    seen: set[str] = set()
    for name in kept:
        low = name.lower()
        if not name:
            raise UserError("--keep-columns: a column without a name can't be kept: name it")
        if low in TAKEN:
            raise UserError(
                f"--keep-columns {name!r} is the name of a column of the shards or of an "
                "evaluation (in any case): rename it"
            )
        if low in seen:
            raise UserError(
                f"--keep-columns {name!r} is there twice, or differs from another in case alone: "
                "rename it"
            )
        seen.add(low)


def _text(path: Path, url: str, columns: Columns) -> Iterator[Rows]:
    if columns.uri or columns.name or columns.kept:
        raise UserError(f"{url} has no columns to name or keep: give a .csv or .parquet list")
    _refuse_wide(path, url)
    try:
        with path.open(encoding="utf-8-sig") as lines:
            stripped = (line.rstrip("\n") for line in lines)
            filled = (line for line in stripped if line.strip())
            while chunk := list(islice(filled, CHUNK)):
                yield Rows(list(chunk), list(chunk), {})
    except UnicodeDecodeError:
        raise _not_utf8(path, url) from None


def _csv(path: Path, url: str, columns: Columns) -> Iterator[Rows]:
    _refuse_wide(path, url)
    delimiter = _delimiter(path, url)
    open_csv = partial(
        pacsv.open_csv,
        path,
        read_options=pacsv.ReadOptions(block_size=CSV_BLOCK),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    )
    try:
        with open_csv(convert_options=pacsv.ConvertOptions(check_utf8=False)) as reader:
            chosen = _chosen(reader.schema.names, url, columns)
        convert = pacsv.ConvertOptions(
            include_columns=chosen.wanted(),
            column_types=dict.fromkeys(chosen.wanted(), pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        for batch in open_csv(convert_options=convert):
            yield from _rows(batch, chosen)
        _refuse_odd_quotes(path, url, delimiter)
    except UnicodeDecodeError:  # of a column's name
        raise _not_utf8(path, url) from None
    except pa.ArrowException as error:
        _refuse_odd_quotes(path, url, delimiter)
        if "UTF8" in str(error) or "utf-8" in str(error).lower():
            raise _not_utf8(path, url) from None
        if "Empty CSV" in str(error):
            raise UserError(f"{url} is empty: the first line must name the columns") from None
        raise UserError(f"{url} can't be read as CSV: {_csv_reason(error)}") from None


def _refuse_odd_quotes(path: Path, url: str, delimiter: str) -> None:
    """Raises UserError for a quote that is never closed, or is escaped by a backslash.

    Arrow accepts such files: all later rows would be one name, or a name would keep the backslash
    and lose a quote. Python's slow reader finds the line, and runs only if the number of quotes in
    the file is odd, or if a quote follows a backslash.
    """
    quotes, escaped, last = 0, False, b""
    with path.open("rb") as file:
        for part in iter(lambda: file.read(CSV_BLOCK), b""):
            quotes += part.count(b'"')
            escaped = escaped or b'\\"' in last + part
            last = part[-1:]
    if quotes % 2 == 0 and not escaped:
        return
    started = 1
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for _ in reader:
                started = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise UserError(
                    f"{url}, line {started}: a quote is not closed before the file ends: close or "
                    "double it"
                ) from None
            if "expected after" in str(error):
                raise UserError(
                    f"{url}, line {started}: text follows a closing quote: double the quotes "
                    'within a field, "" and not \\"'
                ) from None


def _csv_reason(error: pa.ArrowException) -> str:
    """Arrow's message on one line, with `line N` for `Row #N`."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return re.sub(r"Row #(\d+)", r"line \1", text)[:300]


def _parquet(path: Path, url: str, columns: Columns) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(path) as file:
            _refuse_images(file, url)
            schema = file.schema_arrow
            chosen = _chosen(schema.names, url, columns)
            kinds: dict[str | None, pa.DataType] = {
                name: schema.field(name).type for name in chosen.wanted()
            }
            for name in (chosen.uri, chosen.name):
                if pa.types.is_nested(kinds[name]):
                    raise UserError(
                        f"{url}: column {name!r} holds {kinds[name]}, not text: name another"
                    )
            for name in chosen.kept:
                if not _stays(kinds[name]):
                    raise UserError(
                        f"--keep-columns {name!r} of {url} holds {kinds[name]}, which would be "
                        "rounded or lose its unit: cast it to text, to an integer or to a smaller "
                        "decimal"
                    )
            for batch in file.iter_batches(CHUNK, columns=chosen.wanted()):
                yield from _rows(batch, chosen)
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: a name is not UTF-8: {error}") from None
    except (pa.ArrowException, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:300]
        raise UserError(f"{url} can't be read as Parquet: {reason}") from None


def _refuse_images(file: pq.ParquetFile, url: str) -> None:
    """Raises UserError for a file that holds images, as data sets of Hugging Face do."""
    for column in file.schema_arrow:
        path, kind = column.name, column.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            path, kind = f"{path}.bytes", kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            continue
        batch = next(file.iter_batches(1, columns=[path]), None)
        value = batch.column(0)[0].as_py() if batch is not None and batch.num_rows else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is not None and known_format(value) is not None:
            raise UserError(
                f"{url} holds the images themselves (column {path!r}), of which none can be read "
                "alone: unpack them into a tar (docs/sources.md has the few lines that do)"
            )


def _stays(kind: pa.DataType) -> bool:
    """Whether DuckDB keeps values of this type unchanged."""
    if pa.types.is_nested(kind):
        return all(_stays(kind.field(k).type) for k in range(kind.num_fields))
    if pa.types.is_decimal(kind):
        return kind.precision <= DECIMAL_DIGITS
    return not (pa.types.is_duration(kind) or pa.types.is_interval(kind))


def _rows(batch: pa.RecordBatch, chosen: Columns) -> Iterator[Rows]:
    for first in range(0, batch.num_rows, CHUNK):
        part = batch.slice(first, CHUNK)
        uris = _as_text(part.column(chosen.uri))
        names = uris if chosen.name == chosen.uri else _as_text(part.column(chosen.name))
        yield Rows(names, uris, {name: part.column(name) for name in chosen.kept})


def _as_text(column: pa.Array) -> list[str | None]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):  # pandas writes numbers with gaps so, and NaN for a gap
        gaps = pc.is_nan(column.cast(pa.float64()))  # type: ignore[attr-defined]
        column = pc.if_else(gaps, None, column)  # type: ignore[attr-defined]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [None if v is None else v.decode() for v in column.to_pylist()]
    return column.cast(pa.string()).to_pylist()


def _chosen(names: Sequence[str], url: str, columns: Columns) -> Columns:
    """The columns to read, all named. Raises UserError for an absent or repeated column."""
    known = ", ".join(names)
    refuse_taken(columns.kept)
    uri = columns.uri or next((name for name in URI_COLUMNS if name in names), None)
    if uri is None:
        raise UserError(
            f"{url}: which column holds the images? Name it with --uri-column (it has: {known})"
        )
    for name in (uri, columns.name or uri, *columns.kept):
        if name not in names:
            raise UserError(f"{url} has no column {name!r} (it has: {known})")
        if list(names).count(name) > 1:
            raise UserError(f"{url} has {names.count(name)} columns {name!r}: rename the others")
    return Columns(uri, columns.name or uri, columns.kept)


def _delimiter(path: Path, url: str) -> str:
    """The most frequent of `DELIMITERS` in the header line."""
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    counts = {delimiter: line.count(delimiter.encode()) for delimiter in DELIMITERS}
    return max(counts, key=lambda delimiter: counts[delimiter])


def _refuse_wide(path: Path, url: str) -> None:
    with path.open("rb") as file:
        start = file.read(4096)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{url} is UTF-16: save it as UTF-8")
    if b"\0" in start:
        raise UserError(f"{url} is no text: it holds zero bytes (is it another kind of file?)")


def _not_utf8(path: Path, url: str) -> UserError:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                shown = line[max(error.start - 20, 0) : error.start + 20].strip()
                return UserError(
                    f"{url}, line {number}: {shown.decode(errors='backslashreplace')!r} is not "
                    "UTF-8: save it as UTF-8"
                )
    return UserError(f"{url} is not UTF-8: save it as UTF-8")
