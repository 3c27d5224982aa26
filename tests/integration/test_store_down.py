"""The store of the run folder fails or goes away: a sentence and 75, whatever asks it, and when."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs.cli import run
from jobs.parcel import Inputs
from pipeline.errors import EXIT_TRY_AGAIN, UserError
from tests.factories import made_scenes, make_run, shard_row
from tests.fault_proxy import Faults, fault_proxy
from tests.killing import JOB_SECONDS, make_field
from tests.servers import S3Server, moto_server


@pytest.fixture
def finished(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server with a finished run at s3://data/run, asked with few and quick tries."""
    monkeypatch.setattr("pipeline.storage.s3.TRIES", 2)
    monkeypatch.setattr("pipeline.storage.s3.WRITE_TRIES", 3)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    rows = {name: shard_row(name, predicted) for name, predicted in made_scenes(3).items()}
    folder = make_run(tmp_path / "run", rows).storage.url
    client = moto.client()
    client.create_bucket(Bucket="data")
    for path in Path(folder).rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "data", f"run/{path.relative_to(folder)}")
    return moto


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("tests.impatient", marks=pytest.mark.slow(seconds=60)),
        pytest.param("jobs.cli", marks=pytest.mark.slow(seconds=160)),
    ],
)
@pytest.mark.timeout(2 * JOB_SECONDS + 60)
def test_a_store_that_is_stopped_while_a_job_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    field = make_field(tmp_path, images=400, seconds=0.02)
    with ExitStack() as running:
        server = running.enter_context(moto_server())
        server.point(monkeypatch)
        server.client().create_bucket(Bucket="data")
        job = field.start("--out", "s3://data/run", program=(program,))
        assert field.wait_for(job, computed=60), job.communicate()
        running.close()
        _, said = job.communicate(timeout=JOB_SECONDS)
    assert job.returncode == EXIT_TRY_AGAIN, said
    # Why it stopped, a write or a read, not what failed after; Ray tells the worker's side first.
    write, read = "can't write s3://data/run/segments/0001/", "a fetch can't read s3://data/run/"
    assert f"\npanoptic: {write}" in said or f"\npanoptic: {read}" in said


@pytest.mark.parametrize(
    ("words", "broken"),
    [
        ("rollback s3://data/run", ""),
        ("prune s3://data/run --keep 1", ""),
        ("status s3://data/run", ""),
        ("segment {images} --out s3://data/run --weights {weights}", ""),
        ("verify s3://data/run", "/data"),  # a listing: the run itself could be read
        ("verify s3://data/run", "segments"),
        ("export s3://data/run {out} --format instances", "segments"),
    ],
)
def test_a_store_that_answers_with_errors(
    finished: S3Server,
    scenes: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    broken: str,
) -> None:
    def applies(method: str, path: str) -> bool:
        return path.rstrip("/") == broken if broken.startswith("/") else broken in path

    places = {"images": scenes / "images", "weights": tiny_weights, "out": tmp_path / "pred.json"}
    with fault_proxy(finished, Faults(unavailable=1.0), applies=applies) as proxy:
        proxy.server.point(monkeypatch)
        code = run([word.format(**places) for word in words.split()])
    assert proxy.injected["unavailable"]
    said = capsys.readouterr().err
    assert code == EXIT_TRY_AGAIN, said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["rollback", "prune"])
def test_a_store_that_nobody_answers_for(
    finished: S3Server, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert run([verb, "s3://data/run"]) == EXIT_TRY_AGAIN


def test_an_upload_to_a_store_that_breaks_connections(
    finished: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    broken = fault_proxy(finished, Faults(reset=1.0), applies=lambda method, path: method == "PUT")
    with broken as proxy:
        proxy.server.point(monkeypatch)
        with pytest.raises(UserError, match="can't upload") as caught:
            Inputs("s3://data/run", {}).travel("weights", str(tmp_path / "w.safetensors"))
    assert proxy.injected["reset"]
    assert caught.value.exit_code == EXIT_TRY_AGAIN
