"""What becomes of a followed job whose head has forgotten it, or which somebody stopped.

The heads here answer over HTTP what Ray's own answers then; tests/integration/test_submit.py does
the same with Ray's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import ray

from jobs.submission import RESTART_SECONDS, JobServer, OwnLines
from pipeline.errors import TryAgainError, UserError
from tests.ray_heads import free_port

JOB = "panoptic-segment-404503404503"  # its digits are no status codes


class Head(BaseHTTPRequestHandler):
    """Knows these jobs; a log can't be had, by a refusal or a closed connection."""

    jobs: tuple[dict[str, Any], ...] = ()
    refuses = True
    version_status = 200

    def do_GET(self) -> None:
        if self.path.startswith("/api/version"):
            self._answer(self.version_status, {"version": "4", "ray_version": ray.__version__})
        elif self.path.endswith("/api/jobs/"):
            self._answer(200, list(self.jobs))
        elif self.refuses:
            self._answer(404, f"Job {JOB} does not exist")

    def _answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def heads() -> Iterator[list[HTTPServer]]:
    started: list[HTTPServer] = []
    yield started
    for server in started:
        server.shutdown()
        server.server_close()


def cluster(heads: list[HTTPServer], notes: list[str], **answers: Any) -> JobServer:
    server = HTTPServer(("127.0.0.1", 0), type("Own", (Head,), answers))
    heads.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    return JobServer(address, wait_seconds=0, note=notes.append)


@pytest.mark.parametrize("refuses", [True, False])
def test_a_job_that_the_head_has_forgotten_is_lost(heads: list[HTTPServer], refuses: bool) -> None:
    notes: list[str] = []
    assert cluster(heads, notes, refuses=refuses).follow(JOB, notes.append) is None
    assert "the log stream broke" in notes[0]
    assert notes[1] == f"the cluster knows {JOB} no more: its head was started anew"


def test_a_job_that_somebody_stopped_is_not_worth_another_try(heads: list[HTTPServer]) -> None:
    stopped = {"type": "SUBMISSION", "submission_id": JOB, "status": "STOPPED", "entrypoint": "x"}
    with pytest.raises(TryAgainError, match=f"{JOB} was stopped on the cluster"):
        cluster(heads, [], jobs=(stopped,)).follow(JOB, print)


def test_what_has_no_jobs_is_no_head(heads: list[HTTPServer]) -> None:
    with pytest.raises(UserError, match="is no Ray dashboard"):
        cluster(heads, [], version_status=404)


def test_a_head_that_never_answers_is_told_with_the_port_that_was_tried() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(TryAgainError, match=rf"that port {port} is reachable; .* --wait-head"):
        JobServer(f"http://127.0.0.1:{port}", wait_seconds=0, note=print)
    assert time.monotonic() - began < RESTART_SECONDS / 2


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_that_ray_logs_for_information_are_not_shown(size: int) -> None:
    log = (
        "2026-11-27 19:54:34,994\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        f"Running entrypoint for job {JOB}: python -m jobs.cli segment photos\n"
        "[2026-11-27 19:54:56,681 I 29368 29368] logging.cc:303: Set ray log level\n"
        "listing: 64 images\n"
        "2026-11-27 19:55:00,000\tWARNING worker.py:1 -- a worker died\n"
        "published snapshot 1"
    )
    shown: list[str] = []
    lines = OwnLines(shown.append)
    for start in range(0, len(log), size):
        lines.add(log[start : start + size])
    lines.end()
    assert "".join(shown) == (
        "listing: 64 images\n"
        "2026-11-27 19:55:00,000\tWARNING worker.py:1 -- a worker died\n"
        "published snapshot 1"
    )
