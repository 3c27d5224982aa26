"""A step of a training asks a GPU for one thing: the costs of the matching."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detr.models.detr import DetrPanoptic
from detr.training.learner import Learner
from pipeline.train.loop import averaged
from tests.detr.training.test_learner import TINY, two_squares

# What makes the host wait: a value asked for, or a shape that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal")


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__.partition(".")[0] not in WAITS, func
        if func.__name__.startswith("repeat_interleave"):
            assert (kwargs or {}).get("output_size") is not None
        return func(*args, **(kwargs or {}))


class Counted(TorchDispatchMode):
    """Counts the operators called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_costs_of_the_matching_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learner = Learner(DetrPanoptic(TINY), phase="joint", dense_weight=1.0).train()
    average = averaged(learner.model, 0.9)
    optimizer = torch.optim.AdamW(learner.parameters())
    images, targets = two_squares()
    copies: list[torch.Size] = []
    plain = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tensor.shape)
        return plain(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    with NothingWaits():
        losses = learner(images, None, targets)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 0.1)
        terms = losses.terms()
    assert copies == [(TINY.dec_layers, 1, TINY.num_queries, 2)]
    assert {value.dtype for value in terms.values()} == {torch.float64}
    optimizer.step()
    average.update_parameters(learner.model)  # its first call copies
    before = [parameter.detach().clone() for parameter in average.module.parameters()]
    optimizer.step()
    with Counted() as calls:
        average.update_parameters(learner.model)
    assert calls.names["_foreach_lerp_"] == 1  # not a launch for each tensor
    assert not calls.names["lerp"] + calls.names["lerp_"] + calls.names["mul"]
    for old, new, current in zip(
        before, average.module.parameters(), learner.model.parameters(), strict=True
    ):
        assert torch.equal(new, old.lerp(current, 1 - 2 / 11))
