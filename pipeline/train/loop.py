"""The training loop of one worker, with checkpoints and validation.

The whole state (weights, optimiser, averages, best PQ) is one object, OUT/checkpoint.pt, replaced
by one PUT. Batches and learning rates are functions of the step. So a killed training continues
from its last checkpoint, and one worker on CPUs ends with the same weights to the bit.

The validated and stored weights are an exponential average over the last steps: at a constant
learning rate they are several PQ better than the weights of the last step (Polyak averaging).
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
    """The hyperparameters; on one worker, they and the data determine the result."""

    phase: Phase = "joint"
    seed: int = 0
    steps: int = 5000
    batch_size: int = 16
    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    warmup: int = 100  # steps in which the learning rate rises
    cooldown: float = 0.3  # share of the steps, at the end, in which the learning rate falls to 0
    clip: float = 0.1  # largest norm of the gradient
    mask_weight: float = 1.0  # factor on the published weights of the focal and dice losses
    no_object_weight: float = 0.1  # of a query without target, in the class loss
    dense_weight: float = 0.0  # of the auxiliary loss on the encoder's cells (dense_head.py)
    averaging: float = 0.998  # of the weights, per step


@dataclass(frozen=True)
class Schedule:
    """When a training reports, saves and validates; without effect on the weights."""

    log_every: int = 20  # steps
    save_seconds: float = 60.0
    validate_every: int = 500  # steps
    validate_images: int = 200
    threshold: float = THRESHOLD  # at validation, and recommended by the stored weights
    half: bool = False  # store the best weights as float16


@dataclass(frozen=True)
class Task:
    """The whole input of a worker."""

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


def averaged(model: DetrPanoptic, most: float) -> AveragedModel:
    """The exponential average of a model's weights and buffers over the steps.

    Each step keeps `most` of the average, and less in the first steps: the initial weights would
    else stay in the average for a thousand steps. One call updates all tensors, where a GPU would
    else launch a kernel for each.
    """

    def update(averages: Any, currents: Any, _: Any) -> None:
        # The counter that torch hands over was copied to the device: asking for it would wait.
        steps = int(average.n_averaged)
        torch._foreach_lerp_(averages, currents, 1 - min(most, (1 + steps) / (10 + steps)))

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


class Trainer:
    """A model with its optimiser and averaged weights, on worker `rank` of `world`."""

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
        self.average = averaged(self.learner.model, plan.averaging)
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
        """Train from the checkpoint, if OUT has one, to the last step.

        `report` gets {step, losses, seconds_left}, and on rank 0 what `validate` returns.
        """
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
                losses = torch.stack(list(sums.values())) / (summed * self.world)
                if self.world > 1:
                    dist.all_reduce(losses)
                means = dict(zip(sums, losses.tolist(), strict=True))  # waits for the device
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
        """One step of the optimiser; returns the losses of this worker's batch, on the device.

        A GPU computes in bfloat16 as torch's autocast decides. A step waits for the GPU only once,
        for the costs of the matching.
        """
        share = factor(self.step, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * share
        # The random numbers of a step (dropout) depend only on seed, step and rank.
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
        """The number of targets and the weight of all queries in the class loss, as means over the
        workers: divided by these, the workers' losses average to the loss of the whole batch."""
        queries, no_object = self.task.config.num_queries, self.plan.no_object_weight
        weights = [float(sum(targets.counts)), label_weight(targets.counts, queries, no_object)]
        total = upload(torch.tensor(weights), self.device)
        dist.all_reduce(total)
        boxes, label = (total / self.world).unbind()
        return boxes, label

    def validate(self) -> dict[str, Any]:
        """Score the averaged weights; write them to OUT/weights.safetensors if their PQ is best.

        Returns {step, validation: PQ (0 to 1) by group, kept}.
        """
        task = self.task
        model = self.average.module
        assert isinstance(model, DetrPanoptic)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / WEIGHTS
            stored = copy.deepcopy(model).half() if task.schedule.half else model
            threshold = task.schedule.threshold
            detr.save(stored, path, task.config, task.categories, threshold=threshold)
            figures = validate(
                path,
                task.validation,
                limit=task.schedule.validate_images,
                threshold=threshold,
                device=self.device.type,
            )
            pq = figures["All"]["pq"] or 0.0
            # PQ does not measure a phase without masks: then the newest weights are kept.
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
        """Load the state of OUT/checkpoint.pt, if it exists."""
        state = read_checkpoint(self.task.out)
        if state is None:
            return
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.learner.load_state_dict(state["learner"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def read_checkpoint(out: Storage) -> dict[str, Any] | None:
    """The state in OUT/checkpoint.pt, on the CPU; None without a checkpoint."""
    try:
        data = out.read(CHECKPOINT)
    except FileNotFoundError:
        return None
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
