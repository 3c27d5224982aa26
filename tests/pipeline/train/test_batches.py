"""Batches: a function of seed and step, every image once an epoch, targets right to the pixel."""

import threading

import numpy as np
import pytest
import torch

from pipeline.train.batches import Batches, TrainingBatch, stack
from pipeline.train.dataset import PanopticDataset, open_dataset
from pipeline.train.synthetic import write_scenes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PanopticDataset:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 23, 4)
    return open_dataset(str(folder))


def series(dataset: PanopticDataset, **other: int) -> Batches:
    return Batches(dataset, **{"size": 64, "max_size": 128, "batch_size": 4, "seed": 3, **other})


def test_epoch_holds_every_image_once(dataset: PanopticDataset) -> None:
    batches = series(dataset)
    epochs = [sorted(i for batch in batches.order(e) for i in batch) for e in (0, 1)]
    assert epochs == [list(range(23))] * 2
    assert batches.order(0) != batches.order(1)


def test_full_batches_have_one_size(dataset: PanopticDataset) -> None:
    batches = series(dataset)
    uniform = [len({batches.sizes[i] for i in batch}) == 1 for batch in batches.order(0)]
    assert sum(uniform) >= len(uniform) - 2  # what is left over of three sizes


def test_same_seed_and_step_give_the_same_batch(dataset: PanopticDataset) -> None:
    one, other = series(dataset).make(9), series(dataset).make(9)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.targets.boxes, other.targets.boxes)
    assert not torch.equal(one.images, series(dataset, seed=4).make(9).images)


def test_resumed_series_goes_on_where_it_stopped(dataset: PanopticDataset) -> None:
    whole = [batch.targets.labels.tolist() for batch in series(dataset).from_step(0, 9)]
    rest = [batch.targets.labels.tolist() for batch in series(dataset).from_step(6, 9)]
    assert rest == whole[6:]


def test_batches_for_a_gpu_are_made_two_at_a_time_in_locked_memory(
    dataset: PanopticDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [batch.targets.labels.tolist() for batch in series(dataset).from_step(0, 6)]
    both, locked = threading.Barrier(2, timeout=20), []
    make = Batches.make

    def make_beside_another(batches: Batches, step: int) -> TrainingBatch:
        both.wait()  # until a second thread makes one, too
        return make(batches, step)

    def lock(tensor: torch.Tensor) -> torch.Tensor:
        locked.append(tensor.clone())
        return locked[-1]

    monkeypatch.setattr(Batches, "make", make_beside_another)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    made = list(series(dataset).from_step(0, 6, pinned=True))
    assert [batch.targets.labels.tolist() for batch in made] == plain
    for batch in made:
        for tensor in (batch.images, batch.padding, *vars(batch.targets).values()):
            if isinstance(tensor, torch.Tensor):
                assert any(tensor is each for each in locked)


def test_workers_share_an_epoch(dataset: PanopticDataset) -> None:
    seen = [
        index
        for rank in (0, 1)
        for step in range(len(series(dataset).order(0)) // 2)
        for index in series(dataset, rank=rank, world=2).indices(step)
    ]
    assert len(seen) == len(set(seen))


def test_targets_by_hand() -> None:
    """A 4 x 8 image whose left half is segment 9 and whose last column is segment 700."""
    id_map = np.zeros((4, 8), dtype=np.int32)
    id_map[:, :4], id_map[:, 7] = 9, 700
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    batch = stack([image], [id_map], [[(9, 2), (700, 0), (33, 1)]])  # 33 has vanished
    assert batch.padding is None
    assert batch.targets.counts == (2,)
    assert batch.targets.labels.tolist() == [2, 0]
    assert batch.targets.boxes.tolist() == [[0.25, 0.5, 0.5, 1.0], [0.9375, 0.5, 0.125, 1.0]]
    assert batch.targets.masks is not None
    assert batch.targets.masks.shape == (2, 2, 4)
    assert batch.targets.masks[:, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0.5]]


def test_images_of_two_sizes_are_padded_and_boxes_stay_their_own() -> None:
    small = np.ones((4, 4), dtype=np.int32)
    large = np.full((8, 6), 2, dtype=np.int32)
    images = [np.full((*m.shape, 3), 255, dtype=np.uint8) for m in (small, large)]
    batch = stack(images, [small, large], [[(1, 0)], [(2, 1)]])
    assert batch.images.shape == (2, 3, 8, 6)
    assert batch.padding is not None
    assert (~batch.padding).sum(dim=(1, 2)).tolist() == [16, 48]
    assert (batch.images[0][:, batch.padding[0]] == 0).all()
    assert batch.targets.boxes.tolist() == [[0.5, 0.5, 1.0, 1.0]] * 2
    assert batch.targets.masks is not None
    assert batch.targets.masks[0].sum() == 4
