"""A batch in three steps: the answers of the plain way, and no step that waits for the device."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detr
from detr.inference import rounds
from detr.inference.gpu_batch import InFlight
from detr.inference.postprocess import _taps
from detr.inference.preprocess import _filter
from detr.models.position_encoding import whole_position
from detr.panoptic import Panoptic
from tests.random_weights import made_images, write_tiny

# What makes the host wait for a device: a value asked for, or a shape that depends on values.
META = torch.device("meta")  # stands for one that works alone: tensors without values
WAITS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "bincount", "equal")


class NothingWaits(TorchDispatchMode):
    """Refuses those operations; on a CPU they are the same ones as on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        assert name not in WAITS, name
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> detr.Predictor:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tiny(path)
    return detr.load(path, device="cpu")


def assert_equal(one: Panoptic, other: Panoptic) -> None:
    assert np.array_equal(one.segment_map, other.segment_map)
    assert one.segment_map.dtype == other.segment_map.dtype
    assert [(s.id, s.category_id, s.isthing) for s in one.segments] == [
        (s.id, s.category_id, s.isthing) for s in other.segments
    ]


def test_three_steps_give_the_plain_answer(model: detr.Predictor) -> None:
    for seed in range(8):
        images = made_images(2, seed, 96)
        images[0] = np.zeros_like(images[0]) if seed == 3 else images[0]
        flight = model.start(images)
        flight.masks()
        plain = model._segment_batch(images, (96, 128), [(96, 128)] * 2)
        for found, expected in zip(flight.result(), plain, strict=True):
            assert_equal(found, expected)


def test_batches_overlap(model: detr.Predictor) -> None:
    """The order in which the engine calls them: one batch is three steps behind another."""
    batches = [made_images(1, seed, 96) for seed in range(4)]
    flights: list[InFlight] = []
    answers: list[Panoptic] = []
    for batch in batches:
        flights.append(model.start(batch))
        if len(flights) > 1:
            flights[-2].masks()
        if len(flights) > 2:
            answers += flights[-3].result()
    flights[-1].masks()
    answers += flights[-2].result() + flights[-1].result()
    for answer, batch in zip(answers, batches, strict=True):
        assert_equal(answer, model.segment(batch)[0])


class CopiesInPassing(TorchDispatchMode):
    """Refuses to copy anything to a device in a way that waits for it."""

    copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("device") == META and args and args[0].device != META:
            assert kwargs.get("non_blocking"), func
            self.copies += 1
        return func(*args, **(kwargs or {}))


def test_a_size_seen_for_the_first_time_is_prepared_in_passing() -> None:
    with CopiesInPassing() as mode:
        _filter(641, 823, META)
        _taps(167, 801, 641, META)
        whole_position(31, 37, 64, META, torch.bfloat16)
    assert mode.copies == 2 + 4 + 1


def test_no_step_waits_but_for_what_it_says(model: detr.Predictor) -> None:
    images = made_images(2, 5, 96)
    model.segment(images)  # fills the caches by size
    with NothingWaits():
        flight = model.start(images)
        found, size = flight._found, flight._size
        keep = model.choose(found.logits[-1])[2]
    image_index, query_index = keep.nonzero(as_tuple=True)
    counts = keep.sum(1)
    most = int(counts.max())
    assert most > 1
    slots = image_index * most + torch.cat([torch.arange(int(count)) for count in counts])
    with NothingWaits(), torch.inference_mode():
        masks = model.model.mask_logits(found, image_index, query_index, chunk=4)
        made = rounds.merge_in_rounds(
            masks, slots, torch.arange(2 * most), sizes=[(size, (96, 128))] * 2
        )
    assert int(made.areas.sum()) == 2 * 96 * 128
