"""Joining Ray leaves this process its own answer to SIGTERM, at every moment of the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._raylet import getproctitle, setproctitle  # type: ignore[attr-defined]  # compiled

from pipeline.cluster.ray_session import start_here

ROOT = Path(__file__).resolve().parents[3]
# Sends itself SIGTERM as soon as `ray.init` has put a handler of its own in place.
STOPPED = """
import os, signal, threading, time
from pipeline.cluster.ray_session import join_ray

def stop(number, frame):
    raise KeyboardInterrupt

def watch():
    while signal.getsignal(signal.SIGTERM) is stop:
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, stop)
threading.Thread(target=watch, daemon=True).start()
try:
    join_ray(None)
except KeyboardInterrupt:
    print("stopped", signal.getsignal(signal.SIGTERM) is stop)
"""


@pytest.mark.ray
def test_a_stop_while_ray_starts_is_answered_by_this_process() -> None:
    """Ray's own handler would end it with code 15, which means nothing to whoever called it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", STOPPED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "stopped True"), done.stderr


def test_the_system_shows_the_command_line_without_the_values_of_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's dashboard asks it for that of each driver."""
    before = getproctitle()
    words = ["python", "-m", "jobs.cli", "segment", "--source-option", "account_key=pl4nted"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    start_here()
    shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\0")
    setproctitle(before)
    assert shown == b"python -m jobs.cli segment --source-option account_key=..."
