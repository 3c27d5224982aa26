"""The model actor: encoded images in, rows of RLE out.

Only images of equal processed size share a batch, so nothing is padded and an image gives the same
row alone and among any others. While the model works on one batch, threads decode the next and
encode the last. Whatever is wrong with an image becomes that image's row; on out-of-memory the
batch is halved, and the size that fits is kept.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from detr.decode import ImageError, decode, header_size
from detr.postprocess import Panoptic
from pipeline import rle
from pipeline.engine_model import ModelSpec, PanopticModel
from pipeline.fetch import FETCHED_FIELDS
from pipeline.plan import unit_key
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.shards import UNIT_COLUMN
from pipeline.tally import begin

BATCH_PIXELS: Final = 100_000_000  # decoded pixels of one batch: 300 MB
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Decoding:
    """How bytes become pixels; part of the fingerprint."""

    exif: bool
    max_pixels: int


class Segmenter:
    """Holds the model; called by Ray Data with one work unit at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        decoding: Decoding,
        batch_size: int,
        threads: int,
        code_version: str,
        tally: ActorHandle | None = None,
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self.model: PanopticModel = spec.load()
        self.decoding = decoding
        self.batch_size = batch_size
        self.code_version = code_version
        self.tally = tally
        self.pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")
        self.seconds: dict[str, float] = defaultdict(float)
        self.batches: Counter[int] = Counter()  # of the unit in work, by size

    def __call__(self, unit: pa.Table) -> pa.Table:
        """One unit's manifest rows with `data` -> the same rows as a shard's (and `shard`)."""
        self.seconds.clear()
        self.batches.clear()
        key = ""
        if self.tally is not None:
            key = unit_key(unit["generation"][0].as_py(), unit[UNIT_COLUMN][0].as_py())
            begin(self.tally, "segmenting", key)
        started = time.perf_counter()
        rows = self._rows(unit)
        self.seconds["total"] = time.perf_counter() - started
        if self.tally is not None:
            self.tally.segmented.remote(key, dict(self.seconds), dict(self.batches))
        return shard_table(unit, rows, self.code_version)

    def _rows(self, unit: pa.Table) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            error_row(code, message)
            for code, message in zip(
                unit["error_code"].to_pylist(), unit["error_message"].to_pylist(), strict=True
            )
        ]
        encoding: dict[int, Future[dict[str, Any]]] = {}
        for indices, images in self._batches(unit, rows):
            timer = time.perf_counter()
            results = self._segment(images)
            self.batches[len(images)] += 1
            self.seconds["model"] += time.perf_counter() - timer
            for index, result in zip(indices, results, strict=True):
                if isinstance(result, ImageError):
                    rows[index] = error_row(result.code, str(result))
                else:
                    encoding[index] = self.pool.submit(segment_row, result)
        timer = time.perf_counter()
        for index, future in encoding.items():
            rows[index] = future.result()
        self.seconds["encode"] += time.perf_counter() - timer
        return rows

    def _batches(
        self, unit: pa.Table, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[list[int], list[Image]]]:
        """Decoded images that may share a batch; failures go straight into `rows`.

        Grouped by the size in the header, before anything is decoded, and decoded one batch ahead:
        so no more than two batches of pixels are in memory, whatever the unit holds.
        """
        data = unit["data"]
        plan = self._plan(data, rows)
        ahead: list[tuple[int, Future[Image]]] = []
        for planned in [*plan, []]:
            current, ahead = (
                ahead,
                [(index, self.pool.submit(self._decode, data[index])) for index in planned],
            )
            timer = time.perf_counter()
            indices: list[int] = []
            images: list[Image] = []
            for index, future in current:
                try:
                    images.append(future.result())
                    indices.append(index)
                except ImageError as error:
                    rows[index] = error_row(error.code, str(error))
            self.seconds["decode"] += time.perf_counter() - timer
            if images:
                yield indices, images

    def _plan(self, data: pa.ChunkedArray, rows: list[dict[str, Any]]) -> list[list[int]]:
        """Indices of the images of each batch."""
        processed_size = getattr(self.model, "processed_size", None)
        groups: dict[Any, list[int]] = defaultdict(list)
        pixels: dict[int, int] = {}
        for index, row in enumerate(rows):
            if row["error_code"]:
                continue
            try:
                height, width = header_size(
                    _bytes(data[index]),
                    max_pixels=self.decoding.max_pixels,
                    exif=self.decoding.exif,
                )
                key = processed_size(height, width) if processed_size else (height, width)
            except ImageError as error:
                rows[index] = error_row(error.code, str(error))
                continue
            groups[key].append(index)
            pixels[index] = height * width
        batches: list[list[int]] = []
        for indices in groups.values():
            batch: list[int] = []
            for index in indices:
                full = len(batch) == self.batch_size
                if batch and (full or sum(pixels[i] for i in [*batch, index]) > BATCH_PIXELS):
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return batches

    def _decode(self, data: pa.LargeBinaryScalar) -> Image:
        return decode(_bytes(data), max_pixels=self.decoding.max_pixels, exif=self.decoding.exif)

    def _segment(self, images: Sequence[Image]) -> list[Panoptic | ImageError]:
        """The model on images of one processed size, in halves as long as memory runs out."""
        if len(images) > self.batch_size:
            middle = self.batch_size
            return self._segment(images[:middle]) + self._segment(images[middle:])
        try:
            return list(self.model.segment(images))
        except ImageError as error:
            if len(images) == 1:
                return [error]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _free_memory()
            if len(images) == 1:
                height, width = images[0].shape[:2]
                message = f"{height} x {width} does not fit the device's memory even alone"
                return [ImageError("out_of_memory", message)]
            self.batch_size = max(1, len(images) // 2)
        middle = max(1, len(images) // 2)
        return self._segment(images[:middle]) + self._segment(images[middle:])


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's and the CPU allocator's way of saying so; any other RuntimeError is a bug."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bytes(scalar: pa.LargeBinaryScalar) -> bytes:
    return scalar.as_py()


def segment_row(panoptic: Panoptic) -> dict[str, Any]:
    """One image's columns from its map; segments in the order of their ids."""
    height, width = panoptic.segment_map.shape
    ids = [segment.id for segment in panoptic.segments]
    encoded = rle.encode(panoptic.segment_map, ids)
    return {
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "height": height,
        "width": width,
        "segment_id": ids,
        "category_id": [segment.category_id for segment in panoptic.segments],
        "isthing": [segment.isthing for segment in panoptic.segments],
        "score": [segment.score for segment in panoptic.segments],
        "area": encoded.area.tolist(),
        "bbox": encoded.bbox.tolist(),
        "counts": encoded.counts,
    }


def error_row(code: str | None, message: str | None) -> dict[str, Any]:
    """An image's columns before it is segmented, or if it can't be."""
    lists = ("segment_id", "category_id", "isthing", "score", "area", "bbox", "counts")
    return {
        "status": "error",
        "error_code": code,
        "error_message": message,
        "height": None,
        "width": None,
        **{name: [] for name in lists},
    }


def shard_table(unit: pa.Table, rows: list[dict[str, Any]], code_version: str) -> pa.Table:
    """The unit's rows in the shard's schema, then the user's kept columns, then `shard`."""
    computed = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    columns: dict[str, Any] = {
        **computed,
        "attempts": pa.array(np.asarray(unit["attempts"]) + 1, pa.int32()),
        "code_version": [code_version] * len(rows),
    }
    for name in ("file_name", "uri", "etag", "generation"):
        columns[name] = unit[name]
    internal = {*MANIFEST_SCHEMA.names, *(field.name for field in FETCHED_FIELDS), *columns}
    table = pa.table(
        [
            pa.chunked_array([columns[f.name]], f.type)
            if isinstance(columns[f.name], list)
            else columns[f.name]
            for f in SHARD_SCHEMA
        ],
        schema=SHARD_SCHEMA,
    )
    for name in unit.column_names:
        if name not in internal:  # the user's columns, and `shard`
            table = table.append_column(unit.schema.field(name), unit[name])
    return table
