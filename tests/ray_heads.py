"""Ray clusters of their own for tests: a head with its own ports and folder, ended with its jobs.

`ray stop` would end every cluster of this machine; here each process is found by the folder that
only this cluster has, in its command or in a variable.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 120
MARK = "PANOPTIC_TEST_HEAD"


@dataclass(frozen=True)
class Head:
    """A running head: its dashboard, its GCS, its folder, and the environment that reaches it."""

    dashboard: str
    gcs: str
    folder: Path
    environment: dict[str, str]

    def panoptic(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """The command line as a user of this cluster starts it."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words],
            cwd=ROOT,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def ray_head(
    flags: Sequence[str],
    environment: Mapping[str, str],
    gcs_port: int | None = None,
    dashboard_port: int | None = None,
) -> Iterator[Head]:
    """`ray start --head` with these flags, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # short: sockets' paths are limited
    port, dashboard = gcs_port or free_port(), dashboard_port or free_port()
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # jobs start `python`
    own |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        **environment,
    }
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}"),
        *(f"--ray-client-server-port={free_port()}", f"--metrics-export-port={free_port()}"),
        *("--object-store-memory=100000000", *flags),
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**own, MARK: str(folder)}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait(url, environment.get("RAY_AUTH_TOKEN", ""), process, folder)
        yield Head(url, f"127.0.0.1:{port}", folder, own)
    finally:
        _end(process, folder)


def _wait(url: str, token: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until its own node has joined it: before that the dashboard answers and drivers fail."""
    deadline = time.monotonic() + READY_SECONDS
    request = urllib.request.Request(
        f"{url}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["summary"]
            if any(node["raylet"].get("state") == "ALIVE" for node in nodes):
                return
        except OSError:
            assert process.poll() is None, (folder / "head.log").read_text()
        assert time.monotonic() < deadline, (folder / "head.log").read_text()
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End every process that this cluster has started, drivers of jobs too, and the head."""
    for _ in range(20):
        mine = [pid for pid in _pids() if str(folder) in _words(pid)]
        if process.poll() is None:
            mine.append(process.pid)
        if not mine:
            break
        for pid in mine:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.poll()
        time.sleep(0.3)
    process.wait(timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _words(pid: int) -> str:
    """The command line of a process, and the mark of its cluster."""
    try:
        command, environment = (
            Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
            for name in ("cmdline", "environ")
        )
    except OSError:
        return ""
    return command + "".join(v for v in environment.split("\0") if v.startswith(f"{MARK}="))
