"""From no GPU to two and done, on Ray's own autoscaler with nodes that only pretend."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.night_model import png
from tests.ray_heads import ROOT, free_port, ray_head
from tests.run_rows import live_rows

pytestmark = [pytest.mark.slow(seconds=120), pytest.mark.timeout(600)]

COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)
# The GPUs are not real, so nobody can be asked for their name; all else is the product's own way.
DRIVER = """
import json, sys
import ray, pipeline.cluster.device
from pipeline.cluster.capacity import capacity
from pipeline.cluster.ray_session import join_ray
from pipeline.config import make_config
device = pipeline.cluster.device
device._probe = lambda dtype: device.Device("cuda", "pretended GPU", "fp32")
from pipeline.segmentation.job import segment
address, source, out, weights = sys.argv[1:]
join_ray(address)
before = capacity(address)
summary = segment(make_config({
    "source": source, "out": out, "weights": weights, "model": "tests.night_model:load_slow",
    "images_per_shard": 4, "address": address, "wait_for_gpus": 120,
}))
gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes()]
print(json.dumps({"before": before.known("GPU"), "grows": before.grows,
                  "gpus": sum(gpus), "computed": summary.computed, "device": summary.device}))
"""


def test_gpus_are_started_for_the_work_and_used(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number:03d}.png").write_bytes(png(number))
    weights = tmp_path / "weights.txt"
    weights.write_text("128")
    port = free_port()
    config = {
        "cluster_name": "pretended",
        "max_workers": 2,
        "provider": {
            "type": "external",
            "module": "tests.pretended_nodes.PretendedNodes",
            # Nodes that are processes of this machine share its address, by which a heartbeat is
            # looked for, and there is nothing to log in to.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "worker_liveness_check": False,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {
                    "CPU": 2,
                    "GPU": 1,
                    "memory": 12 * 1024**3,
                    "object_store_memory": 80_000_000,
                },
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5,
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in COMMANDS},
    }
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with ray_head([f"--autoscaling-config={path}", "--num-cpus=1"], environment, port) as head:
        started = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-c", DRIVER, head.gcs, str(photos)),
                *(str(tmp_path / "run"), str(weights)),
            ],
            cwd=ROOT,
            env=head.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        elapsed = time.monotonic() - started
        assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == {"before": 0, "grows": True, "gpus": 2, "computed": 60, "device": "cuda fp32"}
    assert live_rows(tmp_path / "run").num_rows == 60
    [call] = json.loads((tmp_path / "run/stats/0001.json").read_text())
    # Of the GPUs that came, as they came: also while the first images were fetched.
    assert 0 < call["gpu_seconds"] <= 2 * elapsed
    processes = weights.with_suffix(".log").read_text().split()
    assert len(processes) == 60
    assert len(set(processes)) == 2  # an actor on each of them
