"""Nights on a bucket, and what happens when one goes wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.cli import run as panoptic
from pipeline.nightly.verify import verify
from pipeline.run.lease import lease
from pipeline.run.run import Run, open_run
from pipeline.storage.storage import Storage
from tests.factories import write_coco
from tests.night_model import CATEGORIES, png, truth
from tests.servers import S3Server

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]

NAMES = [f"photos/{number:03d}.png" for number in range(20)]
TOKEN = "pl4ntedTOKEN"  # a word of a report command
SCORED = range(10)  # numbers of the images that have ground truth


class Bucket:
    """A bucket of photos and a folder of nights, with the settings of a night.

    Open to anybody: Ray's workers were started before the server and know none of its keys.
    """

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.client = server.client()
        self.client.create_bucket(Bucket="data")
        places = ["arn:aws:s3:::data", "arn:aws:s3:::data/*"]
        anybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": places}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [anybody]})
        self.client.put_bucket_policy(Bucket="data", Policy=policy)
        self.options = {"endpoint_url": server.url, "anon": "true", "region": "us-east-1"}
        self.folder = folder
        self.truth = write_coco(
            folder, "gt", {NAMES[n]: truth(n) for n in SCORED}, categories=CATEGORIES
        )
        self.weights = folder / "weights.txt"
        self.weights.write_text("128")
        self.toml = folder / "nightly.toml"
        self.write_toml()

    def write_toml(self, **changes: Any) -> None:
        settings = {
            "source": "s3://data/photos",
            "out": "s3://data/nights",
            "weights": str(self.weights),
            "model": "tests.night_model:load",
            "truth": str(self.truth),
            "images_per_shard": 8,
            "num_actors": "1",
            "max_error_rate": 0.2,
            "price_per_gpu_hour": 3600.0,
            **changes,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        for table in ("source_options", "out_options"):
            lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in self.options.items())]
        self.toml.write_text("\n".join(lines))

    def put(self, name: str, body: bytes, **settings: str) -> None:
        self.client.put_object(Bucket="data", Key=name, Body=body, **settings)

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket="data", Key=name)["Body"].read()

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket="data", Key=name)

    def run(self) -> Run:
        return open_run("s3://data/nights", self.options)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The live rows by name, each there once."""
        run = self.run()
        rows = [row for s in run.snapshot().shards for row in run.read_shard(s.path).to_pylist()]
        assert max(Counter(row["file_name"] for row in rows).values()) == 1
        return {row["file_name"]: row for row in rows}

    def state(self) -> dict[str, str | None]:
        """Every object that a reader or the next night can see, by its ETag."""
        found = Storage("s3://data/nights", self.options).list()
        return {
            entry.path: entry.etag
            for entry in found
            if not entry.path.startswith("nights/") and "lease." not in entry.path
        }


