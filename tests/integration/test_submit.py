"""Jobs on a real head of Ray with token authentication, photos and results in a real bucket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.factories import write_coco
from tests.night_model import CATEGORIES, png, truth
from tests.ray_heads import Head, free_port, ray_head
from tests.servers import S3Server, moto_server, rclone_server

pytestmark = [pytest.mark.ray, pytest.mark.slow(seconds=80), pytest.mark.timeout(600)]
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture(scope="module")
def head(server: S3Server) -> Iterator[Head]:
    """A head that wants a token. Its nodes may read the bucket, the client's words need no key."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": ""}
    with ray_head(["--num-cpus=3"], {**environment, **server.environment()}) as head:
        yield head


@pytest.fixture(scope="module")
def inputs(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local weights and truth; eight photos in the bucket."""
    server.client().create_bucket(Bucket="data")
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(8):
        server.client().put_object(Bucket="data", Key=f"photos/{number}.png", Body=png(number))
    write_coco(folder, "gt", {f"{n}.png": truth(n) for n in range(4)}, categories=CATEGORIES)
    (folder / "weights.txt").write_text("128")
    return folder


def segment_words(inputs: Path, out: str, model: str = "load") -> list[str]:
    return [
        *("segment", "s3://data/photos", "--out", f"s3://data/{out}"),
        *("--weights", str(inputs / "weights.txt"), "--model", f"tests.night_model:{model}"),
        *("--images-per-shard", "4"),
    ]


def submit(head: Head, *words: str, **environment: str) -> subprocess.Popen[str]:
    return head.panoptic("submit", "--address", head.dashboard, *words, **environment)


def holder(client: Any, out: str) -> dict[str, Any]:
    """Who writes the run folder, once a job does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(client.exceptions.NoSuchKey):
            content = client.get_object(Bucket="data", Key=f"{out}/lease.json")["Body"].read()
            return json.loads(content)
        time.sleep(0.2)
    raise AssertionError(f"no job took the lease of {out}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_segment_evaluate_and_nightly_run_there_from_local_inputs(
    head: Head, server: S3Server, inputs: Path, tmp_path: Path
) -> None:
    code, out, err = ended(submit(head, "--", *segment_words(inputs, "run")))
    assert code == 0, err
    assert "8 images: 8 ok" in out
    assert ".py:" not in err  # Ray's own logging of what it packs and uploads

    words = ["evaluate", "s3://data/run", "--truth", str(inputs / "gt.json"), "--json"]
    code, out, err = ended(submit(head, "--", *words))
    assert code == 0, err
    result = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert (result["All"]["pq"], result["images"]["scored"]) == (1.0, 4)
    assert result["truth"].startswith("s3://data/run/inputs/")

    toml = tmp_path / "nightly.toml"
    settings = {
        "source": "s3://data/photos",
        "out": "s3://data/nights",
        "weights": str(inputs / "weights.txt"),
        "truth": str(inputs / "gt.json"),
        "model": "tests.night_model:load",
        "report": ["false"],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    toml.write_text("\n".join(lines))
    code, out, err = ended(submit(head, "--", "nightly", str(toml)))
    assert code == 3, err  # the gate's own exit code arrives
    assert "the report command ended with 1" in out
    toml.write_text("\n".join(lines[:-1]))
    code, out, err = ended(submit(head, "--", "nightly", str(toml)))
    assert code == 0, err
    assert "published" in out

    stored = b"".join(
        path.read_bytes() for path in (server.folder or tmp_path).rglob("*") if path.is_file()
    )
    assert server.secret_key.encode() not in stored
    assert TOKEN.encode() not in stored


def test_ctrl_c_leaves_the_job_and_the_same_command_attaches(head: Head, inputs: Path) -> None:
    words = [*segment_words(inputs, "slow", "load_slow"), "--num-actors", "1"]
    first = submit(head, "--", *words)
    assert first.stdout is not None
    assert first.stdout.readline()  # the job says something: it runs
    first.send_signal(signal.SIGINT)
    code, _, err = ended(first)
    assert code == 75
    assert "left panoptic-segment-" in err
    code, out, err = ended(head.panoptic("jobs", "--address", head.dashboard, "--json"))
    assert code == 0, err
    [job] = [job for job in json.loads(out) if "load_slow" in job["command"]]
    assert job["status"] == "RUNNING"

    code, out, err = ended(submit(head, "--", *words))
    assert code == 0, err
    assert f"{job['id']} is running already: attaching to it" in err
    assert "8 images: 8 ok" in out

    code, out, err = ended(submit(head, "--", *words))  # a finished one is submitted again
    assert code == 0, err
    assert f"submitted {job['id']}" in err
    assert "nothing to compute" in out + err


def test_a_job_that_somebody_stopped_stays_stopped(head: Head, inputs: Path) -> None:
    words = [*segment_words(inputs, "stopped", "load_slow"), "--num-actors", "1"]
    process = submit(head, "--", *words)
    assert process.stdout is not None
    assert process.stdout.readline()
    _, out, _ = ended(head.panoptic("jobs", "--address", head.dashboard, "--json"))
    [identity] = [job["id"] for job in json.loads(out) if "data/stopped" in job["command"]]
    stop = [str(Path(sys.executable).parent / "ray"), "job", "stop", "--address", head.dashboard]
    subprocess.run([*stop, identity], env=head.environment, check=True, capture_output=True)
    code, _, err = ended(process)
    assert code == 75, err
    assert f"{identity} was stopped on the cluster" in err
    assert "submitting it again" not in err


def test_a_head_that_starts_anew_gets_its_job_again(server: S3Server, inputs: Path) -> None:
    environment = {"PYTHONPATH": "", **server.environment()}
    port = free_port()
    with ray_head(["--num-cpus=3"], environment, dashboard_port=port) as head:
        words = [*segment_words(inputs, "anew", "load_slow"), "--num-actors", "1"]
        process = submit(head, "--wait-head", "200", "--", *words)
        assert process.stdout is not None
        assert process.stdout.readline()
    with ray_head(["--num-cpus=3"], environment, dashboard_port=port):
        code, out, err = ended(process)
    assert code == 0, err
    assert "its head was started anew" in err
    assert "submitting it again (1 of 3)" in err
    assert "8 images: 8 ok" in out


@pytest.mark.slow(seconds=240)
@pytest.mark.timeout(900)
def test_a_job_goes_on_after_its_head_was_replaced_on_another_host(
    inputs: Path, tmp_path: Path
) -> None:
    """Its lease looks like that of a living job elsewhere, until it runs out."""
    port = free_port()
    with moto_server() as moto, ExitStack() as heads:
        client = moto.client()
        client.create_bucket(Bucket="data")
        for number in range(8):
            client.put_object(Bucket="data", Key=f"photos/{number}.png", Body=png(number))

        def head(name: str) -> Head:
            folder = tmp_path / name
            folder.mkdir()
            named = f"import socket\nsocket.gethostname = lambda: {name!r}\n"
            (folder / "sitecustomize.py").write_text(named)
            environment = {"PYTHONPATH": str(folder), **moto.environment()}
            return heads.enter_context(ray_head(["--num-cpus=3"], environment, dashboard_port=port))

        first = head("first")
        words = [*segment_words(inputs, "elsewhere", "load_slow"), "--num-actors", "1"]
        process = submit(first, "--wait-head", "200", "--", *words)
        assert holder(client, "elsewhere")["host"] == "first"
        heads.close()
        head("second")
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "submitting it again (1 of 3)" in err
    assert "8 images: 8 ok" in out


def test_the_job_s_own_exit_code_arrives_and_is_not_retried(head: Head) -> None:
    code, out, err = ended(submit(head, "--", "status", "s3://data/nowhere"))
    assert code == 2
    assert "is not a run folder" in out + err
    assert "submitting it again" not in err


def test_doctor_checks_a_worker(head: Head, inputs: Path) -> None:
    words = ["doctor", "s3://data/photos", "s3://data/new", "--address", head.dashboard]
    code, out, err = ended(head.panoptic(*words))
    assert code == 0, out + err
    assert "FAIL" not in out
    assert "conditional writes" in out
    assert "read and decoded" in out


def test_no_wait_leaves_at_once(head: Head) -> None:
    code, out, err = ended(submit(head, "--no-wait", "--", "status", "s3://data/nothing"))
    assert code == 0, err
    assert out.startswith("panoptic-status-")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refused this token"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token"),
    ],
)
def test_a_wrong_token_is_a_sentence(head: Head, environment: dict[str, str], words: str) -> None:
    process = submit(head, "--", "status", "s3://data/run", **environment)
    code, out, err = ended(process)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert TOKEN not in err


