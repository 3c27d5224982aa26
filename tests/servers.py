"""Real S3 servers over HTTP: moto for conditional writes, rclone for credentials and speed."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

READY_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where a server listens, the keys it takes, and its folder of buckets if it has one."""

    url: str
    access_key: str
    secret_key: str
    folder: Path | None = None

    def point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every client of this process, and those it starts, use this server."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self) -> Any:
        """A boto3 client with this server's keys, whatever the environment says."""
        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url)

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",  # rclone refuses the newer ones
        }


@contextmanager
def moto_server() -> Iterator[S3Server]:
    port = _free_port()
    command = [_program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, f"http://127.0.0.1:{port}/moto-api/"):
        yield S3Server(f"http://127.0.0.1:{port}", "key", "secret")


def empty(server: S3Server) -> None:
    """Remove every bucket of a moto server."""
    request = urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    folder.mkdir(parents=True, exist_ok=True)
    port, secret = _free_port(), secrets.token_hex(16)
    command = [_program("rclone"), "serve", "s3", "--config", "/dev/null"]
    command += ["--auth-key", f"panopticuser,{secret}", "--addr", f"127.0.0.1:{port}"]
    command += ["--vfs-cache-mode", "off", str(folder)]
    with _running(command, f"http://127.0.0.1:{port}/"):
        yield S3Server(f"http://127.0.0.1:{port}", "panopticuser", secret, folder)


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed: run `make setup`"
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: Sequence[str], ready: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(ready):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} did not answer at {ready}"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
