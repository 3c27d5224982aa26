"""A training as one Ray Train job: start the workers, pass on their reports, restart after a loss.

Workers send reports to a small actor that the driver polls: printed lines reach the driver late,
with a prefix, or on a cluster not at all. A fault in the data is such a report, too, and ends the
training; as an exception Ray would take it for a crash and restart the worker.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device

from pipeline.errors import UserError
from pipeline.train.loop import Task, Trainer

News = dict[str, Any]
RESTARTS = 3  # of the workers, each from the last checkpoint
POLL_SECONDS = 1.0


@ray.remote(num_cpus=0)
class Board:
    """The actor between workers and driver: holds reports until the driver takes them."""

    def __init__(self) -> None:
        self.news: list[News] = []

    def write(self, news: News) -> None:
        self.news.append(news)

    def take(self) -> list[News]:
        news, self.news = self.news, []
        return news


def launch(task: Task, *, workers: int, use_gpu: bool, tell: Callable[[News], None]) -> None:
    """Run the training to its end; `tell` gets each report, in the driver.

    Raises UserError for a fault that a worker found in the data, TrainingFailedError if workers
    failed more than RESTARTS times.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    cpus = max(1, int(ray.cluster_resources()["CPU"]) // workers)
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        # Less than a worker's share of the CPUs: Ray Train's controller needs CPU, too.
        resources_per_worker={"CPU": 0.5, **({"GPU": 1} if use_gpu else {})},
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"task": ray.put(task), "board": board, "threads": cpus},
            scaling_config=scaling,
            run_config=RunConfig(
                name="train",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        faults: list[BaseException] = []
        thread = threading.Thread(target=_fit, args=(trainer, faults), daemon=True)
        thread.start()
        sentence = None
        while thread.is_alive() or thread.join():
            thread.join(POLL_SECONDS)
            sentence = _read(board, tell) or sentence
    if sentence is not None:
        raise UserError(sentence)
    if faults:
        raise faults[0]


def _read(board: Any, tell: Callable[[News], None]) -> str | None:
    """Pass new reports to `tell`; returns the message of a fault in the data, if one came."""
    sentence = None
    for news in ray.get(board.take.remote()):
        if "fault" in news:
            sentence = news["fault"]
        else:
            tell(news)
    return sentence


def _fit(trainer: TorchTrainer, faults: list[BaseException]) -> None:
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - the main thread raises it
        faults.append(error)


def settle(threads: int) -> None:
    """Set the number of torch's CPU threads, and make results equal to the bit in each run.

    By default threads add the gradients of an indexed tensor in any order.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _work(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker."""
    board = config["board"]
    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    assert isinstance(device, torch.device)
    if device.type == "cpu":
        settle(min(config["threads"], os.cpu_count() or 1))

    def report(news: News) -> None:
        if rank == 0:
            ray.get(board.write.remote(news))

    try:
        task: Task = ray.get(config["task"])
        Trainer(task, device, rank, world).run(report)
    except UserError as error:
        ray.get(board.write.remote({"fault": str(error)}))
        if world > 1:
            raise  # the other workers wait for the gradients of this one: only an error ends them
