"""What Prometheus is shown: names as documented, values as counted."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from pipeline.cluster.metrics import METRICS
from pipeline.cluster.progress_actor import start_progress_actor
from pipeline.error_budget import Failures

DOCS = Path(__file__).parents[3] / "docs" / "faults.md"
SECONDS = 60.0


def scraped() -> str:
    """What the metrics endpoints of this machine's Ray say now."""
    texts = []
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                texts.append(answer.read().decode())
    return "\n".join(texts)


def value(text: str, name: str, **tags: str) -> float | None:
    """The sample of a metric with these tags; Ray puts `ray_` before the name."""
    for line in text.splitlines():
        match = re.fullmatch(rf"ray_{name}(?:_total)?\{{(.*)\}} (\S+)", line)
        if match and all(f'{tag}="{own}"' in match[1] for tag, own in tags.items()):
            return float(match[2])
    return None


@pytest.mark.slow(seconds=20)
@pytest.mark.usefixtures("ray_session")
def test_a_job_s_counters_reach_prometheus_once_for_a_shard_that_was_written_twice() -> None:
    progress_actor = start_progress_actor(100, 1.0, "s3://bucket/metrics-test")
    for _ in range(2):
        report = progress_actor.written.remote(
            "1/0", images=10, failures={"empty": Failures(3, "", "")}, segments=7, size=1_000
        )
        ray.get(report)
    ray.get(progress_actor.look.remote())
    run = {"run": "s3://bucket/metrics-test"}
    text = ""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        text = scraped()
        if value(text, "panoptic_images_planned", **run) and value(
            text, "panoptic_segments_total", **run
        ):
            break
        time.sleep(1)
    assert value(text, "panoptic_images_planned", **run) == 100
    assert value(text, "panoptic_images_total", code="ok", **run) == 7
    assert value(text, "panoptic_images_total", code="empty", **run) == 3
    assert value(text, "panoptic_segments_total", **run) == 7
    assert value(text, "panoptic_bytes_total", direction="written", **run) == 1_000
    ray.kill(progress_actor)


def test_the_documented_table_is_the_list_of_metrics() -> None:
    rows = re.findall(
        r"^\| `(panoptic_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.M
    )
    documented = {name: (kind, tag.strip("`") or None, text) for name, kind, tag, text in rows}
    assert documented == METRICS
