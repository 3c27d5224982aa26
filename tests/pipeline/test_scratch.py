"""Machines as they are: any user, no home, read-only code, long temporary folders, a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import scratch
from pipeline.cluster import ray_session
from pipeline.errors import EXIT_USAGE, UserError
from pipeline.storage.entry import as_user_error, machine_failure

CLONE = Path(__file__).parents[2]
ENCODE = """
import numpy
from pipeline.panoptic import rle
print(rle.encode(numpy.ones((4, 4), numpy.uint8), [1]).area.tolist())
"""


def test_the_cache_lies_where_it_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path / "own"))
    assert scratch.cache_folder() == tmp_path / "own"
    monkeypatch.setenv("PANOPTIC_CACHE", "/proc/none")
    with pytest.raises(UserError, match="PANOPTIC_CACHE"):
        scratch.cache_folder()
    monkeypatch.delenv("PANOPTIC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scratch.cache_folder() == tmp_path / ".cache" / "panoptic"
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setattr(scratch, "_can_write", lambda folder: False)
    folder = scratch.cache_folder()
    assert folder == scratch.cache_folder()
    assert os.access(folder, os.W_OK)
    assert folder.stat().st_mode & 0o077 == 0


def test_no_temporary_folder_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(UserError, match="set TMPDIR"):
        scratch.temporary_folder()


# A Python that any user may start: that of the virtual environment may lie in root's home.
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"


@pytest.mark.skipif(
    os.getuid() != 0 or not Path(PYTHON).exists(), reason="needs root and the system's Python"
)
@pytest.mark.parametrize("home", ["/", None])
def test_any_user_encodes_with_code_that_is_read_only(home: str | None) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([str(CLONE), *sys.path])}
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [PYTHON, "-B", "-c", ENCODE],
        user=1_000_740_000,
        group=0,
        extra_groups=[],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[16]\n"), done.stderr


def test_sockets_of_a_long_temporary_folder_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_session.short_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("slurm" * 20)))
    folder = ray_session.short_folder()
    assert folder is not None
    assert len(folder) + ray_session.RAY_BYTES <= ray_session.SOCKET_BYTES
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(UserError, match="set RAY_TMPDIR"):
        ray_session.short_folder()


def test_a_proxy_does_not_stand_between_ray_s_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intern.example")
    ray_session._reach_this_machine_without_proxy()
    for name in ("no_proxy", "NO_PROXY"):
        assert {"localhost", "127.0.0.1"} <= set(os.environ[name].split(","))
    assert os.environ["no_proxy"].startswith("intern.example,")


FULL = [
    OSError(errno.ENOSPC, "No space left on device", "/data/out/segments/0001/0.parquet"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "/data/out"),
    OSError(errno.EROFS, "Read-only file system", "/data/out"),
    RuntimeError('IO Error: Could not write file "/tmp/x": No space left on device'),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_a_sentence(error: Exception) -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        sentence = machine_failure(each)
        assert sentence is not None
        assert sentence.exit_code == EXIT_USAGE
        assert "network" not in str(sentence)
        assert "\n" not in str(sentence)
    assert machine_failure(ValueError("another mistake")) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [(FULL[0], "make room"), (FULL[1], "make room"), (FULL[2], "check who may read and write")],
)
def test_a_write_to_a_full_disk_does_not_blame_the_network(error: OSError, words: str) -> None:
    sentence = as_user_error(error, "can't write")
    assert "network" not in str(sentence)
    assert words in str(sentence)
    assert sentence.exit_code == EXIT_USAGE


def test_a_wrong_clock_is_named() -> None:
    error = OSError("<Code>RequestTimeTooSkewed</Code> status code: 403")
    assert "set it" in str(as_user_error(error, "can't list s3://b"))


@pytest.mark.parametrize("name", ["C", "en_US.ISO-8859-1"])
def test_names_are_right_under_any_locale(tmp_path: Path, name: str) -> None:
    photos = tmp_path / "写真"
    photos.mkdir()
    (photos / "é.txt").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "plan", str(photos), "--out", str(tmp_path / "run")],
        env={**os.environ, "LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=CLONE,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == EXIT_USAGE
    assert f"no images found in {photos}" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_no_shared_memory_for_ray_is_a_sentence() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/shm")
    small = ValueError("The configured object store size (9 GB) exceeds /dev/shm size (0.1 GB).")
    for error in (missing, small):
        why = ray_session.unfit_machine(error)
        assert why is not None
        assert "--shm-size" in why
    assert ray_session.unfit_machine(ValueError("a mistake of another kind")) is None
