"""Page-locked memory that is used again, with plain memory in the place of what a GPU can reach."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from detr.inference.steps import Steps
from detr.transfer import Slots

PHOTO = (48, 64, 3)


class Locked:
    """Makes buffers as a driver would lock them, and knows whether an array lies in one."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def __call__(self, size: int) -> Tensor:
        self.buffers.append(torch.empty(size, dtype=torch.uint8))
        return self.buffers[-1]

    def holds(self, address: int) -> bool:
        return any(0 <= address - b.data_ptr() < len(b) for b in self.buffers)


@pytest.fixture
def locked() -> Locked:
    return Locked()


def test_a_slot_is_used_again_when_nobody_has_its_image(locked: Locked) -> None:
    slots = Slots(lock=locked)
    for number in range(50):
        image, other = slots.take(PHOTO), slots.take((40, 60, 3))
        assert (image.shape, image.dtype) == (PHOTO, np.uint8)
        assert image.flags.c_contiguous
        assert locked.holds(image.ctypes.data)
        image[:], other[:] = number, 255 - number
        assert (image == number).all()
    assert len(locked.buffers) <= 4  # two, and two that the next round asks for while these live


@pytest.mark.parametrize(
    "keep",
    [
        lambda image: image,
        lambda image: image[::2, 1:],
        lambda image: image.reshape(-1)[5:],
        lambda image: torch.from_numpy(image),
        lambda image: torch.from_numpy(image).permute(2, 0, 1)[:1],
    ],
    ids=["image", "part", "flat", "tensor", "part of a tensor"],
)
def test_a_slot_is_not_used_again_while_anything_refers_to_it(
    locked: Locked, keep: Callable[[np.ndarray], np.ndarray | Tensor]
) -> None:
    slots = Slots(lock=locked)
    image = slots.take(PHOTO)
    image[:] = 7
    kept = keep(image)
    del image
    for _ in range(3):
        slots.take(PHOTO)[:] = 9
    assert int(kept.min()) == int(kept.max()) == 7


def test_no_more_is_locked_than_the_bound_and_a_large_slot_serves_a_small_image(
    locked: Locked,
) -> None:
    slots = Slots(40_000, locked)
    first, second = slots.take((100, 100, 3)), slots.take((100, 100, 3))
    assert locked.holds(first.ctypes.data)
    assert not locked.holds(second.ctypes.data)
    del first
    assert locked.holds(slots.take((2, 2, 3)).ctypes.data)
    assert len(locked.buffers) == 1


def test_where_nothing_can_be_locked_memory_is_plain() -> None:
    def refuse(size: int) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    slots = Slots(lock=refuse)
    for _ in range(2):
        assert slots.take(PHOTO).shape == PHOTO


def test_threads_never_get_the_same_slot(locked: Locked) -> None:
    slots = Slots(lock=locked)
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            image = slots.take(PHOTO)
            image[:] = number
            if (image != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(locked.buffers) <= 16


def test_what_lies_in_slots_is_copied_to_a_gpu_from_there(
    monkeypatch: pytest.MonkeyPatch, locked: Locked
) -> None:
    """torch gives what is locked already as it is; anything else it copies on the host first."""
    slots = Slots(lock=locked)
    images = [slots.take(PHOTO) for _ in range(4)]
    asked: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        asked.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", lambda tensor, device, **_: tensor)
    steps = Steps.__new__(Steps)
    steps.device = torch.device("cuda")
    for image in images:
        steps._on_device(image)
    assert asked == [image.ctypes.data for image in images]


def test_what_the_decoder_of_a_gpu_made_stays_until_the_model_has_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch gives memory back to the stream that took it, where the model's work isn't known."""
    model_stream, told = object(), []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: model_stream)

    class Decoded:
        device = torch.device("cuda")
        shape = torch.Size(PHOTO)
        record_stream = staticmethod(told.append)

        def to(self, device: torch.device) -> Decoded:
            return self

    steps = Steps.__new__(Steps)
    steps.device = torch.device("cuda")
    steps._on_device(Decoded())  # type: ignore[arg-type]
    assert told == [model_stream]
