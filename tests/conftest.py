"""One Ray session, one set of made scenes, one tiny model and the S3 servers for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray  # reads the environment when it is imported

from pipeline.cluster.ray_session import start_here
from pipeline.train.synthetic import SCENE_CATEGORIES, write_scenes
from tests.random_weights import write_tiny
from tests.servers import S3Server, moto_server, rclone_server

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="Write the frozen files of tests/golden anew."
    )


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on two CPUs, shared by every test that needs it."""
    start_here(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 scenes with truth and 3 broken files beside them; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 20, seed=7, broken=3)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every part that takes milliseconds an image."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tiny(path, categories=SCENE_CATEGORIES)
    return path


@pytest.fixture(scope="session")
def coco_val100() -> Path:
    """128 real COCO photos with panoptic truth of 100, where the data is at hand."""
    folder = SHARED_DATA / "coco_val100"
    if not folder.is_dir():
        pytest.skip(f"real COCO photos are not at hand ({folder} is absent)")
    return folder


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with correct conditional writes; the environment points to it."""
    with moto_server() as server:
        server.point(monkeypatch)
        yield server


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server that checks credentials, over plain files; the environment points to it."""
    with rclone_server(tmp_path / "buckets") as server:
        server.point(monkeypatch)
        yield server
