"""The table of ground truth as RLE: what `truth` writes once and every evaluation reads.

One row per image, sorted by the hash of the run's file name, as shards are. Segments keep the order
of their JSON (panopticapi's rule for crowds depends on it) and are there even without pixels (they
are missed then). Pixels whose id the JSON doesn't list are neither segment nor void: they get a
string of their own; void is what is left.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

TRUTH_SCHEMA: Final = pa.schema(
    [
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),  # as in the run's manifest
        pa.field("image_id", pa.string(), nullable=False),  # as in the JSON
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("segment_id", pa.list_(pa.int32()), nullable=False),
        pa.field("category_id", pa.list_(pa.int32()), nullable=False),
        pa.field("iscrowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("area", pa.list_(pa.int64()), nullable=False),  # counted, not the JSON's
        pa.field("bbox", pa.list_(pa.list_(pa.int32(), 4)), nullable=False),
        pa.field("counts", pa.list_(pa.large_string()), nullable=False),
        pa.field("unlisted_counts", pa.large_string()),
        pa.field("problem", pa.string()),  # why this image can't be scored, else null
    ]
)
