"""A folder as plain values: paths, Parquet schemas and rows, JSON; what varies is masked.

A mask replaces a value and keeps its key. Times, rates, ids, hosts, versions, temporary paths and
the sizes of compressed files vary from call to call or from machine to machine.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# Keys of JSON objects and columns of tables, at any depth: every value below is masked.
VARIES = {
    *("code_version", "versions", "created", "started", "etag", "last_modified"),
    *("seconds", "gpu_seconds", "gpu_hours", "stage_seconds", "images_per_second", "cost"),
    *("host", "pid", "submission", "placement"),
    "truth_sha256",  # of the sizes of PNGs
    *("owner", "machine", "process", "renewal", "plan"),
}
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d{6}\.\d+Z(-[0-9a-f]{8})?")
PLAN = re.compile(r"-[0-9a-f]{12}\.parquet")
LINES = (  # of texts for people
    (re.compile(r"at [\d.e+-]+ images/s"), "at <rate> images/s"),
    (re.compile(r"[\d.e+-]+ \([\d.e+-]+ GPU-hours\)"), "<cost> (<time> GPU-hours)"),
    (re.compile(r"took [\d.]+ (s|min|h), started \S+"), "took <time> s, started <time>"),
    (re.compile(r"in [\d.]+ (s|min)\b"), "in <time>"),
    (re.compile(r"\([\d.e+-]+ images/s"), "(<rate> images/s"),
    (re.compile(r"can be read on \S+\)"), "can be read on <host>)"),
    (re.compile(r"\(see (python -m )?[\w.-]+(?= )"), "(see panoptic"),  # as it was started
)
PLAIN_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY"}


def folder(root: Path, below: Path) -> dict[str, Any]:
    """Every file under `root`; `below` is the temporary folder that is masked in texts."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = _without_stamps([path.relative_to(root).as_posix() for path in files])
    formats: list[dict[str, Any]] = []  # each with the files that have it
    contents: dict[str, Any] = {}
    for path, name in zip(files, names, strict=True):
        if path.suffix == ".parquet":
            form = parquet_format(path)
            known = next((each for each in formats if each["format"] == form), None)
            if known is None:
                formats.append(known := {"format": form, "files": []})
            known["files"].append(name)
            contents[name] = masked(parquet_content(path), name, below)
        elif path.suffix == ".json":
            contents[name] = masked(json.loads(path.read_text()), name, below)
        else:
            contents[name] = text(path.read_text(), below).splitlines()
    return {"paths": names, "formats": formats, "contents": contents}


def _without_stamps(names: list[str]) -> list[str]:
    """Times in names become their numbers, in order; the names of plans are masked."""
    stamps = sorted({stamp[0] for name in names for stamp in STAMP.finditer(name)})
    timed = [STAMP.sub(lambda m: f"<time {stamps.index(m[0]) + 1}>", name) for name in names]
    return [PLAN.sub("-<plan>.parquet", name) for name in timed]


def parquet_format(path: Path) -> dict[str, Any]:
    """Columns, types and metadata as Arrow and as Parquet say them."""
    file = pq.ParquetFile(path)
    schema, footer = file.schema_arrow, file.metadata
    leaves = {}
    for index in range(footer.num_columns):
        leaf, chunk = file.schema.column(index), footer.row_group(0).column(index)
        leaves[leaf.path] = {
            "physical_type": leaf.physical_type,
            "logical_type": str(leaf.logical_type),
            "compression": chunk.compression,
            "encodings": sorted({*chunk.encodings} - PLAIN_ENCODINGS),
            "statistics": chunk.is_stats_set,
        }
    columns = [
        {
            "name": field.name,
            "type": str(field.type),
            "nullable": field.nullable,
            "metadata": _texts(field.metadata),
        }
        for field in schema
    ]
    return {"columns": columns, "leaves": leaves, "metadata": sorted(_texts(footer.metadata))}


def parquet_content(path: Path) -> dict[str, Any]:
    """Key-value metadata, row groups and rows."""
    file = pq.ParquetFile(path)
    footer = file.metadata
    metadata = _texts(footer.metadata)
    if "ARROW:schema" in metadata:
        metadata["ARROW:schema"] = "<schema>"
    groups = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    rows = file.read().to_pylist()
    return {"metadata": metadata, "rows_of_groups": groups, "rows": rows}


def _texts(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}


def masked(value: Any, name: str, below: Path) -> Any:
    """The value with what varies masked. name: of the file that holds it."""
    if isinstance(value, dict):
        return {
            key: _hidden(own, key) if varies(key, name) else masked(own, name, below)
            for key, own in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [masked(own, name, below) for own in value]
    if isinstance(value, str):
        return text(value, below)
    if isinstance(value, float):  # the last digits are not the same on every processor
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    return value


def varies(key: str, name: str) -> bool:
    """Sizes of the images are the same everywhere, those of compressed files are not."""
    return (
        key in VARIES
        or (key == "bytes" and not name.endswith("generation.json"))
        or (key in ("key", "sha256") and name.endswith("truth.json"))  # of times and sizes of PNGs
        or (key == "device" and "stats/" in name)  # the processor's name
    )


def _hidden(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(own, name) for name, own in value.items()}
    return None if value is None else f"<{key}>"


def text(value: str, below: Path) -> str:
    value = STAMP.sub("<time>", value.replace(str(below), "<tmp>"))
    for pattern, mask in LINES:
        value = pattern.sub(mask, value)
    return value
