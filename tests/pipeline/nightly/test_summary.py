"""What a night says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.layout import plan_path
from pipeline.nightly.release_gate import Judged
from pipeline.nightly.summary import NightSummary, errors_by_code, summarize, work_since
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from tests.factories import MadeImage, add_generation, publish_run

SUMMARY = NightSummary(
    out="s3://b/nights",
    run="run-a",
    snapshot=3,
    published=True,
    outcome="published",
    reasons=(),
    images=1_000,
    ok=990,
    errors={"truncated": 8, "timeout": 2},
    why={"new": 40, "removed": 3},
    computed=40,
    images_per_second=12.5,
    gpu_hours=0.5,
    cost=0.23,
    pq=0.4344,
    pq_interval=[0.42, 0.45],
    pq_change=-0.0012,
    pq_change_interval=(-0.004, 0.001),
    scored=100,
    seconds=61.0,
    started="2026-11-21T02:15:00+00:00",
)


def test_the_text_has_every_figure_once() -> None:
    assert SUMMARY.text().splitlines() == [
        "published: run-a, snapshot 3 of s3://b/nights",
        "1,000 images: 990 ok, 10 errors (truncated 8, timeout 2)",
        "computed 40 at 12.5 images/s (40 new, 3 removed)",
        "PQ 43.44 (42.00 .. 45.00) on 100 images, -0.12 (-0.40 .. +0.10) against the baseline",
        "cost 0.23 (0.5 GPU-hours)",
        "took 61 s, started 2026-11-21T02:15:00+00:00",
    ]


def test_a_quiet_night_is_short_and_a_stopped_one_says_why() -> None:
    quiet = replace(
        SUMMARY, outcome="nothing to do", computed=0, why={}, errors={}, pq=None, cost=None
    )
    assert len(quiet.text().splitlines()) == 4
    stopped = replace(SUMMARY, outcome="stopped", reasons=("PQ dropped by 9 points",))
    assert stopped.text().splitlines()[1] == "  PQ dropped by 9 points"
    assert json.loads(json.dumps(asdict(stopped)))["reasons"] == ["PQ dropped by 9 points"]


def test_work_is_that_of_the_generations_since_the_live_edition(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [MadeImage(f"{n}.png", f"/x/{n}.png", "timeout") for n in range(6)])
    add_generation(run, [MadeImage("9.png", "/x/9.png", "empty")], number=2, shards=1)
    placement = {"max_actors": 2_000, "actor_gpus": 1.0}  # an actor for each shard, were there GPUs
    entry = {"done": 6, "seconds": 10.0, "gpu_seconds": 40.0, "placement": placement}
    for number, done in ((1, 6), (2, 1)):
        stats = json.dumps([{**entry, "done": done}]).encode()
        run.storage.write(f"stats/{number:04d}.json", stats)
    everything = work_since(run, None)
    assert (everything.computed, everything.seconds) == (7, 20.0)
    assert everything.gpu_hours == 2 * 40 / 3600
    since = work_since(run, RunSnapshot(run, 1))
    assert (since.computed, since.images_per_second) == (1, 0.1)
    assert errors_by_code(RunSnapshot(run, 2)) == {"timeout": 6, "empty": 1}


def test_cost_is_gpu_hours_times_the_price(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [MadeImage("1.png", "/x/1.png", "timeout")])
    gpus = {"gpu_seconds": 3600.0, "placement": {"max_actors": 9, "actor_gpus": 1.0}}
    machine = {"gpu_seconds": 0.0, "placement": {"max_actors": 4, "actor_gpus": 0.0}}
    stats = [{"done": 1, "seconds": 3600.0, **where} for where in (gpus, machine)]
    run.storage.write("stats/0001.json", json.dumps(stats).encode())
    found = summarize(
        RunSnapshot(run, 1),
        Judged(("bad",)),
        "stopped",
        out="o",
        live=None,
        price=0.5,
        seconds=1.0,
        started=datetime(2026, 11, 21, tzinfo=UTC),
    )
    assert (found.gpu_hours, found.cost, found.published) == (2.0, 1.0, False)


def work_of(run: Run, number: int, done: int) -> None:
    """One more call that computed so many images, for an hour of a GPU each hundred."""
    place = f"stats/{number:04d}.json"
    before = json.loads(run.storage.read(place)) if run.storage.exists(place) else []
    seconds = 36.0 * done
    placement = {"actor_gpus": 1.0}
    entry = {"done": done, "seconds": seconds, "gpu_seconds": seconds, "placement": placement}
    run.storage.write(place, json.dumps([*before, entry]).encode())


def told(run: Run, live: int | None, before: NightSummary | None, outcome: str) -> NightSummary:
    """The summary of a night that ends with the newest generation."""
    return summarize(
        RunSnapshot(run, max(run.generations())),
        Judged(()),
        outcome,
        out="o",
        live=None if live is None else RunSnapshot(run, live),
        price=1.0,
        seconds=1.0,
        started=datetime(2026, 11, 21, tzinfo=UTC),
        counted=before and json.loads(json.dumps(asdict(before)))["counted"],
    )


def test_every_image_and_every_hour_is_counted_in_one_summary(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [MadeImage(f"{n}.png", f"/x/{n}.png", "timeout") for n in range(6)])
    work_of(run, 1, 600)
    nights = [told(run, None, None, "published")]

    add_generation(run, [MadeImage("9.png", "/x/9.png", "empty")], number=2, shards=1)
    plan = json.loads(run.storage.read(plan_path(2)))
    run.storage.write(plan_path(2), json.dumps({**plan, "counts": {"new": 1}}).encode())
    work_of(run, 2, 100)
    nights.append(told(run, 1, nights[-1], "stopped"))  # by the gate
    nights.append(told(run, 1, nights[-1], "stopped"))  # the next call judges the same again

    run.publish(2)
    run.move(lambda pointer: {"snapshot": 1, "withdrawn": [2]})  # and is rolled back
    nights.append(told(run, 1, nights[-1], "nothing to do"))
    nights.append(told(run, 1, nights[-1], "nothing to do"))

    work_of(run, 2, 30)  # shards were lost and are computed again
    nights.append(told(run, 1, nights[-1], "nothing to do"))

    assert [night.computed for night in nights] == [600, 100, 0, 0, 0, 30]
    assert [night.cost for night in nights] == [6.0, 1.0, 0.0, 0.0, 0.0, 0.3]
    assert [night.why for night in nights[1:]] == [{"new": 1}, {}, {}, {}, {}]


def test_what_was_rolled_back_before_the_first_summary_is_not_counted(tmp_path: Path) -> None:
    run = publish_run(tmp_path, [MadeImage("1.png", "/x/1.png", "timeout")])
    add_generation(run, [MadeImage("9.png", "/x/9.png", "empty")], number=2, shards=1)
    work_of(run, 2, 1000)
    run.publish(2)
    run.move(lambda pointer: {"snapshot": 1, "withdrawn": [2]})
    assert told(run, 1, None, "nothing to do").computed == 0