@pytest.fixture
def bucket(moto: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(moto, tmp_path)


@pytest.fixture
def night(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Call `panoptic nightly`; returns its exit code and summary ({} where there is none)."""

    def call(*flags: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = panoptic(["nightly", str(bucket.toml), "--json", *flags])
        said = capsys.readouterr()
        if not said.out:
            assert len([line for line in said.err.splitlines() if "panoptic: " in line]) == 1
            return code, {"sentence": said.err.strip().splitlines()[-1]}
        return code, json.loads(said.out)

    return call


Night = Callable[..., tuple[int, dict[str, Any]]]


def put_photos(bucket: Bucket) -> None:
    """20 photos, one of them broken for good."""
    for number, name in enumerate(NAMES):
        bucket.put(name, png(number))
    bucket.put(NAMES[19], b"\x89PNG\r\n\x1a\nnot much")


def first_night(bucket: Bucket, night: Night) -> dict[str, Any]:
    put_photos(bucket)
    code, summary = night()
    assert code == 0, summary
    return summary


def test_three_nights(bucket: Bucket, night: Night) -> None:
    # Night 1 does all; a report command sees it first, and may stop it.
    told = bucket.folder / "told"
    bucket.write_toml(report=["sh", "-c", f"echo {{run}} {{snapshot}} > {told}; exit 7", TOKEN])
    put_photos(bucket)
    code, stopped = night()
    assert (code, stopped["outcome"], stopped["computed"]) == (3, "stopped", 20)
    assert stopped["reasons"][0] == "the report command ended with 7: sh"
    assert told.read_text().split() == [f"s3://data/nights/{stopped['run']}", "1"]
    assert "latest.json" not in bucket.state()
    written = Storage("s3://data/nights", bucket.options)
    assert not [own.path for own in written.list() if TOKEN.encode() in written.read(own.path)]
    bucket.write_toml(report=["true"])
    began = time.process_time()
    code, first = night()
    spent = time.process_time() - began
    assert code == 0
    # The stopped night has counted the images and their hours; nothing is computed for this one.
    assert (first["outcome"], first["computed"], first["why"]) == ("published", 0, {})
    assert (first["images"], first["ok"], first["pq"], first["scored"]) == (20, 19, 1.0, 10)
    assert sum(first["errors"].values()) == 1
    assert first["cost"] == pytest.approx(3600 * first["gpu_hours"], rel=0.01)

    # Night 2 finds nothing to do and leaves every object alone.
    before, began = bucket.state(), time.process_time()
    code, second = night()
    assert (code, second["outcome"], second["computed"]) == (0, "nothing to do", 0)
    assert time.process_time() - began < spent
    assert bucket.state() == before

    # An image arrives that can't be had yet: a row that the next nights try again.
    bucket.put("photos/020.png", png(20), StorageClass="GLACIER")
    code, between = night()
    assert (code, between["computed"], between["ok"]) == (0, 1, 19)

    # Night 3: 3 added, 2 changed, 1 removed, the archived one restored: 6 images in one shard.
    for number in (30, 31, 32):
        bucket.put(f"photos/{number:03d}.png", png(number))
    for number in (14, 15):
        bucket.put(NAMES[number], png(number + 100))
    bucket.delete(NAMES[16])
    bucket.put("photos/020.png", png(20))
    code, third = night()
    assert (code, third["outcome"], third["computed"]) == (0, "published", 6)
    assert third["why"] == {"new": 3, "changed": 2, "retry": 1, "removed": 1}
    run = bucket.run()
    latest = run.latest()
    assert latest is not None
    fresh = [s for s in run.snapshot().shards if s.path.startswith(f"segments/{latest:04d}/shard")]
    assert [shard.rows for shard in fresh] == [6]
    names = {entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="data")["Contents"]}
    rows = bucket.rows()
    assert {f"photos/{name}" for name in rows} == {n for n in names if n.startswith("photos/")}
    assert [name for name, row in rows.items() if row["status"] == "error"] == ["019.png"]
    assert rows["020.png"]["attempts"] == 2

    # Pruned to what is live and the baseline, and killed right before its last write: it goes on.
    done = f"nights/{third['run']}/_SUCCESS"
    bucket.delete(done)
    prune = ["prune", "s3://data/nights", "--keep", "1", "--delete", *out_options(bucket)]
    assert panoptic(prune) == 0
    assert run.snapshot_numbers() == [1, latest]
    code, quiet = night()
    assert (code, quiet["outcome"]) == (0, "nothing to do")
    assert bucket.rows() == rows
    assert bucket.get(done) == b""


@pytest.mark.slow(seconds=30)
def test_a_night_over_its_error_budget_goes_on_once_the_source_is_mended(
    bucket: Bucket, night: Night
) -> None:
    for number, name in enumerate(NAMES[:6]):
        bucket.put(name, png(number), StorageClass="GLACIER" if number < 3 else "STANDARD")
    bucket.put(NAMES[6], b"no picture")
    code, said = night()
    assert code == 4
    assert "4 of 7 images failed (archived 3, not_an_image 1)" in said["sentence"]
    assert "or set max_error_rate = 0.572 in its settings" in said["sentence"]
    [path] = [
        e.path
        for e in Storage("s3://data/nights/nights", bucket.options).list()
        if ".json" in e.path
    ]
    told = json.loads(bucket.get(f"nights/nights/{path}"))
    assert (told["outcome"], told["published"], told["computed"]) == ("stopped", False, 7)
    assert told["reasons"][0] in said["sentence"]
    assert "latest.json" not in bucket.state()

    for number, name in enumerate(NAMES[:7]):
        bucket.put(name, png(number))
    code, mended = night()
    assert (code, mended["outcome"], mended["ok"]) == (0, "published", 7)
    assert mended["why"] == {"changed": 1, "retry": 3}  # the stopped night has counted the new ones
    assert len(bucket.rows()) == 7


@pytest.mark.slow(seconds=120)
def test_other_weights(bucket: Bucket, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    good = first_night(bucket, night)["run"]

    # Worse weights stop after the images with ground truth, and no reader moves.
    before = bucket.state()
    bucket.weights.write_text("90")
    told = bucket.folder / "told"
    bucket.write_toml(report=["sh", "-c", f"echo {{run}} > {told}"])
    code, fourth = night()
    assert told.read_text() == f"s3://data/nights/{fourth['run']}\n"  # the report sees it too
    assert (code, fourth["outcome"], fourth["published"]) == (3, "stopped", False)
    assert "PQ dropped by" in fourth["reasons"][0]
    assert (fourth["computed"], fourth["why"]) == (10, {"other weights": 10})
    assert fourth["run"] != good
    after = bucket.state()
    assert {path: after.get(path) for path in before} == before
    assert bucket.run().storage.url.endswith(good)
    assert night()[0] == 3  # and again, without computing anything
    assert {k: v for k, v in bucket.state().items() if "segments" in k} == {
        k: v for k, v in after.items() if "segments" in k
    }

    # Equally good weights pass, but compute everything only when that is meant.
    bucket.weights.write_text("129")
    code, stopped = night("--max-recompute", "0.4")
    assert code == 2
    assert "they passed on the images with ground truth, but 10 images" in stopped["sentence"]
    code, fifth = night("--allow-full")
    assert (code, fifth["outcome"], fifth["pq_change"]) == (0, "published", 0.0)
    assert bucket.run().storage.url.endswith(fifth["run"])
    assert len(bucket.rows()) == 20

    # Rolled back, readers are on the old weights again, and no night undoes it.
    rollback = ["rollback", "s3://data/nights", *out_options(bucket)]
    assert panoptic(rollback) == 0
    assert panoptic([*rollback, "--to", fifth["run"]]) == 0  # forward again, and back by name
    assert bucket.run().storage.url.endswith(fifth["run"])
    assert panoptic([*rollback, "--to", good]) == 0
    assert bucket.run().storage.url.endswith(good)
    assert bucket.run().latest() == 1
    code, refused = night()
    assert code == 2
    assert "were rolled back" in refused["sentence"]
    bucket.weights.write_text("128")
    assert night()[1]["outcome"] == "nothing to do"

    # Pruned to the last publication, the run of the rolled back weights is gone, readers stay.
    rows = bucket.rows()
    capsys.readouterr()
    prune = ["prune", "s3://data/nights", "--keep", "1", *out_options(bucket)]
    assert panoptic(prune) == 0
    assert "would be removed" in capsys.readouterr().out
    assert any(path.startswith(fifth["run"]) for path in bucket.state())
    assert panoptic([*prune, "--delete"]) == 0
    assert not any(path.startswith(fifth["run"]) for path in bucket.state())
    assert bucket.rows() == rows
    assert night()[1]["outcome"] == "nothing to do"


def out_options(bucket: Bucket) -> list[str]:
    return [word for k, v in bucket.options.items() for word in ("--out-option", f"{k}={v}")]


def test_brakes_and_gate_stop_a_night_that_looks_wrong(bucket: Bucket, night: Night) -> None:
    first_night(bucket, night)
    live, before = bucket.run().latest(), bucket.state()

    # A listing that lost half, with the same weights and with others.
    kept = {name: bucket.get(name) for name in NAMES[:11]}
    for name in kept:
        bucket.delete(name)
    code, stopped = night()
    assert code == 2
    assert "11 of 20 images are gone" in stopped["sentence"]
    assert "--max-removed-rate 0.1" in stopped["sentence"]
    bucket.weights.write_text("129")
    code, stopped = night()
    assert code == 2
    assert "lists 9 images where 20 are live" in stopped["sentence"]
    assert bucket.state() == before
    bucket.weights.write_text("128")
    for name, body in kept.items():
        bucket.put(name, body)

    # More to compute than is meant; and, where it is, more failures than can be chance.
    for number in range(40, 55):
        bucket.put(f"photos/{number:03d}.png", b"no picture")
    code, stopped = night()
    assert code == 2
    assert "15 images to compute (15 new) beside 20 that are there" in stopped["sentence"]
    bucket.write_toml(max_error_rate=0.5, max_recompute=1.0)
    code, gated = night()
    assert (code, gated["outcome"], gated["computed"]) == (3, "stopped", 15)
    assert "15 of 15 images failed" in gated["reasons"][0]

    # One of them leaves, and the others are copied: they are still new to the readers.
    bucket.delete("photos/040.png")
    code, gated = night()
    assert (code, gated["outcome"]) == (3, "stopped")
    assert "14 of 14 images failed" in gated["reasons"][0]
    assert bucket.run().latest() == live
    assert len(bucket.rows()) == 20


def test_a_store_that_is_down_is_a_sentence_and_75(bucket: Bucket, night: Night) -> None:
    bucket.options["endpoint_url"] = "http://127.0.0.1:9"
    bucket.write_toml()
    code, said = night()
    assert code == 75
    assert "127.0.0.1:9" in said["sentence"] or "unavailable" in said["sentence"]


@pytest.mark.slow(seconds=30)
def test_a_source_that_is_down_leaves_what_was_published(bucket: Bucket, night: Night) -> None:
    bucket.put(NAMES[0], png(0))
    assert night()[0] == 0
    before = bucket.state()
    settings, source, out = bucket.toml.read_text().partition("[source_options]")
    down = out.replace(bucket.options["endpoint_url"], "http://127.0.0.1:9", 1)
    bucket.toml.write_text(settings + source + down)
    code, said = night()
    assert code == 75
    assert "127.0.0.1:9" in said["sentence"] or "unavailable" in said["sentence"]
    assert bucket.state() == before


@pytest.mark.slow(seconds=30)
def test_truth_in_the_source_s_bucket_is_read_with_its_options(
    bucket: Bucket, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_photos(bucket)
    for path in bucket.folder.glob("gt*/*.png"):
        bucket.put(f"truth/gt/{path.name}", path.read_bytes())
    bucket.put("truth/gt.json", bucket.truth.read_bytes())
    bucket.write_toml(truth="s3://data/truth/gt.json")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # only the options say where
    code, first = night()
    assert (code, first["outcome"]) == (0, "published")
    bucket.weights.write_text("129")
    code, stopped = night("--max-recompute", "0.4")
    assert code == 2
    assert "they passed on the images with ground truth" in stopped["sentence"]


def test_a_second_start_while_a_night_is_at_work_is_a_sentence_and_5(
    bucket: Bucket, night: Night
) -> None:
    bucket.put(NAMES[0], png(0))
    with lease(Storage("s3://data/nights", bucket.options)):
        code, said = night()
    assert code == 5
    assert f"is being written by process {os.getpid()}" in said["sentence"]
    assert bucket.state() == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shards": "0:1"}, "'shards' has no meaning in a night"),
        ({"max_pq_dorp": 1}, "unknown setting 'max_pq_dorp'"),
        ({"max_pq_drop": -1}, "--max-pq-drop -1"),
        ({"truth": "/nowhere/gt.json"}, "truth /nowhere/gt.json does not exist"),
    ],
)
def test_a_wrong_setting_is_a_sentence(
    bucket: Bucket, night: Night, change: dict[str, Any], words: str
) -> None:
    bucket.put(NAMES[0], png(0))
    bucket.write_toml(**change)
    code, said = night()
    assert code == 2
    assert words in said["sentence"]


@pytest.mark.slow(seconds=40)
def test_what_the_gate_stopped_no_other_verb_publishes(
    bucket: Bucket, night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(NAMES[:4]):
        bucket.put(name, png(number))
    code, first = night()
    assert code == 0
    bucket.put(NAMES[4], png(4))
    bucket.put(NAMES[5], png(5), StorageClass="GLACIER")
    bucket.write_toml(report=["false"])
    code, stopped = night()
    assert (code, stopped["snapshot"]) == (3, 2)

    words = ["retry", "s3://data/nights", "--code", "timeout", *out_options(bucket)]
    assert panoptic(words) == 0  # computes nothing
    assert "the next `panoptic nightly` with its settings judges" in capsys.readouterr().err
    bucket.put(NAMES[5], png(5))
    assert panoptic(["retry", f"s3://data/nights/{first['run']}", *out_options(bucket)]) == 0
    assert bucket.run().latest() == first["snapshot"] == 1
    config = bucket.run().info.config
    words = ["segment", "s3://data/photos", "--out", "s3://data/nights", *out_options(bucket)]
    words += ["--weights", str(bucket.weights), "--model", "tests.night_model:load"]
    words += [f"--source-option={k}={v}" for k, v in bucket.options.items()]
    assert panoptic([*words, "--max-error-rate", str(config["max_error_rate"])]) == 0
    assert bucket.run().latest() == 1

    bucket.write_toml(report=["true"])
    code, third = night()  # though its listing has not changed
    assert (code, third["outcome"], third["snapshot"]) == (0, "published", 3)
    assert set(bucket.rows()) == {name.removeprefix("photos/") for name in NAMES[:6]}


@pytest.mark.slow(seconds=400)
@pytest.mark.timeout(2400)
def test_a_night_and_a_retry_at_once_leave_every_image_once(bucket: Bucket) -> None:
    """20 rounds, each with an image that is new, one that can be had by now, and one that can't."""
    rounds, draw = 20, random.Random(0)
    for number in range(4):
        bucket.put(NAMES[number], png(number))
    bucket.put("photos/late-0.png", png(0), StorageClass="GLACIER")
    bucket.write_toml(max_error_rate=1.0, max_recompute=1e9, retries=99)
    night = ["nightly", str(bucket.toml), "--address", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-m", "tests.two_at_once"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as both:
        asked, answers = both.stdin, both.stdout
        assert asked is not None
        assert answers is not None

        def ends(*commands: list[str], after: list[float]) -> list[int]:
            asked.write(json.dumps({"commands": commands, "after": after}) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        assert ends(night, after=[0.0]) == [0]
        folder = bucket.run().storage.url
        retry = ["retry", folder, *out_options(bucket), *night[2:]]
        for number in range(1, rounds + 1):
            bucket.put(f"photos/late-{number - 1}.png", png(number))
            bucket.put(f"photos/late-{number}.png", png(number), StorageClass="GLACIER")
            bucket.put(f"photos/new-{number}.png", png(number))
            after = [draw.uniform(0.0, 2.0), draw.uniform(0.0, 2.0)]
            codes = ends(night, retry, after=after)
            assert set(codes) <= {0, 5}, (codes, after)
            assert 0 in codes
            assert verify(bucket.run()).holds
        assert ends(night, after=[0.0]) == [0]
        asked.close()
    rows = bucket.rows()
    listed = bucket.client.list_objects_v2(Bucket="data", Prefix="photos/")["Contents"]
    assert {f"photos/{name}" for name in rows} == {entry["Key"] for entry in listed}
    assert verify(bucket.run()).holds
