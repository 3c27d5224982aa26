"""The model actor: encoded images in, rows of RLE out.

Two units are in work at a time. The model takes them in turns, whole units one after the other;
while it works on one, threads decode that unit's next batch and the first batch of the other unit,
and encode what came out. So the model waits for nothing but its first batch ever, and a unit ends
as soon as its last rows are encoded. Whatever is wrong with an image becomes that image's row.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from ray.actor import ActorHandle

from detr.config import ModelError
from detr.inference.decode import ImageError
from detr.inference.device_errors import is_lost_device
from detr.inference.nvjpeg import check_nvjpeg
from detr.panoptic import Panoptic
from pipeline.cluster.progress_actor import begin, refusals_told
from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.secrets import without_query
from pipeline.segmentation.batches import Batch, Decoding, UnitDecoder, Work
from pipeline.segmentation.fetch import FETCHED_FIELDS
from pipeline.segmentation.model_loop import ModelStream
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.sink import UNIT_COLUMN
from pipeline.sharding import unit_key
from pipeline.storage.entry import StorageError

__all__ = ["Decoding", "Segmenter"]

LOST_DEVICE_EXIT: Final = 70  # of the actor's process


class Segmenter:
    """Holds the model; called by Ray Data with a work unit, from up to two threads at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        decoding: Decoding,
        batch_size: int | None,
        threads: int,
        code_version: str,
        tally: ActorHandle | None = None,
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self.refusal: UserError | ModelError | None = None
        try:
            if decoding.method == "nvjpeg":
                check_nvjpeg(torch.device(spec.device))
            self.stream = ModelStream(spec.load(), batch_size)
        except (UserError, ModelError) as error:
            if isinstance(error, StorageError) and error.may_pass:
                raise  # Ray starts another actor, which may reach the weights
            self.refusal = error  # for the first unit: Ray keeps no reason of an actor that died
        gc.freeze()  # else the process ends with a second of collecting what torch's modules hold
        self.decoding = decoding
        self.code_version = code_version
        self.tally = tally
        self.pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")
        # Units take turns in one thread: each thread that calls the model would get OpenMP threads
        # and, from malloc, memory of its own.
        self.turn = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def __call__(self, unit: pa.Table) -> pa.Table:
        """One unit's manifest rows with `data` -> the same rows as a shard's (and `shard`).

        Raises TryAgainError for a unit that kills every actor which takes it up, UserError if the
        model can't be had on this node.
        """
        with refusals_told(self.tally):
            if self.refusal is not None:
                raise self.refusal
            try:
                return self._segment(unit)
            except RuntimeError as error:
                if is_lost_device(error):
                    end_process(error)
                raise

    def _segment(self, unit: pa.Table) -> pa.Table:
        seconds: dict[str, float] = defaultdict(float)
        batches: Counter[int] = Counter()
        if self.tally is None or not unit.num_rows:
            return shard_table(unit, self._rows(unit, seconds, batches), self.code_version)
        key = unit_key(unit["generation"][0].as_py(), unit[UNIT_COLUMN][0].as_py())
        begin(self.tally, "segmenting", key)  # also while it waits for its turn: decoding may kill
        rows = self._rows(unit, seconds, batches)
        self.tally.segmented.remote(key, dict(seconds), dict(batches))
        return shard_table(unit, rows, self.code_version)

    def _rows(
        self, unit: pa.Table, seconds: dict[str, float], batches: Counter[int]
    ) -> list[dict[str, Any]]:
        """`seconds` gets the time in turn (total), the model's part of it, and the CPU time of the
        threads that decoded and encoded meanwhile; `batches` how many of each size the model was
        given."""
        rows: list[dict[str, Any]] = [
            error_row(code, message)
            for code, message in zip(
                unit["error_code"].to_pylist(), unit["error_message"].to_pylist(), strict=True
            )
        ]
        data = unit["data"]
        decoder = UnitDecoder(
            lambda index: data[index].as_py(),
            [index for index, row in enumerate(rows) if not row["error_code"]],
            model=self.stream.model,
            decoding=self.decoding,
            most=self.stream.most,
            pool=self.pool,
        )
        encode = Work()
        encoding = self.turn.submit(self._in_turn, decoder, encode, seconds, batches).result()
        for index, future in encoding.items():
            rows[index] = future.result()
        seconds["decode"], seconds["encode"] = decoder.work.seconds, encode.seconds
        for index, error in decoder.errors.items():
            rows[index] = error_row(error.code, str(error))
        return rows

    def _in_turn(
        self,
        decoder: UnitDecoder,
        encode: Work,
        seconds: dict[str, float],
        batches: Counter[int],
    ) -> dict[int, Future[dict[str, Any]]]:
        """The model on the unit's batches -> the rows under way, by index."""
        encoding: dict[int, Future[dict[str, Any]]] = {}
        started = time.perf_counter()
        for batch, answers in self.stream.run(_timed(decoder, seconds), batches):
            for index, answer in zip(batch.indices, answers, strict=True):
                if isinstance(answer, ImageError):
                    decoder.errors[index] = answer
                else:
                    encoding[index] = self.pool.submit(encode, segment_row, answer)
        seconds["total"] = time.perf_counter() - started
        seconds["model"] = seconds["total"] - seconds.pop("waited")
        return encoding


def end_process(error: BaseException) -> None:
    """End the actor: each later call to a device that is lost would fail, in this process.

    Ray starts another actor and gives it the units that this one had.
    """
    print(
        f"the model actor ends, since its GPU is lost to it: {error}", file=sys.stderr, flush=True
    )
    os._exit(LOST_DEVICE_EXIT)


def _timed(batches: Iterable[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
    """The batches, and in `seconds` how long they were waited for."""
    waiting = iter(batches)
    while True:
        started = time.perf_counter()
        batch = next(waiting, None)
        seconds["waited"] += time.perf_counter() - started
        if batch is None:
            return
        yield batch


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
    columns["uri"] = [without_query(uri) for uri in unit["uri"].to_pylist()]
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
