"""The model actor without Ray: batches, memory, errors, and rows that depend on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from detr.postprocess import Panoptic
from pipeline.engine_model import ModelSpec
from pipeline.fetch import Body, _with_bodies
from pipeline.plan import WorkUnit, name_hash
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.segmenter import Decoding, Segmenter
from tests.toy_model import Toy

SIZES = [(60, 80), (60, 80), (80, 60), (50, 50), (60, 80), (61, 80), (50, 50), (120, 160)]


def jpeg(height: int, width: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    image = Image.fromarray(noise.astype(np.uint8)).resize((width, height))
    out = BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def unit_of(files: Mapping[str, bytes | None]) -> pa.Table:
    rows = [
        {"hash": name_hash(name), "file_name": name, "uri": name, "attempts": 0} for name in files
    ]
    bodies = [
        Body(data) if data is not None else Body(None, "not_found", "gone")
        for data in files.values()
    ]
    unit = WorkUnit(1, 4, len(rows), "part", 0, "path")
    return _with_bodies(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), unit, bodies)


def segmenter(weights: Path | str, *, model: str = "detr:load", batch_size: int = 4) -> Segmenter:
    spec = ModelSpec(
        model=model,
        weights=str(weights),
        dtype="fp32",
        threshold=0.85,
        size_quantum=1,
        device="cpu",
    )
    decoding = Decoding(exif=True, max_pixels=10_000_000)
    return Segmenter(spec, decoding=decoding, batch_size=batch_size, threads=1, code_version="t")


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes | None]:
    return {f"{number}.jpg": jpeg(*size, seed=number) for number, size in enumerate(SIZES)}


def test_an_image_has_the_same_row_alone_and_in_any_batch(
    tiny_weights: Path, photos: dict[str, bytes | None]
) -> None:
    whole = [segmenter(tiny_weights, batch_size=size)(unit_of(photos)) for size in (1, 2, 8)]
    assert whole[0].equals(whole[1])
    assert whole[0].equals(whole[2])
    assert sum(len(ids) for ids in whole[0]["segment_id"].to_pylist()) > 0
    one = segmenter(tiny_weights)
    for index, (name, data) in enumerate(photos.items()):
        assert one(unit_of({name: data})).equals(whole[0].slice(index, 1).combine_chunks())


def test_rows_have_the_shards_schema_and_their_place(
    tiny_weights: Path, photos: dict[str, bytes | None]
) -> None:
    rows = segmenter(tiny_weights)(unit_of(photos))
    assert rows.schema.names == [*SHARD_SCHEMA.names, "shard"]
    assert rows.select(SHARD_SCHEMA.names).schema.equals(SHARD_SCHEMA)
    assert set(rows["shard"].to_pylist()) == {4}
    assert rows["file_name"].to_pylist() == list(photos)
    assert rows["height"].to_pylist() == [height for height, _ in SIZES]


def test_every_failure_is_its_own_row(tiny_weights: Path) -> None:
    good = jpeg(60, 80, 1)
    files = {"good": good, "gone": None, "empty": b"", "half": good[: len(good) // 2]}
    files["huge"] = jpeg(4000, 4000, 2)
    rows = segmenter(tiny_weights)(unit_of(files)).to_pylist()
    codes = [row["error_code"] for row in rows]
    assert codes == [None, "not_found", "empty", "truncated", "too_large"]
    assert all(row["counts"] == [] and row["height"] is None for row in rows[1:])


class Scarce(Toy):
    """Has memory for three images, and for none of 120 pixels' height."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        self.calls.append(len(images))
        if len(images) > 3 or images[0].shape[0] == 120:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().segment(images)


def load_scarce(weights: str, **settings: Any) -> Scarce:
    return Scarce()


def test_out_of_memory_halves_the_batch_and_remembers(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(
        tmp_path / "none", model="tests.pipeline.test_segmenter:load_scarce", batch_size=8
    )
    same = {f"{number}.jpg": jpeg(60, 80, number) for number in range(11)}
    rows = actor(unit_of({**same, "large.jpg": jpeg(120, 160, 1)})).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 11 + ["error"]
    assert rows[-1]["error_code"] == "out_of_memory"
    assert actor.batch_size == 2  # 8 and 4 were too many
    actor.model.calls.clear()  # type: ignore[attr-defined]
    actor(unit_of(same))
    assert max(actor.model.calls) <= 2  # type: ignore[attr-defined]


class Wrong(Toy):
    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def load_wrong(weights: str, **settings: Any) -> Wrong:
    return Wrong()


def test_a_bug_of_the_model_is_no_error_row(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(tmp_path / "none", model="tests.pipeline.test_segmenter:load_wrong")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        actor(unit_of({"a.jpg": jpeg(60, 80, 1)}))


def test_a_unit_of_many_sizes_one_image_each_works(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(tmp_path / "none", model="tests.toy_model:load")
    files = {f"{number}.png": jpeg(20 + number, 90 - number, number) for number in range(64)}
    assert set(actor(unit_of(files))["status"].to_pylist()) == {"ok"}
