"""The main job against real S3 servers: bucket in, bucket out, credentials nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from detr.categories import COCO_PANOPTIC
from pipeline.run.run import open_run
from tests.conftest import SHARED_DATA
from tests.odd_files import encode, picture
from tests.servers import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def panoptic(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow(seconds=60))])
def test_bucket_to_bucket_with_credentials_from_the_environment(
    rclone: S3Server, scenes: Path, tiny_weights: Path, whole: bool
) -> None:
    """The whole of it: segmented, evaluated, and segmented again, which computes nothing."""
    assert rclone.folder is not None
    (rclone.folder / "data").mkdir()
    client = rclone.client()
    for path in (scenes / "images").iterdir():
        client.upload_file(str(path), "data", f"images/{path.name}")
    for path in scenes.glob("panoptic*/*.png"):
        client.upload_file(str(path), "data", f"truth/panoptic/{path.name}")
    client.upload_file(str(scenes / "panoptic.json"), "data", "truth/panoptic.json")
    client.upload_file(str(tiny_weights), "data", "weights/tiny.safetensors")

    segmented = panoptic(
        *("segment", "s3://data/images", "--out", "s3://data/runs/first", "--json"),
        *("--weights", "s3://data/weights/tiny.safetensors"),
        *("--max-error-rate", "0.2", "--images-per-shard", "8", "--num-actors", "1"),
    )
    assert segmented.returncode == 0, segmented.stderr
    summary = json.loads(segmented.stdout)
    assert (summary["images"], summary["ok"], summary["error"]) == (23, 20, 3)

    outputs = [segmented]
    if whole:
        evaluated = panoptic(
            *("evaluate", "s3://data/runs/first", "--truth", "s3://data/truth/panoptic.json"),
            "--json",
        )
        assert evaluated.returncode == 0, evaluated.stderr
        counts = json.loads(evaluated.stdout)["images"]
        assert (counts["scored"], counts["without_truth"]) == (20, 3)

        again = panoptic(
            *("segment", "s3://data/images", "--out", "s3://data/runs/first", "--json"),
            *("--weights", "s3://data/weights/tiny.safetensors", "--max-error-rate", "0.2"),
        )
        assert json.loads(again.stdout)["computed"] == 0
        outputs += [evaluated, again]

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


@pytest.mark.slow(seconds=60)
def test_the_official_layout_at_full_size_on_photos_in_a_bucket(
    rclone: S3Server, official_weights: Path
) -> None:
    """R50 at 800 x 1066 with random weights, on COCO photos or, where there are none, made ones."""
    assert rclone.folder is not None
    (rclone.folder / "data").mkdir()
    shared = SHARED_DATA / "coco_val100" / "images"
    if shared.is_dir():
        photos = [path.read_bytes() for path in sorted(shared.glob("*.jpg"))[:3]]
    else:
        photos = [encode(Image.fromarray(picture(480, 640, seed)), "JPEG") for seed in range(3)]
    for number, photo in enumerate(photos):
        rclone.client().put_object(Bucket="data", Key=f"images/{number}.jpg", Body=photo)

    result = panoptic(
        *("segment", "s3://data/images", "--out", "s3://data/run", "--json"),
        *("--weights", str(official_weights), "--num-actors", "1"),
    )

    assert result.returncode == 0, result.stderr
    run = open_run("s3://data/run")
    rows = [
        row for shard in run.snapshot().shards for row in run.read_shard(shard.path).to_pylist()
    ]
    assert [row["status"] for row in rows] == ["ok"] * 3
    coco = {category.id for category in COCO_PANOPTIC}
    assert {kind for row in rows for kind in row["category_id"]} <= coco
    for row in rows:
        expected = Image.open(BytesIO(photos[int(row["file_name"][0])])).size
        assert (row["width"], row["height"]) == expected
