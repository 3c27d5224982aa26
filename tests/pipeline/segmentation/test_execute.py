"""What a job holds while it runs."""

from __future__ import annotations

from pipeline.segmentation.execute import Meter


def test_gpus_cost_what_they_were_there_for_up_to_the_pool() -> None:
    meter = Meter(most=4.0, now=100.0)
    assert meter.read(0.0, now=160.0) == 0.0  # none has come yet
    assert meter.read(1.0, now=170.0) == 10.0
    assert meter.read(8.0, now=180.0) == 10.0 + 4 * 10.0  # others' GPUs are not ours
    assert meter.read(0.0, now=999.0) == 50.0  # they left


def test_a_pool_without_gpus_holds_none() -> None:
    assert Meter(most=0.0, now=0.0).read(8.0, now=60.0) == 0.0
