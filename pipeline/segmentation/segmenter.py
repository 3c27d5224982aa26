"""The model actor: encoded images in, rows of RLE out.

An actor holds two work units at a time, and the model computes one unit after the other. Meanwhile
threads decode the next batch of the same unit and the first batch of the other unit, and encode
finished maps as RLE. So the model waits only for its very first batch, and a unit ends when its
last rows are encoded. An image that fails becomes an error row.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
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
from pipeline.schema import MANIFEST_SCHEMA, SEGMENT_COLUMNS, SHARD_SCHEMA
from pipeline.secrets import without_query
from pipeline.segmentation.batches import Batch, CpuSeconds, Decoding, UnitDecoder, memory_for
from pipeline.segmentation.fetch import FETCHED_FIELDS
from pipeline.segmentation.model_loop import ModelStream
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.sink import UNIT_COLUMN
from pipeline.sharding import unit_key
from pipeline.storage.entry import StorageError

LOST_DEVICE_EXIT: Final = 70  # exit status of the actor's process
REPORT_SECONDS: Final = 0.5  # between two progress reports of a unit


class Segmenter:
    """The model actor. Ray Data calls it with a work unit, from up to two threads at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        decoding: Decoding,
        batch_size: int | None,
        threads: int,
        code_version: str,
        progress_actor: ActorHandle | None = None,
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self.refusal: UserError | ModelError | None = None
        if progress_actor is not None:
            actor_id = ray.get_runtime_context().get_actor_id() or ""
            progress_actor.model.remote("loading", actor_id)
        try:
            if decoding.method == "nvjpeg":
                check_nvjpeg(torch.device(spec.device))
            self.stream = ModelStream(spec.load(), batch_size)
            self.memory = memory_for(self.stream.model)
        except (UserError, ModelError) as error:
            if isinstance(error, StorageError) and error.may_pass:
                raise  # Ray starts another actor, which may reach the weights
            self.refusal = error  # raised with the first unit: Ray drops errors of a constructor
        gc.freeze()  # else collecting torch's modules delays the end of the process by a second
        if progress_actor is not None:
            progress_actor.model.remote("loaded")
        self.decoding = decoding
        self.code_version = code_version
        self.progress_actor = progress_actor
        self.pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")
        # One thread calls the model for all units: each further thread would start OpenMP threads
        # and a malloc arena of its own.
        self.turn = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def __call__(self, unit: pa.Table) -> pa.Table:
        """The manifest rows of one unit with `data` -> its shard rows with the column `shard`.

        Raises TryAgainError for a unit that kills every actor that starts it, UserError if the
        model can't be loaded on this node.
        """
        with refusals_told(self.progress_actor):
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
        if self.progress_actor is None or not unit.num_rows:
            return shard_table(unit, self._rows(unit, seconds, batches), self.code_version)
        key = unit_key(unit["generation"][0].as_py(), unit[UNIT_COLUMN][0].as_py())
        # Reported before the model's turn: decoding, too, may kill the actor.
        begin(self.progress_actor, "segmenting", key)
        rows = self._rows(unit, seconds, batches, Advance(self.progress_actor, key, unit.num_rows))
        self.progress_actor.segmented.remote(key, dict(seconds), dict(batches))
        return shard_table(unit, rows, self.code_version)

    def _rows(
        self,
        unit: pa.Table,
        seconds: dict[str, float],
        batches: Counter[int],
        advance: Callable[[int], None] = lambda finished: None,
    ) -> list[dict[str, Any]]:
        """Shard rows by column, in the order of the unit.

        `seconds` gets `total` and `model` (wall time of the unit in the model thread, and of the
        model in it), `decode` and `encode` (CPU time of the other threads); `batches` the number of
        batches by size; `advance` the number of finished images after each batch.
        """
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
            memory=self.memory,
        )
        failed = sum(1 for row in rows if row["error_code"])
        advance(failed)
        encode = CpuSeconds()
        encoding = self.turn.submit(
            self._in_turn, decoder, encode, seconds, batches, lambda count: advance(failed + count)
        ).result()
        for index, future in encoding.items():
            rows[index] = future.result()
        seconds["decode"], seconds["encode"] = decoder.work.seconds, encode.seconds
        for index, error in decoder.errors.items():
            rows[index] = error_row(error.code, str(error))
        return rows

    def _in_turn(
        self,
        decoder: UnitDecoder,
        encode: CpuSeconds,
        seconds: dict[str, float],
        batches: Counter[int],
        advance: Callable[[int], None],
    ) -> dict[int, Future[dict[str, Any]]]:
        """Run the model on the batches of a unit; the futures of the encoded rows, by index."""
        encoding: dict[int, Future[dict[str, Any]]] = {}
        started = time.perf_counter()
        for batch, answers in self.stream.run(_timed(decoder, seconds), batches):
            for index, answer in zip(batch.indices, answers, strict=True):
                if isinstance(answer, ImageError):
                    decoder.errors[index] = answer
                else:
                    encoding[index] = self.pool.submit(encode, segment_row, answer)
            advance(len(encoding) + len(decoder.errors))
        seconds["total"] = time.perf_counter() - started
        seconds["model"] = seconds["total"] - seconds.pop("waited")
        return encoding


class Advance:
    """Sends the number of finished images of a unit to the progress actor, twice a second."""

    def __init__(self, progress_actor: ActorHandle, key: str, images: int) -> None:
        self._tell = lambda finished: progress_actor.advanced.remote(key, finished, images)
        self._images = images
        self._last = -REPORT_SECONDS

    def __call__(self, finished: int) -> None:
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS or finished >= self._images:
            self._last = now
            self._tell(finished)


def end_process(error: BaseException) -> None:
    """End the actor's process, in which each later call to the lost device would fail.

    Ray starts another actor with the units of this one.
    """
    print(
        f"the model actor ends, since its GPU is lost to it: {error}", file=sys.stderr, flush=True
    )
    os._exit(LOST_DEVICE_EXIT)


def _timed(batches: Iterable[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
    """The batches; `seconds["waited"]` gets the time until each was decoded."""
    waiting = iter(batches)
    while True:
        started = time.perf_counter()
        batch = next(waiting, None)
        seconds["waited"] += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def segment_row(panoptic: Panoptic) -> dict[str, Any]:
    """The shard columns of one segmented image; list columns in the order of its segments."""
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
    """The shard columns of an image without a result: failed, or not segmented yet."""
    return {
        "status": "error",
        "error_code": code,
        "error_message": message,
        "height": None,
        "width": None,
        **{name: [] for name in SEGMENT_COLUMNS},
    }


def shard_table(unit: pa.Table, rows: list[dict[str, Any]], code_version: str) -> pa.Table:
    """The rows of a unit in SHARD_SCHEMA, then the kept columns of the source and `shard`."""
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
