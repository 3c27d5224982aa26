"""A sample of a run's images, fetched and segmented again here, and compared with their rows.

Counts of rows do not show wrong rows. The same kind of device gives the same masks in fp32; another
device or a lower precision moves pixels at edges. So the result is the share of pixels that differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.planning.manifest import stage_manifest
from pipeline.planning.scratch_db import Staging
from pipeline.run.folder import Snapshot
from pipeline.run.lookup import find_rows
from pipeline.run.run import Run
from pipeline.schema import PERMANENT_CODES
from pipeline.segmentation.batches import Decoding
from pipeline.segmentation.fetch import FETCHED_FIELDS, UNIT_FIELDS, Body, UnitFetch
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.segmenter import Segmenter

Row = Mapping[str, Any]


@dataclass
class Recomputed:
    """The comparison of recomputed images with their rows."""

    same: int = 0  # images with equal RLE strings
    close: int = 0  # images with other RLE strings or categories
    skipped: int = 0  # images that can't be fetched, have changed, or failed by chance
    differences: dict[str, float] = field(default_factory=dict)  # share of pixels by file name
    other: list[str] = field(default_factory=list)  # images with another status, error or size
    note: str = ""  # a difference between this method and the run's

    @property
    def compared(self) -> int:
        return self.same + self.close + len(self.other)

    @property
    def mean_difference(self) -> float:
        """The share of differing pixels, as a mean over the images with two maps."""
        images = self.same + self.close
        return sum(self.differences.values()) / images if images else 0.0


def recompute(run: Run, config: RunConfig, images: int, *, number: int, seed: int) -> Recomputed:
    """Segment a sample of `images` images of snapshot `number` again, on this machine's CPU.

    config: the run's settings, with the present place of the weights and the present storage
    options. Raises UserError or ModelError if the weights can't be loaded.
    """
    snapshot = run.snapshot(number)
    manifest = _sample(run, snapshot, images, seed)
    names = manifest["file_name"].to_pylist()
    stored = {row["file_name"]: row for row in find_rows(run, names, snapshot=snapshot)}
    result = Recomputed()
    bodies = UnitFetch(manifest, config.source_options).run()
    wanted = [
        body.code is None and _repeatable(stored.get(name))
        for name, body in zip(names, bodies, strict=True)
    ]
    result.skipped = wanted.count(False)
    unit = _as_unit(manifest, bodies).filter(pa.array(wanted, pa.bool_()))
    method = config.decode
    if method == "nvjpeg":  # needs a GPU; some pixels of PIL differ from nvJPEG's by one level
        method = "pil"
        result.note = "decoded by PIL, where the run used nvjpeg: some pixels at edges differ"
    if unit.num_rows:
        spec = ModelSpec.of(config, device="cpu", dtype="fp32")
        segmenter = Segmenter(
            spec,
            decoding=Decoding(config.exif, config.max_pixels, method),
            batch_size=config.batch_size,
            threads=2,
            code_version="",
        )
        for row in segmenter(unit).to_pylist():
            _judge(result, stored[row["file_name"]], row)
    return result


def check_weights(run: Run, config: RunConfig) -> None:
    """Raises UserError if the weights of `config` are not those of the run."""
    expected = run.info.weights_sha256
    actual = ModelSpec.of(config, device="cpu", dtype="fp32").describe().weights_sha256
    if expected != actual:
        raise UserError(
            f"the weights {config.weights} have sha256 {actual[:16]}, those of the run "
            f"{expected[:16]}: give the run's own by --weights"
        )


def _repeatable(row: Row | None) -> bool:
    """Whether the row follows from the file alone; a time-out, for example, does not."""
    return row is not None and (row["status"] == "ok" or row["error_code"] in PERMANENT_CODES)


def _sample(run: Run, snapshot: Snapshot, images: int, seed: int) -> pa.Table:
    with Staging() as staging:
        stage_manifest(staging, "manifest", run, upto=snapshot.number)
        order = f"order by hash(file_name || '{int(seed)}'), file_name limit {int(images)}"
        return pa.concat_tables(staging.tables(f"select * from manifest {order}"))


def _as_unit(manifest: pa.Table, bodies: Sequence[Body]) -> pa.Table:
    zeros = pa.array(np.zeros(len(bodies), np.int32))
    table = manifest
    for name in UNIT_FIELDS:
        if name not in table.column_names:
            table = table.append_column(name, zeros)
    values = ([b.code for b in bodies], [b.message for b in bodies], [b.data for b in bodies])
    for spec, column in zip(FETCHED_FIELDS, values, strict=True):
        table = table.append_column(spec, pa.array(column, spec.type))
    return table


def _judge(result: Recomputed, stored: Row, again: Row) -> None:
    name = stored["file_name"]
    for what in ("status", "error_code", "height", "width"):
        if stored[what] != again[what]:
            result.other.append(f"{name}: {what} is {again[what]}, was {stored[what]}")
            return
    if all(stored[what] == again[what] for what in ("category_id", "area", "counts")):
        result.same += 1
        return
    result.close += 1
    result.differences[name] = float(np.mean(_categories(stored) != _categories(again)))


def _categories(row: Row) -> NDArray[np.int32]:
    """The category of each pixel, (H, W) int32, 0 for void."""
    ids = row["segment_id"]
    painted = rle.decode(row["counts"], row["height"], row["width"], ids)
    kinds = np.zeros(max(ids, default=0) + 1, np.int32)
    kinds[ids] = row["category_id"]
    return kinds[painted]
