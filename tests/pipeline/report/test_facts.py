"""What the report says of the classes of a run."""

from __future__ import annotations

import pyarrow as pa

from detr.categories import Categories
from pipeline.report.facts import _classes
from pipeline.schema import SHARD_SCHEMA
from tests.factories import made_scenes, shard_row


def test_segments_of_other_categories_count_for_none() -> None:
    """A category map leaves out classes, whose segments keep an id that no class has."""
    [(name, (segment_map, segments))] = made_scenes(1).items()
    kept = segments[1]["category_id"]
    rows = pa.Table.from_pylist([shard_row(name, (segment_map, segments))], schema=SHARD_SCHEMA)
    label_set = Categories.from_json([{"id": kept, "name": "kept", "isthing": 1}])
    [facts] = _classes(label_set, rows, None)
    assert facts.segments == sum(segment["category_id"] == kept for segment in segments)
    assert facts.images == 1
