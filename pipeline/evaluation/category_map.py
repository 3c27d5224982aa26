"""The category map: categories of truth and model renamed, merged or left out, by a TOML file.

    [truth]
    truck = "vehicle"
    sky = ""            # left out: its pixels are void, and predictions on void are no errors

    [model]
    truck = "vehicle"
    bus = "vehicle"
    "*" = ""            # every category without a line is left out: its segments are dropped

Each line is a name of the side and a name of the common label set. A category without a line keeps
its name. The common label set has the categories of the mapped truth, and each category of the
model must be mapped to one of these. Merged stuff becomes one segment per image, as PQ requires;
things are not joined.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import pyarrow as pa

from detr.categories import Categories, Category
from pipeline.config import read_toml
from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.storage.entry import as_user_error
from pipeline.storage.node_cache import local_copy

OTHERS: Final = "*"
LEFT_OUT: Final = ""
FLAG: Final = "--map-categories"
UNKNOWN: Final = -1  # for an id outside the label set of its side: the row can't be scored
# The list columns with one value per segment; a table may lack some of them.
_LISTS: Final = (
    *("segment_id", "category_id", "isthing", "iscrowd", "score", "area", "bbox", "counts"),
)
Side = Literal["truth", "model"]
Names = Mapping[Side, Mapping[str, str]]
Segment = dict[str, Any]


@dataclass(frozen=True)
class CategoryMap:
    """The mapping of category ids of truth and model to the common label set."""

    categories: Categories  # of the common label set
    ids: Mapping[Side, Mapping[int, int | None]]  # None: left out
    names: Names  # the two tables of the file

    @property
    def digest(self) -> str:
        """SHA-256 of `names`: scores with different digests can't be compared."""
        return hashlib.sha256(json.dumps(self.names, sort_keys=True).encode()).hexdigest()

    def identity(self, truth_sha256: str) -> str:
        """SHA-256 of the mapped truth, for `truth_sha256` of `pq.json`."""
        return hashlib.sha256(f"{truth_sha256}\n{self.digest}\n".encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The value of `category_map` in `pq.json`."""
        pairs = {side: list(map(list, ids.items())) for side, ids in self.ids.items()}
        return {"categories": self.categories.to_json(), "ids": pairs, "names": self.names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CategoryMap:
        ids = {side: dict(pairs) for side, pairs in data["ids"].items()}
        return cls(Categories.from_json(data["categories"]), ids, data["names"])

    @classmethod
    def of_result(cls, result: Mapping[str, Any] | None) -> CategoryMap | None:
        """The map in the `pq.json` of an evaluation; None if it was made without a map."""
        data = (result or {}).get("category_map")
        return None if data is None else cls.from_json(data)

    def apply(self, rows: pa.Table, side: Side) -> pa.Table:
        """Shard or truth rows with the segments and categories of the common label set.

        A merged segment has the id of its first part. `rows` needs height and width and may lack
        columns of segments; without `counts` no segments are merged.
        """
        names = [name for name in _LISTS if name in rows.column_names]
        whole = rows.select([*names, "height", "width"]).to_pylist()
        mapped = [self.row(row, side) for row in whole]
        for name in names:
            index = rows.column_names.index(name)
            values = pa.array([row[name] for row in mapped], rows.schema.types[index])
            rows = rows.set_column(index, rows.schema.field(index), values)
        return rows

    def row(self, row: Mapping[str, Any], side: Side) -> dict[str, Any]:
        """`apply` for one row as a dict."""
        names = [name for name in _LISTS if name in row]
        columns = zip(*(row[name] for name in names), strict=True)
        segments = [dict(zip(names, values, strict=True)) for values in columns]
        mapped = self._segments(segments, side, (row["height"], row["width"]))
        return {**row, **{name: [segment[name] for segment in mapped] for name in names}}

    def _segments(
        self, segments: Sequence[Segment], side: Side, size: tuple[int | None, int | None]
    ) -> list[Segment]:
        kept: list[Segment] = []
        for segment in segments:
            new = self.ids[side].get(segment["category_id"], UNKNOWN)
            if new is not None:
                kept.append({**segment, "category_id": new})
                if "isthing" in segment and new != UNKNOWN:
                    kept[-1]["isthing"] = self.categories.by_id(new).isthing
        if not kept or "counts" not in kept[0]:
            return kept
        parts: dict[int, list[Segment]] = {}
        for segment in kept:
            if segment["category_id"] in self._merged[side] and not segment.get("iscrowd"):
                parts.setdefault(segment["category_id"], []).append(segment)
        for same in parts.values():
            whole = _union(same, size) if len(same) > 1 else None
            if whole is not None:
                kept[kept.index(same[0])] = whole
                kept = [entry for entry in kept if not any(entry is part for part in same[1:])]
        return kept

    @cached_property
    def _merged(self) -> dict[Side, set[int]]:
        """By side, the ids of stuff in the common label set to which several categories map."""
        merged: dict[Side, set[int]] = {}
        for side, ids in self.ids.items():
            count = Counter(ids.values())
            merged[side] = {c.id for c in self.categories if not c.isthing and count[c.id] > 1}
        return merged


def _union(parts: Sequence[Segment], size: tuple[int | None, int | None]) -> Segment | None:
    """The union of the segments; None if an RLE does not fit the size, which scoring reports."""
    shown = [part["counts"] for part in parts if part.get("area") != 0]
    height, width = size
    if height is None or width is None or not shown:
        return None
    try:
        segment_map = rle.decode(shown, height, width, [1] * len(shown))
    except rle.RleError:
        return None
    encoded = rle.encode(segment_map, [1])
    whole = {"counts": encoded.counts[0], "area": int(encoded.area[0])}
    whole["bbox"] = encoded.bbox[0].tolist()
    if "score" in parts[0]:
        whole["score"] = max(part["score"] for part in parts)
    return {**parts[0], **{name: value for name, value in whole.items() if name in parts[0]}}


def read_map(
    url: str,
    *,
    truth: Categories,
    model: Categories,
    options: Mapping[str, str] | None = None,
) -> CategoryMap:
    """The map in a TOML file (any fsspec URL) between these label sets. Raises UserError."""
    names = _names(url, options)
    _check_names(url, "truth", names["truth"], truth)
    _check_names(url, "model", names["model"], model)
    common: dict[str, Category] = {}
    for category in truth:
        new = _new_name(names["truth"], category)
        if new == LEFT_OUT:
            continue
        first = common.setdefault(new, replace(category, name=new))
        if first.isthing != category.isthing:
            raise UserError(
                f"{FLAG} {url}: {new!r} is made of things and of stuff of the truth, which PQ "
                "counts by different rules: map them to two names"
            )
    if not common:
        raise UserError(f"{FLAG} {url} leaves out every category of the truth")
    ids: dict[Side, dict[int, int | None]] = {"truth": {}, "model": {}}
    for category in truth:
        target = common.get(_new_name(names["truth"], category))
        ids["truth"][category.id] = None if target is None else target.id
    homeless = []
    for category in model:
        new = _new_name(names["model"], category)
        target = common.get(new)
        if target is None and new != LEFT_OUT:
            homeless.append(new)
        elif target is not None and target.isthing and not category.isthing:
            raise UserError(
                f"{FLAG} {url}: {category.name!r} is stuff of the model and {new!r} things of the "
                "truth, which can't be told apart in it: leave it out, or map it to stuff"
            )
        ids["model"][category.id] = None if target is None else target.id
    if homeless:
        few = ", ".join(map(repr, homeless[:5])) + (", ..." if len(homeless) > 5 else "")
        raise UserError(
            f"{FLAG} {url}: the truth has no {few} (of the model): map them in [model] to names of "
            'the truth, or leave out all that no line names by "*" = ""'
        )
    return CategoryMap(Categories(common.values()), ids, names)


def _new_name(names: Mapping[str, str], category: Category) -> str:
    return names.get(category.name, names.get(OTHERS, category.name))


def _names(url: str, options: Mapping[str, str] | None) -> Names:
    """The two tables of the file. Raises UserError."""
    try:
        path = str(local_copy(url, options))
    except FileNotFoundError:
        raise UserError(f"{FLAG} {url}: no such file") from None
    except OSError as error:
        raise as_user_error(error, f"can't read {FLAG} {url}") from error
    read = read_toml(path, FLAG)
    for table, lines in read.items():
        if table not in ("truth", "model") or not isinstance(lines, dict):
            raise UserError(
                f"{FLAG} {url}: {table!r} is neither the table [truth] nor the table [model]"
            )
        for name, new in lines.items():
            if not isinstance(new, str):
                raise UserError(
                    f'{FLAG} {url}: [{table}] {name!r} must be a name, or "" to leave it out, not '
                    f"{new!r}"
                )
    return {"truth": read.get("truth", {}), "model": read.get("model", {})}


def _check_names(url: str, side: str, lines: Mapping[str, str], categories: Categories) -> None:
    """Raises UserError for a line that names no category of its side."""
    known = {category.name for category in categories}
    for name in lines:
        if name != OTHERS and name not in known:
            near = difflib.get_close_matches(name, known, 3) or sorted(known)[:3]
            raise UserError(
                f"{FLAG} {url}: the {side} has no category {name!r}; nearest are "
                f"{', '.join(map(repr, near))}"
            )
