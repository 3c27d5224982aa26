"""Two workers on halves of each batch: the losses of one worker, and its weights."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from detr.config import DetrConfig
from detr.training.criterion import Targets
from pipeline.storage.storage import Storage
from pipeline.train import loop
from pipeline.train.batches import Batches, TrainingBatch
from pipeline.train.dataset import open_dataset
from pipeline.train.loop import Plan, Schedule, Task, Trainer, read_checkpoint
from pipeline.train.synthetic import write_scenes

STEPS = 4
CPU = torch.device("cpu")
# Batch norm at rest, as in published models: each worker would have statistics of its own.
CONFIG = DetrConfig(
    block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), dilation=True, frozen_norm=True,
    hidden_dim=32, nheads=4, enc_layers=1, dec_layers=2, dim_feedforward=32, dropout=0.0,
    num_queries=6, num_classes=9, mask_groups=2, size=64, max_size=96,
)  # fmt: skip


class Halves(Batches):
    """Of the batches that one worker would get, each of two workers gets every second image."""

    def __init__(self, *arguments: Any, rank: int, world: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.share = slice(rank, None, world)

    def make(self, step: int) -> TrainingBatch:
        whole = super().make(step)
        t = whole.targets
        assert t.masks is not None
        labels, boxes, masks = (each.split(t.counts) for each in (t.labels, t.boxes, t.masks))
        targets = Targets(
            torch.cat(labels[self.share]),
            torch.cat(boxes[self.share]),
            torch.cat(masks[self.share]),
            t.counts[self.share],
        )
        padding = None if whole.padding is None else whole.padding[self.share]
        return TrainingBatch(whole.images[self.share], padding, targets)


def train(folder: Path, out: Path, rank: int, world: int) -> list[dict[str, Any]]:
    dataset = open_dataset(str(folder))
    task = Task(
        plan=Plan(steps=STEPS, batch_size=4, lr=1e-3, backbone_lr=1e-3, warmup=1),
        schedule=Schedule(log_every=2, validate_every=1000, validate_images=1),
        config=CONFIG,
        categories=dataset.categories,
        training=dataset,
        validation=dataset,
        out=Storage(str(out)),
        initial=None,
    )
    news: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Batches", Halves)
        Trainer(task, CPU, rank, world).run(news.append)
    return [each["losses"] for each in news if "losses" in each]


def weights(out: Path) -> torch.Tensor:
    """All that was learnt, as one vector."""
    state = read_checkpoint(Storage(str(out)))
    assert state is not None
    return torch.cat([tensor.flatten().float() for tensor in state["learner"].values()])


def work(rank: int, folder: Path, out: Path, told: Any) -> None:
    """The process of one of the two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.group", rank=rank, world_size=2)
    told.put((rank, train(folder, out, rank, 2)))
    dist.destroy_process_group()


@pytest.mark.slow(seconds=30)
def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_scenes(folder, 12, 3)
    alone = train(folder, tmp_path / "one", 0, 1)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, folder, tmp_path / "two", told))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    both = dict(told.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert len(alone) == STEPS // 2
    for losses in both.values():  # of the whole batch, whoever tells them
        for found, wanted in zip(losses, alone, strict=True):
            assert found == pytest.approx(wanted, rel=1e-3)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    # Where a gradient is nothing but rounding AdamW makes steps of it, which the losses don't see.
    assert float((one - two).norm() / one.norm()) < 2e-3
