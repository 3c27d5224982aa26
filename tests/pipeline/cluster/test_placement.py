"""Preflight: what fits where, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipeline.cluster.placement import (
    FETCH_CPUS,
    WRITE_CPUS,
    Capacity,
    Placement,
    place,
    stage_memory,
)
from pipeline.errors import UserError


def placed(
    resources: Mapping[str, float],
    *,
    most: Mapping[str, float] | None = None,
    grows: bool = False,
    device: str = "auto",
    actors: tuple[int, int] | None = None,
    units: int = 1000,
    images: int = 1_000_000,
) -> Placement:
    found = Capacity(resources, most, grows=grows or most is not None)
    return place(found, device=device, actors=actors, units=units, images=images)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 16, 64])
def test_one_task_of_every_stage_fits_beside_the_largest_pool_of_a_cpu_machine(cpus: int) -> None:
    placement = placed({"CPU": cpus})
    used = placement.max_actors * placement.actor_cpus + FETCH_CPUS + WRITE_CPUS
    assert used <= cpus
    assert placement.device == "cpu"
    assert placement.threads <= cpus


def test_a_gpu_is_taken_where_there_is_one() -> None:
    placement = placed({"CPU": 32, "GPU": 4})
    assert (placement.device, placement.actor_gpus, placement.max_actors) == ("cuda", 1, 4)
    used = placement.max_actors * placement.actor_cpus + FETCH_CPUS + WRITE_CPUS
    assert used <= 32


def test_gpus_that_are_there_are_all_taken_at_once() -> None:
    assert placed({"CPU": 32, "GPU": 4}).min_actors == 4
    assert placed({"CPU": 32, "GPU": 4}, units=3).min_actors == 3
    assert placed({"CPU": 8, "GPU": 1}, most={"CPU": 32, "GPU": 4}).min_actors == 1
    assert placed({"CPU": 32, "GPU": 4}, actors=(1, 2)).min_actors == 1


def test_a_cluster_that_may_grow_gpus_is_never_run_on_its_cpus() -> None:
    placement = placed({"CPU": 2}, most={"CPU": 34, "GPU": 4})
    assert (placement.device, placement.max_actors) == ("cuda", 4)


def test_an_autoscaler_that_does_not_say_how_far_it_goes_is_asked_for_an_actor_a_unit() -> None:
    placement = placed({"CPU": 17, "GPU": 1}, grows=True, device="cuda", units=40)
    assert (placement.max_actors, placement.threads) == (40, 16)
    assert placed({"CPU": 1}, grows=True, units=40).device == "cuda"
    assert placed({"CPU": 17, "GPU": 1}, grows=True, actors=(1, 8)).max_actors == 8


def test_a_cluster_without_an_autoscaler_is_not_asked_for_more() -> None:
    assert placed({"CPU": 17, "GPU": 1}, device="cuda").max_actors == 1
    assert placed({"CPU": 8}).device == "cpu"


def test_no_more_actors_than_shards_are_started() -> None:
    assert placed({"CPU": 64}, units=2).max_actors == 2


def test_a_gpu_that_is_not_there_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="the cluster has no GPU and its autoscaler may start none"):
        placed({"CPU": 8}, device="cuda")


def test_a_pool_that_leaves_no_room_for_the_fetch_is_refused() -> None:
    with pytest.raises(UserError, match=r"4 model actor\(s\) of 0.5 CPUs .* need 2.5 CPUs"):
        placed({"CPU": 2}, actors=(4, 4))


def test_actors_on_one_machine_share_its_cores() -> None:
    assert placed({"CPU": 2}, actors=(1, 1)).threads == 2
    two = placed({"CPU": 2}, actors=(2, 2))
    assert (two.max_actors, two.threads) == (2, 1)
    assert placed({"CPU": 16}, actors=(1, 8)).threads == 2
    assert placed({"CPU": 16}, actors=(1, 8), units=1).threads == 4  # one shard: one actor


def test_each_core_gets_a_model_of_its_own_where_memory_and_work_allow() -> None:
    of_all = placed({"CPU": 8, "memory": 64e9})
    assert (of_all.max_actors, of_all.threads) == (8, 1)
    tight = placed({"CPU": 8, "memory": 10e9})
    assert (tight.max_actors, tight.threads) == (2, 4)
    tighter = placed({"CPU": 8, "memory": 4e9})
    assert (tighter.max_actors, tighter.threads) == (1, 8)
    small = placed({"CPU": 2}, images=39)
    assert (small.max_actors, small.threads) == (1, 2)
    assert placed({"CPU": 2}, images=40).max_actors == 2


@pytest.mark.parametrize("cpus", [4, 8, 16, 64, 96])
@pytest.mark.parametrize("of_each", [1e9, 2.7e9, 5.5e9])
def test_cores_are_not_left_idle_for_actors_that_memory_does_not_hold(
    cpus: int, of_each: float
) -> None:
    memory = cpus * of_each
    placement = placed({"CPU": cpus, "memory": memory})
    assert placement.max_actors * placement.threads > cpus / 2
    assert placement.max_actors == 1 or placement.max_actors * 3.2e9 <= 0.7 * memory


def test_more_actors_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="--num-actors 5 asks for more GPUs"):
        placed({"CPU": 200, "GPU": 4}, actors=(5, 5))


def test_memory_is_declared_for_each_stage_and_grows_with_the_unit() -> None:
    placement = placed({"CPU": 32, "GPU": 4})
    small = stage_memory(50e6, placement, total=400e9)
    large = stage_memory(400e6, placement, total=400e9)
    assert small is not None
    assert large is not None
    assert 300e6 < small.fetch < large.fetch < 2e9
    assert small.actor < large.actor


def test_memory_that_might_never_be_free_is_not_declared() -> None:
    placement = placed({"CPU": 2})
    assert stage_memory(50e6, placement, total=3e9) is None
    assert stage_memory(50e6, placement, total=0) is None
