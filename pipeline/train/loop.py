"""One worker's share of a training: the loop, its checkpoints, its validation.

The whole state (weights, optimiser, averages, best figure) is one object, OUT/checkpoint.pt,
replaced by one PUT; batches and learning rates are functions of the step. So a training killed at
any moment goes on from its last checkpoint as if nothing had happened, and on one worker on CPUs
ends with the same weights to the bit.

What is validated and kept is an exponential average of the weights over the last steps: at a
constant learning rate it is several PQ better than the weights themselves (Polyak averaging).
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import detr
from detr.categories import Categories
from detr.config import THRESHOLD, DetrConfig
from detr.cuda_settings import settle_cuda
from detr.models.detr import DetrPanoptic
from detr.training.criterion import Targets, Weights, label_weight
from detr.training.learner import Learner, prepare_from_scratch
from detr.training.phases import Phase
from detr.transfer import upload
from pipeline.storage.storage import Storage
from pipeline.train.batches import Batches, TrainingBatch
from pipeline.train.dataset import PanopticDataset
from pipeline.train.validate import validate

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Plan:
    """What a training does; with the data it determines the result (on one worker)."""

    phase: Phase = "joint"
    seed: int = 0
    steps: int = 5000
    batch_size: int = 16
    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    warmup: int = 100  # steps of rising learning rate
    cooldown: float = 0.3  # share of the steps at the end, in which it falls to zero
    clip: float = 0.1  # largest norm of the gradient
    mask_weight: float = 1.0  # times the published weight of focal and dice
    no_object_weight: float = 0.1  # of a query without target, in the class term
    dense_weight: float = 0.0  # of the helping loss on the encoder's cells (dense_head.py)
    averaging: float = 0.998  # of the weights, per step


@dataclass(frozen=True)
class Schedule:
    """When a training reports, saves and validates; changes nothing that it learns."""

    log_every: int = 20  # steps
    save_seconds: float = 60.0
    validate_every: int = 500  # steps
    validate_images: int = 200
    threshold: float = THRESHOLD  # at validation, and recommended by the weights that are kept
    half: bool = False  # keep the best weights as float16


@dataclass(frozen=True)
class Task:
    """All that a worker is told."""

    plan: Plan
    schedule: Schedule
    config: DetrConfig
    categories: Categories
    training: PanopticDataset
    validation: PanopticDataset
    out: Storage
    initial: dict[str, Tensor] | None  # weights to start from; None: from scratch
    origin: dict[str, str] = field(default_factory=dict)  # digests of data and initial weights


def factor(step: int, plan: Plan) -> float:
    """The learning rate of a step as a share of its full value: rise, plateau, fall to zero."""
    rise = min(1.0, (step + 1) / max(1, plan.warmup))
    falling = max(1.0, plan.cooldown * plan.steps)
    return rise * min(1.0, (plan.steps - step) / falling)


def averaging(most: float, count: Callable[[], int]) -> Callable[[Any, Any, Any], None]:
    """An exponential average that forgets its beginning: it keeps `most` of itself per step, and
    less while it is young, or the initial weights would stay in it for a thousand steps.

    `count()`: how many steps it holds, from the host: torch's own number would be asked of the
    device. All tensors at once, where a GPU would launch a kernel for each.
    """

    def update(averages: Any, currents: Any, _: Any) -> None:
        keep = min(most, (1 + count()) / (10 + count()))
        torch._foreach_lerp_(averages, currents, 1 - keep)

    return update


class Trainer:
    """A model with its optimiser and averages, on one worker of `world`."""

    def __init__(self, task: Task, device: torch.device, rank: int = 0, world: int = 1) -> None:
        plan = task.plan
        torch.manual_seed(plan.seed)
        self.task, self.plan, self.device, self.rank, self.world = task, plan, device, rank, world
        if device.type == "cuda":
            settle_cuda(torch.bfloat16)
        model = DetrPanoptic(task.config)
        if task.initial is None:
            prepare_from_scratch(model)
        else:
            model.load_state_dict({**model.state_dict(), **task.initial})
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = Weights(
            focal=plan.mask_weight, dice=plan.mask_weight, no_object=plan.no_object_weight
        )
        self.learner = Learner(
            model, phase=plan.phase, weights=weights, dense_weight=plan.dense_weight
        ).to(device)
        self.average = AveragedModel(
            self.learner.model,
            multi_avg_fn=averaging(plan.averaging, lambda: int(self.average.n_averaged)),
            use_buffers=True,
        )
        self.optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=plan.weight_decay)
        self.step, self.best = 0, -1.0
        self.history: list[dict[str, Any]] = []  # of validations

    def _parameter_groups(self) -> list[dict[str, Any]]:
        named = [(n, p) for n, p in self.learner.named_parameters() if p.requires_grad]
        backbone = [p for n, p in named if ".backbone." in n]
        dense = [p for n, p in named if n.startswith("dense_head.")]
        others = [p for n, p in named if ".backbone." not in n and not n.startswith("dense_head.")]
        lr = self.plan.lr
        groups = [(others, lr), (backbone, self.plan.backbone_lr), (dense, lr)]
        return [{"params": params, "lr": lr, "full_lr": lr} for params, lr in groups if params]

    def run(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Train from the checkpoint, if there is one, to the last step; `report` gets the news."""
        self.restore()
        wrapped: nn.Module = self.learner
        if self.world > 1:
            wrapped = nn.parallel.DistributedDataParallel(self.learner, broadcast_buffers=False)
        config, schedule = self.task.config, self.task.schedule
        batches = Batches(
            self.task.training,
            size=config.size,
            max_size=config.max_size,
            batch_size=self.plan.batch_size,
            seed=self.plan.seed,
            rank=self.rank,
            world=self.world,
        )
        started, first, saved = time.monotonic(), self.step, time.monotonic()
        sums: dict[str, Tensor] = {}
        summed = 0
        on_gpu = self.device.type == "cuda"
        for batch in batches.from_step(self.step, self.plan.steps, pinned=on_gpu):
            for name, value in self._learn(wrapped, batch.to(self.device)).items():
                sums[name] = sums[name] + value if name in sums else value
            self.step += 1
            summed += 1
            last = self.step == self.plan.steps
            if self.step % schedule.log_every == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                eta = pace * (self.plan.steps - self.step)
                told = torch.stack(list(sums.values())) / (summed * self.world)
                if self.world > 1:
                    dist.all_reduce(told)
                # Waits for the device.
                means = dict(zip(sums, told.tolist(), strict=True))
                report({"step": self.step, "losses": means, "seconds_left": round(eta)})
                sums.clear()
                summed = 0
            if self.rank == 0:
                if self.step % schedule.validate_every == 0 or last:
                    report(self.validate())
                if time.monotonic() - saved > schedule.save_seconds or last:
                    self.save()
                    saved = time.monotonic()

    def _learn(self, wrapped: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
        """One step of the optimiser; returns the losses of this worker's batch, on its device.

        On a GPU in bfloat16 where torch's autocast deems it safe. The only answer that a step waits
        for there is the costs of the matching.
        """
        share = factor(self.step, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * share
        # Every random draw of a step (dropout) follows from its number.
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step * self.world + self.rank)
        self.learner.train()
        shares = self._shares(batch.targets) if self.world > 1 else ()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = wrapped(batch.images, batch.padding, batch.targets, *shares)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.plan.clip)
        self.optimizer.step()
        self.average.update_parameters(self.learner.model)
        return losses.terms()

    def _shares(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """What divides the terms of each worker, so that their mean is the whole batch's: targets,
        and what queries weigh in the class term."""
        queries, no_object = self.task.config.num_queries, self.plan.no_object_weight
        own = [float(sum(targets.counts)), label_weight(targets.counts, queries, no_object)]
        total = upload(torch.tensor(own), self.device)
        dist.all_reduce(total)
        boxes, label = (total / self.world).unbind()
        return boxes, label

    def validate(self) -> dict[str, Any]:
        """Score the averaged weights, and keep them as OUT/weights.safetensors if they lead."""
        task = self.task
        model = self.average.module
        assert isinstance(model, DetrPanoptic)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / WEIGHTS
            stored = copy.deepcopy(model).half() if task.schedule.half else model
            threshold = task.schedule.threshold  # under which these weights are the best
            detr.save(stored, path, task.config, task.categories, threshold=threshold)
            figures = validate(
                path,
                task.validation,
                limit=task.schedule.validate_images,
                threshold=threshold,
                device=self.device.type,
            )
            pq = figures["All"]["pq"] or 0.0
            # PQ says nothing about phases that learn no masks: of those the newest is kept.
            kept = pq >= self.best or not self.learner.learns_masks
            news = {
                "step": self.step,
                "validation": {group: figures[group]["pq"] for group in ("All", "Things", "Stuff")},
                "kept": kept,
            }
            self.history.append(news)
            if kept:
                self.best = pq
                task.out.write(WEIGHTS, path.read_bytes())
        return news

    def save(self) -> None:
        state = {
            "plan": asdict(self.plan),
            "config": self.task.config.to_dict(),
            "origin": self.task.origin,
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.task.out.write(CHECKPOINT, buffer.getvalue())

    def restore(self) -> None:
        """Continue from OUT/checkpoint.pt where there is one."""
        state = read_checkpoint(self.task.out)
        if state is None:
            return
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.learner.load_state_dict(state["learner"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def read_checkpoint(out: Storage) -> dict[str, Any] | None:
    """The state of the training in `out`, on the CPU; None where none has begun."""
    try:
        data = out.read(CHECKPOINT)
    except FileNotFoundError:
        return None
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
