"""The model actor without Ray: batches, memory, errors, and rows that depend on nothing else."""

from __future__ import annotations

import platform
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detr.config import ModelError
from detr.inference.gpu_batch import InFlight
from detr.inference.predictor import Predictor
from detr.panoptic import Panoptic
from detr.transfer import Slots
from pipeline.errors import UserError
from pipeline.schema import SHARD_SCHEMA
from pipeline.storage.entry import StorageError
from tests.factories import jpeg, on_a_device_that_works_alone, segmenter, unit_of
from tests.toy_model import Toy

SIZES = [(60, 80), (60, 80), (80, 60), (50, 50), (60, 80), (61, 80), (50, 50), (120, 160)]


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
        tmp_path / "none",
        model="tests.pipeline.segmentation.test_segmenter:load_scarce",
        batch_size=8,
    )
    same = {f"{number}.jpg": jpeg(60, 80, number) for number in range(11)}
    rows = actor(unit_of({**same, "large.jpg": jpeg(120, 160, 1)})).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 11 + ["error"]
    assert rows[-1]["error_code"] == "out_of_memory"
    assert actor.stream.batch_size == 2  # 8 and 4 were too many
    model = actor.stream.model
    assert isinstance(model, Scarce)
    model.calls.clear()
    actor(unit_of(same))
    assert max(model.calls) <= 2


class OnGpu(Toy):
    """Says that it is on a GPU, and whether each image lies in locked memory."""

    device = SimpleNamespace(type="cuda")

    def __init__(self) -> None:
        self.locked: list[torch.Tensor] = []
        self.images = 0

    def lock(self, size: int) -> torch.Tensor:
        self.locked.append(torch.empty(size, dtype=torch.uint8))
        return self.locked[-1]

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        for image in images:
            start = image.ctypes.data
            assert any(0 <= start - each.data_ptr() < len(each) for each in self.locked)
            self.images += 1
        return super().segment(images)


def test_images_for_a_gpu_are_decoded_into_slots_that_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: dict[str, bytes | None]
) -> None:
    (tmp_path / "none").write_bytes(b"")
    model = OnGpu()
    monkeypatch.setattr("tests.toy_model.load", lambda *_, **__: model)
    monkeypatch.setattr(
        "pipeline.segmentation.batches.Slots", partial(Slots, 1 << 30, lock=model.lock)
    )
    on_gpu = segmenter(tmp_path / "none", model="tests.toy_model:load", batch_size=2)
    monkeypatch.setattr("tests.toy_model.load", lambda *_, **__: Toy())
    plain = segmenter(tmp_path / "none", model="tests.toy_model:load", batch_size=2)
    unit = unit_of(photos)
    wanted = plain(unit)
    for _ in range(6):
        assert on_gpu(unit).equals(wanted)
    assert model.images == 6 * len(photos)
    assert len(model.locked) <= 8  # a batch with the model and one decoded ahead, of two kinds


class Wrong(Toy):
    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def load_wrong(weights: str, **settings: Any) -> Wrong:
    return Wrong()


