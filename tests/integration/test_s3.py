"""The main job against real S3 servers: bucket in, bucket out, credentials nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from tests.servers import S3Server

pytestmark = pytest.mark.timeout(600)


def panoptic(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bucket_to_bucket_with_credentials_from_the_environment(
    rclone: S3Server, scenes: Path, tiny_weights: Path
) -> None:
    assert rclone.folder is not None
    (rclone.folder / "data").mkdir()
    client = boto3.client("s3")
    for path in (scenes / "images").iterdir():
        client.upload_file(str(path), "data", f"images/{path.name}")
    for path in scenes.glob("panoptic*/*.png"):
        client.upload_file(str(path), "data", f"truth/panoptic/{path.name}")
    client.upload_file(str(scenes / "panoptic.json"), "data", "truth/panoptic.json")
    client.upload_file(str(tiny_weights), "data", "weights/tiny.safetensors")

    segmented = panoptic(
        *("segment", "s3://data/images", "--out", "s3://data/runs/first", "--json"),
        *("--weights", "s3://data/weights/tiny.safetensors"),
        *("--max-error-rate", "0.2", "--images-per-shard", "8"),
    )
    assert segmented.returncode == 0, segmented.stderr
    summary = json.loads(segmented.stdout)
    assert (summary["images"], summary["ok"], summary["error"]) == (23, 20, 3)

    evaluated = panoptic(
        *("evaluate", "s3://data/runs/first", "--truth", "s3://data/truth/panoptic.json", "--json")
    )
    assert evaluated.returncode == 0, evaluated.stderr
    counts = json.loads(evaluated.stdout)["images"]
    assert (counts["scored"], counts["without_truth"]) == (20, 3)

    again = panoptic(
        *("segment", "s3://data/images", "--out", "s3://data/runs/first", "--json"),
        *("--weights", "s3://data/weights/tiny.safetensors", "--max-error-rate", "0.2"),
    )
    assert json.loads(again.stdout)["computed"] == 0

    outputs = [segmented, evaluated, again]
    said = "".join(output.stdout + output.stderr for output in outputs)
    stored = b"".join(f.read_bytes() for f in rclone.folder.rglob("*") if f.is_file())
    assert rclone.secret_key not in said
    assert rclone.secret_key.encode() not in stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "check the endpoint"),
    ],
)
def test_a_store_that_refuses_is_one_sentence(
    rclone: S3Server,
    tiny_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    message: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    result = panoptic(
        *("segment", "s3://data/images", "--out", "s3://data/out", "--weights", str(tiny_weights))
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert rclone.secret_key not in result.stderr
