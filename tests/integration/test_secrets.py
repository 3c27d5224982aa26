"""No planted key, token or signature is left anywhere: run folder, output, Ray's session folder,
and what a head's dashboard tells.
"""

from __future__ import annotations

import io
import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from ray._private import worker as ray_worker

from jobs.cli import run as panoptic
from pipeline.run.run import open_run
from tests.night_model import png
from tests.ray_heads import Head, ray_head
from tests.run_rows import live_rows
from tests.servers import S3Server, moto_server

# In two parts, for this file travels with the model of a submitted job.
KEY = "pl4nted" + "KEY"
SIGNATURE = "pl4nted" + "SIGNATURE%2Fwith%2Fslashes"
SHAPES = {  # options as the stores' clients name them
    "s3": ["key=A", f"secret={KEY}"],
    "gcs": [f"token={KEY}"],
    "azure": [f"account_key={KEY}", f"sas_token={KEY}"],
    "http": [f"password={KEY}"],
}


SLOW = pytest.mark.slow(seconds=15)


def session_folder() -> Path:
    node = ray_worker._global_node
    assert node is not None
    return Path(node.get_session_dir_path())


def holders(text: str, *folders: Path) -> list[str]:
    """The files that hold a text, Parquet by its rows: they are compressed."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path).to_pylist()).encode()
            if text.encode() in content:
                found.append(str(path.relative_to(folder)))
    return found


def words(source: Path, tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "level").write_text("128")
    return [
        *("segment", str(source), "--out", str(tmp_path / "run"), "--max-error-rate", "1"),
        *("--weights", str(tmp_path / "level"), "--model", "tests.night_model:load"),
        *("--num-actors", "1", *more),
    ]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "shape",
    ["azure", *(pytest.param(own, marks=SLOW) for own in ("s3", "gcs", "http"))],
)
def test_a_storage_option_outside_the_list_stays_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png(1))
    (photos / "2.png").write_bytes(b"no image")
    given = [word for pair in SHAPES[shape] for word in ("--source-option", pair)]
    assert panoptic(words(photos, tmp_path, *given)) == 0
    said = "".join(capsys.readouterr())
    name = SHAPES[shape][-1].partition("=")[0]
    assert f"{name} stays in the memory of this job" in said
    assert panoptic(["retry", str(tmp_path / "run"), "--all"]) == 2
    refused = "".join(capsys.readouterr())
    assert "which is written nowhere: give it again" in refused
    assert panoptic(["retry", str(tmp_path / "run"), "--all", *given]) == 0
    said += refused + "".join(capsys.readouterr())
    assert KEY not in said
    assert holders(KEY, tmp_path, session_folder()) == []
    assert open_run(str(tmp_path / "run")).info.config["source_options"] == {}


@pytest.fixture
def server() -> Iterator[str]:
    """Photos for whoever has the signature."""

    class Photos(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = unquote(SIGNATURE) in unquote(self.path) and "/gone" not in self.path
            self.send_response(200 if good else 404)
            self.end_headers()
            if good:
                self.wfile.write(png(1))

        def log_message(self, format: str, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Photos) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("ray_session")
def test_a_kept_signature_is_in_the_manifest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    listing = tmp_path / "list.txt"
    urls = [f"{server}/{name}.png?X-Amz-Signature={SIGNATURE}" for name in ("a", "b", "gone")]
    listing.write_text("\n".join(urls))
    assert panoptic(words(listing, tmp_path)) == 2
    refused = "".join(capsys.readouterr())
    assert "--keep-signed-urls" in refused
    assert not (tmp_path / "run").exists()

    assert panoptic(words(listing, tmp_path, "--keep-signed-urls")) == 0
    run = str(tmp_path / "run")
    assert panoptic(["verify", run]) == 0
    assert panoptic(["errors", run]) == 0
    said = refused + "".join(capsys.readouterr())
    rows = {row["file_name"]: row for row in live_rows(tmp_path / "run").to_pylist()}
    assert sorted(rows) == [f"{server}/{name}.png" for name in ("a", "b", "gone")]
    assert all(row["uri"] == name for name, row in rows.items())
    assert [row["status"] for _, row in sorted(rows.items())] == ["ok", "ok", "error"]
    planted = SIGNATURE.partition("%")[0]
    assert planted not in said
    assert holders(planted, session_folder()) == []
    kept = holders(planted, tmp_path / "run")
    assert kept
    assert all(name.startswith("manifest/") for name in kept)


NODES_KEY = "n0des" + "KEY"  # which the nodes have in their own environment


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    with moto_server() as server:
        server.client().create_bucket(Bucket="data")
        for number in range(3):
            server.client().put_object(Bucket="data", Key=f"photos/{number}.png", Body=png(number))
        yield server


@pytest.fixture(scope="module")
def head(bucket: S3Server) -> Iterator[Head]:
    environment = {**bucket.environment(), "AWS_SECRET_ACCESS_KEY": NODES_KEY}
    with ray_head(["--num-cpus=3"], environment) as head:
        yield head


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and all that was said."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err


def ask(head: Head, path: str) -> str:
    with urllib.request.urlopen(f"{head.dashboard}{path}", timeout=30) as answer:
        return answer.read().decode(errors="replace")


def told(head: Head) -> dict[str, str]:
    """What the dashboard tells of jobs, nodes, actors, tasks, workers and logs, by its pages."""
    kinds = ("actors", "jobs", "nodes", "objects", "placement_groups", "tasks", "workers")
    paths = [f"/api/v0/{kind}?detail=true&limit=10000" for kind in kinds]
    paths += ["/api/jobs/", "/api/cluster_status", "/logical/actors", "/nodes?view=summary"]
    pages = {path: ask(head, path) for path in paths}
    for node in json.loads(pages["/nodes?view=summary"])["data"]["summary"]:
        path = f"/nodes/{node['raylet']['nodeId']}"
        pages[path] = ask(head, path)
    for job in json.loads(pages["/api/jobs/"]):
        if job["submission_id"]:
            path = f"/api/jobs/{job['submission_id']}/logs"
            pages[path] = ask(head, path)
        path = f"/api/data/datasets/{job['job_id']}"
        pages[path] = ask(head, path)
    return pages


def of_dashboard(head: Head, text: str) -> list[str]:
    return [path for path, page in told(head).items() if text in page]


def of_bucket(server: S3Server, text: str) -> list[str]:
    """Objects that hold a text, Parquet by its rows."""
    client = server.client()
    found = []
    for entry in client.list_objects_v2(Bucket="data")["Contents"]:
        content = client.get_object(Bucket="data", Key=entry["Key"])["Body"].read()
        if entry["Key"].endswith(".parquet"):
            content += str(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
        if text.encode() in content:
            found.append(entry["Key"])
    return found


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(300)
def test_what_a_driver_is_given_no_dashboard_shows(head: Head, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png(1))
    (photos / "2.png").write_bytes(b"no image")
    pairs = [pair for shape in SHAPES.values() for pair in shape]
    given = [*("--source-option", pairs[0]), *(f"--source-option={pair}" for pair in pairs[1:])]
    code, said = ended(head.panoptic(*words(photos, tmp_path, "--address", head.gcs, *given)))
    assert code == 0, said
    assert KEY not in said
    assert any("--source-option" in told(head)[page] for page in of_dashboard(head, str(photos)))
    assert of_dashboard(head, KEY) == []
    assert holders(KEY, tmp_path, head.folder) == []


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(300)
def test_no_credential_is_sent_with_a_job_and_the_nodes_own_is_not_shown(
    head: Head, bucket: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "level").write_text("128")
    job = [*("segment", "s3://data/photos", "--out", "s3://data/run", "--num-actors", "1")]
    job += ["--weights", str(tmp_path / "level"), "--model", "tests.night_model:load"]
    submit = ["submit", "--address", head.dashboard, "--", *job]
    environment = {"AWS_SECRET_ACCESS_KEY": KEY}  # of whoever submits
    for shape in SHAPES.values():
        given = [word for pair in shape for word in ("--source-option", pair)]
        code, said = ended(head.panoptic(*submit, *given, **environment))
        assert code == 2, said
        assert "does not travel" in said
        assert KEY not in said
    code, said = ended(head.panoptic(*submit, **environment))
    assert code == 0, said
    assert of_dashboard(head, "s3://data/run")
    for planted in (KEY, NODES_KEY):
        assert planted not in said
        assert of_dashboard(head, planted) == []
        assert holders(planted, head.folder) == []
        assert of_bucket(bucket, planted) == []


@pytest.mark.slow(seconds=30)
@pytest.mark.timeout(300)
def test_a_signature_that_a_job_keeps_is_in_the_manifest_alone(
    head: Head, bucket: S3Server, tmp_path: Path, server: str
) -> None:
    (tmp_path / "level").write_text("128")
    urls = [f"{server}/{name}.png?X-Amz-Signature={SIGNATURE}" for name in ("a", "gone")]
    bucket.client().put_object(Bucket="data", Key="list.txt", Body="\n".join(urls).encode())
    job = [*("segment", "s3://data/list.txt", "--out", "s3://data/signed", "--num-actors", "1")]
    job += ["--weights", str(tmp_path / "level"), "--model", "tests.night_model:load"]
    job += ["--keep-signed-urls", "--max-error-rate", "1"]
    code, said = ended(head.panoptic("submit", "--address", head.dashboard, "--", *job))
    assert code == 0, said
    planted = SIGNATURE.partition("%")[0]
    assert planted not in said
    assert of_dashboard(head, planted) == []
    assert holders(planted, head.folder) == []
    kept = set(of_bucket(bucket, planted)) - {"list.txt"}
    assert kept
    assert all(key.startswith("signed/manifest/") for key in kept)