def test_a_bug_of_the_model_is_no_error_row(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(
        tmp_path / "none", model="tests.pipeline.segmentation.test_segmenter:load_wrong"
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        actor(unit_of({"a.jpg": jpeg(60, 80, 1)}))


class Lost(Toy):
    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def load_lost(weights: str, **settings: Any) -> Lost:
    return Lost()


def test_a_lost_device_ends_the_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").write_bytes(b"")
    model = "tests.pipeline.segmentation.test_segmenter:load_lost"
    ended: list[int] = []
    monkeypatch.setattr("pipeline.segmentation.segmenter.os._exit", ended.append)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        segmenter(tmp_path / "none", model=model)(unit_of({"a.jpg": jpeg(60, 80, 1)}))
    assert ended == [70]
    model = model.replace("load_lost", "load_wrong")  # a bug is told, and no other actor is tried
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        segmenter(tmp_path / "none", model=model)(unit_of({"a.jpg": jpeg(60, 80, 1)}))
    assert ended == [70]


def test_a_unit_of_many_sizes_one_image_each_works(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(tmp_path / "none", model="tests.toy_model:load")
    files = {f"{number}.png": jpeg(20 + number, 90 - number, number) for number in range(64)}
    assert set(actor(unit_of(files))["status"].to_pylist()) == {"ok"}


class Roomy(Toy):
    """Says how many images fit, and writes down how many it got."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def processed_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def images_that_fit(self, height: int, width: int) -> int:
        return 5 if height == 60 else 2

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        self.calls.append(len(images))
        return super().segment(images)


def load_roomy(weights: str, **settings: Any) -> Roomy:
    return Roomy()


def test_a_batch_holds_as_many_images_as_the_model_says_that_fit(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    model = "tests.pipeline.segmentation.test_segmenter:load_roomy"
    files = {f"{number}.jpg": jpeg(60, 80, number) for number in range(7)}
    files |= {f"{number}.jpg": jpeg(80, 60, number) for number in range(10, 13)}
    for batch_size, expected in ((None, [5, 2, 2, 1]), (3, [3, 3, 1, 2, 1])):
        actor = segmenter(tmp_path / "none", model=model, batch_size=batch_size)
        actor(unit_of(files))
        assert isinstance(actor.stream.model, Roomy)
        assert actor.stream.model.calls == expected


def test_batches_under_way_give_the_same_rows(
    tiny_weights: Path, photos: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = segmenter(tiny_weights, batch_size=1)(unit_of(photos))
    on_a_device_that_works_alone(monkeypatch)
    found = segmenter(tiny_weights, batch_size=1)(unit_of(photos))
    scores = found.column_names.index("score")  # downloaded before or after a rounding: equal
    assert found.remove_column(scores).equals(expected.remove_column(scores))
    assert found["score"].to_pylist() == expected["score"].to_pylist()


@pytest.mark.parametrize("step", ["__init__", "masks", "result"])
def test_memory_that_runs_out_under_way_costs_no_row(
    tiny_weights: Path,
    photos: dict[str, bytes | None],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """An injected error in each step, every third time: what was under way is computed again.

    By then nothing holds what the failed step had allocated.
    """
    expected = segmenter(tiny_weights, batch_size=1)(unit_of(photos))
    on_a_device_that_works_alone(monkeypatch)
    calls = 0
    plain = getattr(InFlight, step)

    allocated: list[weakref.ref[Any]] = []

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 2:
            activations = np.empty(1)
            allocated.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(*arguments)

    again = Predictor.segment

    def segment(*arguments: Any) -> Any:
        assert not any(reference() is not None for reference in allocated)
        return again(*arguments)

    monkeypatch.setattr(InFlight, step, full)
    monkeypatch.setattr(Predictor, "segment", segment)
    rows = segmenter(tiny_weights, batch_size=1)(unit_of(photos))
    assert calls >= 3
    assert rows.equals(expected)


def test_a_bug_under_way_is_no_error_row(
    tiny_weights: Path, photos: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_device_that_works_alone(monkeypatch)
    monkeypatch.setattr(InFlight, "masks", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter(tiny_weights)(unit_of(photos))


def test_two_units_at_a_time_give_the_rows_of_one_after_the_other(
    tiny_weights: Path, photos: dict[str, bytes | None]
) -> None:
    units = [unit_of(dict(list(photos.items())[start::3])) for start in range(3)]
    actor = segmenter(tiny_weights)
    expected = [actor(unit) for unit in units]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(actor, units))
    assert all(one.equals(other) for one, other in zip(found, expected, strict=True))


def test_the_next_unit_is_decoded_while_the_model_works(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    actor = segmenter(tmp_path / "none", model="tests.toy_model:load")
    decoded: list[str] = []
    plain = actor.pool.submit

    def watch(function: Any, *arguments: Any) -> Any:
        decoded.append(arguments[0].__name__)
        return plain(function, *arguments)

    actor.pool.submit = watch  # type: ignore[method-assign,assignment]
    other = threading.Event()
    actor.turn.submit(other.wait)  # the model is busy with another unit
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(actor, unit_of({"a.jpg": jpeg(60, 80, 1)}))
        deadline = time.monotonic() + 20
        while not decoded and time.monotonic() < deadline:
            time.sleep(0.01)
        assert decoded == ["_decode"]
        assert not waiting.done()
        other.set()
        assert waiting.result()["status"].to_pylist() == ["ok"]


def test_draft_decoding_keeps_the_size_of_the_file(tiny_weights: Path) -> None:
    files = {"large.jpg": jpeg(480, 640, 3), "small.jpg": jpeg(60, 80, 1)}
    whole = segmenter(tiny_weights)(unit_of(files))
    draft = segmenter(tiny_weights, method="draft")(unit_of(files))
    assert draft["height"].to_pylist() == whole["height"].to_pylist() == [480, 60]
    assert draft.slice(1).equals(whole.slice(1))  # nothing to save there


def test_the_gpus_decoder_on_a_cpu_is_refused_with_the_first_unit(
    tiny_weights: Path, photos: dict[str, bytes | None]
) -> None:
    actor = segmenter(tiny_weights, method="nvjpeg")
    with pytest.raises(ModelError, match="nvjpeg needs a GPU"):
        actor(unit_of(photos))


def test_weights_that_this_node_does_not_have_are_told_with_the_first_unit(
    photos: dict[str, bytes | None],
) -> None:
    actor = segmenter("elsewhere.safetensors")
    with pytest.raises(UserError, match=f"no such file .*on {platform.node()}"):
        actor(unit_of(photos))


def test_a_store_that_is_down_ends_the_actor_so_that_another_may_try() -> None:
    with pytest.raises(StorageError, match="can't fetch --weights"):
        segmenter("http://127.0.0.1:9/weights.safetensors")
