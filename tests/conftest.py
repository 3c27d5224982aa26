"""One Ray session, one set of made scenes, one tiny model and the S3 servers for all tests.

`make test` runs two workers. One takes every test that uses Ray; the tests of any other file stay
together, for the sake of what their fixtures make once.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # or the other worker of pytest goes first

import ray  # reads the environment when it is imported
import torch

from pipeline.cluster.ray_session import start_here
from pipeline.config import make_config
from pipeline.segmentation.job import segment
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES, write_scenes
from tests.random_weights import made_images, write_official_r50, write_tiny
from tests.servers import S3Server, empty, moto_server, rclone_server

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RAY_TESTS = pytest.StashKey[Path]()  # the file that lists them, one a line
STARTERS = {"make_field", "ray_head"}  # helpers whose callers start Ray in another process

torch.set_num_threads(1)  # the tests' models are small, and two workers share the machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="write the frozen files of tests/golden anew"
    )
    parser.addoption(
        "--slow-sample",
        type=float,
        metavar="SECONDS",
        help="with `-m slow`: only some of them, which take so long together",
    )
    parser.addoption("--seed", default="", help="which ones: a word, say a commit's hash")


class RayInOneWorker(LoadScopeScheduling):
    """Hands out whole files, and every test that uses Ray, of whichever file, as one of them.

    `--dist loadgroup` would do, but pytest-xdist 3.8 renames tests in a way unknown to pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid in self._of_ray else nodeid.split("::")[0]

    @cached_property
    def _of_ray(self) -> frozenset[str]:
        return frozenset(self.config.stash[RAY_TESTS].read_text().splitlines())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker where to write which tests use Ray: this process collects none."""
    stash = node.config.stash
    if RAY_TESTS not in stash:
        handle, name = tempfile.mkstemp(prefix="ray-tests-")
        os.close(handle)
        stash[RAY_TESTS] = Path(name)
    node.workerinput["ray_tests"] = str(stash[RAY_TESTS])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RayInOneWorker:
    config.option.loadscopereorder = False  # Ray's tests first, however many
    return RayInOneWorker(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    if RAY_TESTS in config.stash:
        config.stash[RAY_TESTS].unlink()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use Ray, and put them first: they take longest."""
    if config.option.slow_sample is not None:
        chosen = slow_sample(items, config.option.slow_sample, config.option.seed)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    for item in items:
        if _uses_ray(item):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if workerinput := getattr(config, "workerinput", None):
        of_ray = [item.nodeid for item in items if item.get_closest_marker("ray")]
        Path(workerinput["ray_tests"]).write_text("\n".join(of_ray))


def slow_sample(items: list[pytest.Item], seconds: float, seed: str) -> list[pytest.Item]:
    """Slow tests in an order drawn by `seed`, each that fits in what is left of the time.

    A mark `slow(seconds=...)` says how long a test takes; one without is never drawn.
    """
    known = {
        item: float(mark.kwargs["seconds"])
        for item in items
        if (mark := item.get_closest_marker("slow")) and "seconds" in mark.kwargs
    }
    order = sorted(known, key=lambda item: item.nodeid)
    random.Random(seed).shuffle(order)
    chosen = []
    for item in order:
        if known[item] <= seconds:
            seconds -= known[item]
            chosen.append(item)
    return chosen


def _uses_ray(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    return "ray_session" in item.fixturenames or bool(
        STARTERS & set(item.function.__code__.co_names)
    )


@pytest.fixture(autouse=True)
def _ray_in_its_group(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of another group that starts Ray here fails: it is to use `ray_session`."""
    started = ray.is_initialized()
    yield
    assert started or not ray.is_initialized() or request.node.get_closest_marker("ray")


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
def official_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights laid out as the published R50 file; read only."""
    path = tmp_path_factory.mktemp("official") / "r50.pth"
    write_official_r50(path, photos=made_images(2, 0, 240))
    return path


@pytest.fixture(scope="session")
def segmented(
    scenes: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Path:
    """A finished run of the scenes in three shards; read only, so copy it to change it.

    Computed on a CPU in fp32 wherever there is a GPU: what is computed again is the same.
    """
    out = tmp_path_factory.mktemp("segmented") / "run"
    values = {"source": str(scenes / "images"), "out": str(out), "weights": str(tiny_weights)}
    values |= {"device": "cpu", "dtype": "fp32"}
    summary = segment(make_config({**values, "images_per_shard": 8, "max_error_rate": 0.2}))
    assert (summary.images, summary.ok, summary.error) == (23, 20, 3)
    return out


@pytest.fixture(scope="session")
def coco_val100() -> Path:
    """128 real COCO photos with panoptic truth of 100, where the data is at hand."""
    folder = SHARED_DATA / "coco_val100"
    if not folder.is_dir():
        pytest.skip(f"real COCO photos are not at hand ({folder} is absent)")
    return folder


@pytest.fixture(scope="session")
def shared_moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture
def moto(shared_moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An empty S3 server with correct conditional writes; the environment points to it."""
    empty(shared_moto)
    shared_moto.point(monkeypatch)
    return shared_moto


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server that checks credentials, over plain files; the environment points to it."""
    with rclone_server(tmp_path / "buckets") as server:
        server.point(monkeypatch)
        yield server


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder in which nothing is yet, on a local disk and in a bucket."""
    if request.param == "local":
        return Storage(tmp_path / "folder")
    server: S3Server = request.getfixturevalue("moto")
    server.client().create_bucket(Bucket="bucket")
    return Storage("s3://bucket/folder")