def test_a_head_that_is_not_there_is_waited_for_and_then_a_sentence(head: Head) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    process = head.panoptic(
        *("submit", "--address", address, "--wait-head", "4", "--", "status", "s3://data/run")
    )
    code, _, err = ended(process)
    assert time.monotonic() - began > 4
    assert code == 75
    assert f"no Ray dashboard answers at {address}" in err


class Answers(BaseHTTPRequestHandler):
    """A dashboard of another version, or of nothing like it."""

    ray_version = ray.__version__
    python_version = "3.11.0"

    def do_GET(self) -> None:
        answer: dict[str, Any] = {"ray_version": self.ray_version, "version": "4"}
        if "metadata" in self.path:
            data = {"rayVersion": self.ray_version, "pythonVersion": self.python_version}
            answer = {"result": True, "msg": "", "data": data}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"ray_version": "2.50.1"}, f"runs Ray 2.50.1, this machine {ray.__version__}"),
        ({"python_version": "3.9.18"}, "runs Python 3.9, this machine 3."),
    ],
)
def test_another_version_is_a_sentence_before_anything_is_sent(
    versions: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import run as panoptic

    server = HTTPServer(("127.0.0.1", 0), type("Other", (Answers,), versions))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    code = panoptic(["submit", "--address", address, "--", "status", "s3://data/run"])
    server.shutdown()
    said = capsys.readouterr()
    assert code == 2
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
