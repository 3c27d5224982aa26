"""Behind a network that fails: every body that is taken is the listed one, the rest is reported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tenacity import wait_fixed

from pipeline.config import make_config
from pipeline.errors import ErrorBudgetError
from pipeline.planning.source import Source
from pipeline.segmentation.fetch import TRIES, Body, UnitFetch
from pipeline.segmentation.integrity import _buckets
from pipeline.segmentation.job import segment
from pipeline.storage.storage import Storage
from tests.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.killing import make_field
from tests.servers import S3Server, rclone_server

IMAGES = 120
KMS = "0123456789abcdef0123456789abcdef"  # looks like an MD5 and is none


@pytest.fixture(autouse=True)
def _forget() -> None:
    """What this process knows of a bucket's ETags."""
    _buckets.clear()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """rclone with numbered objects of about 20 KB under s3://data/images; read only."""
    folder = tmp_path_factory.mktemp("buckets")
    with rclone_server(folder) as server:
        (folder / "data/images").mkdir(parents=True)
        for number in range(IMAGES):
            (folder / f"data/images/{number:04d}.jpg").write_bytes(content(number))
        yield server


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(20_000 + number)


def is_image(method: str, path: str) -> bool:
    return method == "GET" and path.endswith((".jpg", ".png"))


def listed(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    server.point(monkeypatch)
    table = pa.concat_tables(Source("s3://data/images").tables())
    return table.sort_by("file_name")


def fetched(proxy: FaultProxy, manifest: pa.Table) -> list[Body]:
    return UnitFetch(manifest, {}).run()


def test_an_image_takes_one_get_and_no_head(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(bucket, Faults()) as proxy:
        manifest = listed(proxy.server, monkeypatch)
        proxy.requests.clear()
        bodies = fetched(proxy, manifest)
    assert [body.data for body in bodies] == [content(number) for number in range(IMAGES)]
    assert proxy.methods() == {"GET": IMAGES}
    assert set(proxy.requests.values()) == {1}


def test_through_every_fault_at_once_every_body_is_the_listed_one(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.SILENT_SECONDS", 1)
    faults = Faults(
        unavailable=0.3,
        reset=0.1,
        truncated=0.05,
        shortened=0.05,
        flipped=0.03,
        hang=0.01,
        latency=0.05,
    )
    with fault_proxy(bucket, faults, seed=3, applies=is_image) as proxy:
        manifest = listed(proxy.server, monkeypatch)
        bodies = fetched(proxy, manifest)
    assert [body.data for body in bodies] == [content(number) for number in range(IMAGES)]
    kinds = {"unavailable", "reset", "truncated", "shortened", "flipped", "hang"}
    assert set(proxy.injected) == kinds  # each fault did occur


@pytest.mark.parametrize(
    ("faults", "code", "message"),
    [
        (Faults(flipped=1), "unavailable", "body was damaged on its way"),
        (Faults(shortened=1), "unavailable", "bytes of 20"),
        (Faults(spoilt=1), "unavailable", "body was damaged where it is kept, the same"),
        (Faults(truncated=1), "unavailable", "tried 30 times"),
        (Faults(unavailable=1), "unavailable", "503"),
        (Faults(hang=1), "timeout", "tried"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_stays_broken_is_an_error_and_never_a_body(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch, faults: Faults, code: str, message: str
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.SILENT_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.segmentation.fetch.BACKOFF", wait_fixed(0.01))
    with fault_proxy(bucket, faults, applies=is_image) as proxy:
        manifest = listed(proxy.server, monkeypatch).slice(0, 2)
        bodies = fetched(proxy, manifest)
    assert [body.data for body in bodies] == [None] * 2
    assert {body.code for body in bodies} == {code}
    assert all(message in (body.message or "") for body in bodies), bodies[0]
    assert {count for key, count in proxy.requests.items() if is_image(*key)} == {TRIES[code]}


def test_one_image_that_is_always_damaged_alike_costs_no_other(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.segmentation.fetch.BACKOFF", wait_fixed(0.01))

    def one(method: str, path: str) -> bool:
        return is_image(method, path) and "0003" in path

    with fault_proxy(bucket, Faults(spoilt=1), applies=one) as proxy:
        manifest = listed(proxy.server, monkeypatch)
        bodies = fetched(proxy, manifest)
        assert fetched(proxy, manifest.slice(3, 1))[0].code == "unavailable"  # nor alone
    assert [number for number, body in enumerate(bodies) if body.code] == [3]
    assert all(b.data == content(n) for n, b in enumerate(bodies) if n != 3)


@pytest.mark.parametrize("images", [1, 8])
def test_objects_whose_etags_are_no_md5s_because_of_their_encryption_are_taken(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    headers = {"ETag": f'"{KMS}"', "x-amz-server-side-encryption": "aws:kms"}
    with fault_proxy(bucket, Faults(), applies=is_image, headers=headers) as proxy:
        manifest = with_etag(listed(proxy.server, monkeypatch), KMS)
        proxy.requests.clear()
        bodies = fetched(proxy, manifest.slice(0, images))
        assert proxy.methods() == {"GET": 2 * images, "HEAD": images}
        if images > 1:  # by now the bucket is known
            bodies += fetched(proxy, manifest.slice(images))
            assert proxy.methods() == {"GET": IMAGES + images, "HEAD": images}
    assert [body.data for body in bodies] == [content(number) for number in range(len(bodies))]


def test_a_store_that_makes_up_its_etags_is_found_out_by_several_objects(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.segmentation.fetch.BACKOFF", wait_fixed(0.01))
    with fault_proxy(bucket, Faults(), applies=is_image, headers={"ETag": f'"{KMS}"'}) as proxy:
        manifest = with_etag(listed(proxy.server, monkeypatch), KMS)
        assert fetched(proxy, manifest.slice(0, 1))[0].code == "unavailable"
        bodies = fetched(proxy, manifest)
    assert [body.data for body in bodies] == [content(number) for number in range(IMAGES)]


def with_etag(manifest: pa.Table, etag: str) -> pa.Table:
    place = manifest.schema.get_field_index("etag")
    return manifest.set_column(place, "etag", pa.array([etag] * manifest.num_rows))


def test_what_is_refused_is_not_asked_for_twice_and_what_is_replaced_not_for_long(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(bucket, Faults(forbidden=1), applies=is_image) as proxy:
        manifest = listed(proxy.server, monkeypatch).slice(0, 4)
        assert {body.code for body in fetched(proxy, manifest)} == {"forbidden"}
    assert {count for (_, path), count in proxy.requests.items() if path.endswith("jpg")} == {1}
    with fault_proxy(bucket, Faults()) as proxy:
        manifest = listed(proxy.server, monkeypatch).slice(0, 4)
        proxy.requests.clear()
        assert {body.code for body in fetched(proxy, with_etag(manifest, "0" * 32))} == {"changed"}
    assert proxy.methods() == {"GET": 4 * TRIES["changed"]}


@pytest.mark.usefixtures("rclone")
def test_writes_hold_a_network_that_loses_most_of_them(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rclone.folder is not None
    (rclone.folder / "bucket").mkdir()
    faults = Faults(unavailable=0.6, reset=0.1)
    with fault_proxy(rclone, faults, seed=8, applies=lambda *key: key[0] == "PUT") as proxy:
        proxy.server.point(monkeypatch)
        storage = Storage("s3://bucket/run")
        names = [f"{number}.bin" for number in range(12)]
        with ThreadPoolExecutor(len(names)) as threads:
            list(threads.map(lambda name: storage.write(name, name.encode()), names))
    assert max(proxy.requests.values()) > 6  # one of them would have been given up
    assert all((rclone.folder / "bucket/run" / name).read_text() == name for name in names)


@pytest.mark.usefixtures("ray_session")
def test_a_source_that_refuses_everything_ends_the_job_before_the_model_works(
    tmp_path: Path, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = make_field(tmp_path, images=1)
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"s3://data/images/a/{n:04d}.jpg\n" for n in range(600)))
    bucket.point(monkeypatch)
    with fault_proxy(bucket, Faults(forbidden=1), applies=is_image) as proxy:
        options = {"endpoint_url": proxy.server.url, "anon": "true"}
        settings = {**field.settings, "images_per_shard": 300, "source_options": options}
        with pytest.raises(ErrorBudgetError) as stopped:
            segment(make_config({**settings, "source": f"file://{listing}"}))
    sentence = str(stopped.value)
    assert "images failed (forbidden" in sentence
    assert "under s3://data/images/a" in sentence
    assert "AccessDenied" in sentence
    assert "stopped early" in sentence
    assert not (tmp_path / "computed.log").exists()


@pytest.mark.slow(seconds=60)
def test_a_job_between_two_bad_networks_writes_every_row_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the source and the run folder fail; the model's own map says what is right."""
    field = make_field(tmp_path, images=200, per_shard=50, seconds=0)
    with rclone_server(tmp_path / "buckets") as server:
        shutil.copytree(field.source, tmp_path / "buckets/data/images")
        faults = Faults(
            unavailable=0.2, reset=0.1, truncated=0.05, shortened=0.05, flipped=0.02, latency=0.02
        )
        with (
            fault_proxy(server, faults, seed=5, applies=is_image) as source,
            fault_proxy(
                server, Faults(unavailable=0.3), seed=6, applies=lambda *key: key[0] == "PUT"
            ) as sink,
        ):
            server.point(monkeypatch)
            summary = field.finish(
                *("s3://data/images", "--out", "s3://data/run", "--num-actors", "1"),
                *("--source-option", f"endpoint_url={source.server.url}"),
                *("--out-option", f"endpoint_url={sink.server.url}"),
            )
            assert sink.injected["unavailable"] > 0
            assert all(source.injected[kind] for kind in ("unavailable", "reset", "truncated"))
        assert (summary["ok"], summary["error"]) == (200, 0)
        shutil.copytree(tmp_path / "buckets/data/run", field.out)
    field.check()
