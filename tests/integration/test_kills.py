"""Whatever is killed, whenever: exactly one row an image, and little computed twice.

The model writes down each image that it computes (tests/counting_model.py), and rows are read with
pyarrow alone, so neither count believes the engine. The full ten kills take minutes, each with Ray
started anew: `make soak` runs them. The default suite kills once, on Ray as it runs already, with a
signal and at a moment drawn anew for each run.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.config import make_config
from pipeline.run.lease import EXPIRES_SECONDS
from pipeline.run.run import open_run
from pipeline.segmentation.job import segment
from tests.dying import DEATHS
from tests.killing import JOB_SECONDS, Field, end, make_field

PER_SHARD = 4  # on average: a unit holds the images of a range of hashes
# Units of which an actor may have computed something that only it holds: Ray Data sends it two at a
# time (`max_tasks_in_flight_per_actor` in graph.py) and the next one when an answer has arrived.
# What has arrived outlives the actor: its block belongs to the driver or the node's object store.
UNITS_OF_AN_ACTOR = 2
# What a death of the driver may lose at most on two CPUs: the units of two actors, four that
# writers may hold (0.25 CPU each of the CPU that is left), and as many that wait for them.
UNITS_AT_RISK = 2 * UNITS_OF_AN_ACTOR + 4 + 4


def kill_again_and_again(field: Field, kills: int, draw: random.Random, *more: str) -> None:
    """Kill the driver at random moments, start it again at once each time, then let it finish.

    The last kill comes so late that a job which began anew would compute more twice than it may.
    `more`: further words of the command.
    """
    assert field.images // PER_SHARD * 3 // 4 > kills * UNITS_AT_RISK
    written: dict[str, int] = {}
    first = draw.randint(0, 1)
    for kill in range(kills):
        number = (signal.SIGTERM, signal.SIGKILL)[(first + kill) % 2]
        done = len(set(field.computed()))
        job = field.start(*more)
        if kill == kills - 1:
            late = max(field.images * 3 // 4 - done, 1) + draw.randint(0, field.images // 8)
            field.wait_for(job, computed=len(field.computed()) + late)
        elif draw.random() < 0.3:  # while it starts, plans or has just begun
            field.wait_for(job, seconds=draw.uniform(0.5, 15))
        else:  # while it works
            share = (field.images - done) // (kills - kill + 1)
            field.wait_for(job, computed=len(field.computed()) + draw.randint(1, max(share, 1)))
        written |= field.shards()
        code = end(job, number)
        assert code in ((75, 0) if number == signal.SIGTERM else (-signal.SIGKILL, 0)), code
    field.finish(*more)
    assert field.shards().items() >= written.items()  # nothing written is written again
    field.check()
    field.planned_once()
    assert field.repeated_units() <= kills * UNITS_AT_RISK


@pytest.mark.usefixtures("ray_session")
def test_a_driver_that_is_killed_leaves_one_row_an_image(tmp_path: Path) -> None:
    address = str(ray.get_runtime_context().gcs_address)
    field = make_field(tmp_path, images=80, per_shard=PER_SHARD, seconds=0.02)
    kill_again_and_again(field, 1, random.Random(), "--address", address)


@pytest.mark.usefixtures("ray_session")
def test_a_driver_that_is_stopped_says_what_is_written_and_what_was_lost(tmp_path: Path) -> None:
    address = str(ray.get_runtime_context().gcs_address)
    field = make_field(tmp_path, images=40, per_shard=PER_SHARD, seconds=0.2)
    job = field.start("--address", address)
    assert field.wait_for(job, computed=14)
    # As Ctrl-C does; a process in the background ignores that.
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 75
    found = re.search(r"(\d+) of 10 shards are written, (\d+) images in work were lost", said)
    assert found, said
    # What was being written may have got there while the program ended.
    assert 0 <= len(field.shards()) - int(found[1]) <= 4
    sizes = sorted(open_run(str(field.out)).generation(1).rows)  # ranges of the hash: not all alike
    assert 0 < int(found[2]) <= sum(sizes[int(found[1]) :])  # no image of a written shard is lost


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_driver_that_is_killed_ten_times_leaves_one_row_an_image(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=800, per_shard=PER_SHARD, seconds=0.02)
    kill_again_and_again(field, 10, random.Random())


@pytest.mark.slow(seconds=80)
def test_deaths_in_a_write_and_between_the_last_steps_cost_only_those_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = make_field(tmp_path, images=60, per_shard=PER_SHARD, seconds=0)
    deaths = tmp_path / "3"
    deaths.mkdir()
    monkeypatch.setenv(DEATHS, str(deaths))

    # Three write workers die in their write; then the driver, before the snapshot.
    job = field.start(program=("tests.dying", "write_snapshot", "3"))
    assert wait(job) == -signal.SIGKILL
    assert len(list(deaths.iterdir())) == 3
    assert not (field.out / "snapshots").exists()
    written = field.shards()
    computed = field.computed()
    assert len(set(computed)) == 60

    job = field.start(program=("tests.dying", "move", "0"))
    assert wait(job) == -signal.SIGKILL
    assert (field.out / "snapshots/0001.parquet").exists()
    assert not (field.out / "latest.json").exists()

    summary = field.finish()
    assert summary["computed"] == 0
    assert (field.out / "_SUCCESS").exists()
    assert field.shards() == written
    assert field.computed() == computed
    field.check()


@pytest.mark.slow(seconds=100)
def test_of_two_jobs_on_a_folder_one_works_and_its_successor_goes_on_at_once(
    tmp_path: Path,
) -> None:
    # Long enough that the first is still at work when the second has started on a busy machine.
    field = make_field(tmp_path, images=160, per_shard=PER_SHARD, seconds=0.5)
    first = field.start()
    assert field.wait_for(first, computed=8)
    second = field.start()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 5
    assert f"is being written by process {first.pid} on {socket.gethostname()}" in said
    end(first)
    begin = time.monotonic()
    third = field.start()
    assert field.wait_for(third, computed=len(field.computed()) + 1)
    assert time.monotonic() - begin < EXPIRES_SECONDS
    assert wait(third) == 0
    field.check()


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow(seconds=60))])
@pytest.mark.usefixtures("ray_session")
def test_model_actors_that_are_killed_lose_only_their_units(tmp_path: Path, kills: int) -> None:
    field = make_field(tmp_path, images=80, per_shard=PER_SHARD, seconds=0.05)
    killed: list[int] = []

    def kill() -> None:
        log = tmp_path / "computed.log"
        while len(killed) < kills:
            time.sleep(random.uniform(0.2, 1))
            lines = log.read_text().splitlines() if log.exists() else []
            pids = {int(line.split()[1]) for line in lines} - set(killed)
            # Actors that have computed something and weren't killed yet.
            for pid in list(pids)[: kills - len(killed)]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = segment(make_config(field.settings))
    assert len(killed) == kills
    assert (summary.ok, summary.error) == (80, 0)
    field.check()
    field.planned_once()
    assert field.repeated_units() <= kills * UNITS_OF_AN_ACTOR


@pytest.mark.slow(seconds=120)  # starts nodes one by one; Ray gives each 30 s
def test_a_node_that_is_lost_and_another_that_comes_change_nothing(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=120, per_shard=PER_SHARD, seconds=0.05)
    cluster = head_without_cpus()
    try:
        node = cluster.add_node(num_cpus=2, wait=True)
        job = field.start("--address", str(cluster.address))
        assert field.wait_for(job, computed=20), job.communicate()
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2, wait=True)
        out, said = job.communicate(timeout=JOB_SECONDS)
        assert job.returncode == 0, said
    finally:
        cluster.shutdown()
    assert json.loads(out)["ok"] == 120  # whatever Ray has to say of its nodes goes to stderr
    field.check()
    field.planned_once()
    assert field.repeated_units() <= UNITS_AT_RISK


def head_without_cpus() -> Cluster:
    """A cluster of a head that takes no work; a busy machine may need more than Ray's 30 s."""
    arguments = {"num_cpus": 0, "include_dashboard": False}
    for _ in range(2):
        with suppress(Exception):
            return Cluster(initialize_head=True, connect=False, head_node_args=arguments)
    return Cluster(initialize_head=True, connect=False, head_node_args=arguments)


def wait(job: subprocess.Popen[str]) -> int:
    job.communicate(timeout=JOB_SECONDS)
    return job.returncode
