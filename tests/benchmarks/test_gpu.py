"""What is run in the few minutes in which a GPU is at hand works: rehearsed as packed, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# What a bare machine with torch, torchvision, transformers, triton and numba lacks.
ABSENT = ("ray", "pyarrow", "pydantic", "fsspec", "s3fs", "obstore", "duckdb", "typer", "scipy")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked bundle, and a `sitecustomize` that hides what a bare machine lacks."""
    folder = tmp_path_factory.mktemp("bare")
    bundle = folder / "gpu-bundle.tar.gz"
    told = subprocess.run(
        ["make", "--silent", "gpu-bundle", f"GPU_BUNDLE={bundle}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "python benchmarks/gpu.py --out OUT" in told
    assert bundle.stat().st_size < 40e6
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    hidden = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text(hidden)
    return folder


def rehearse(bare: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", str(out), *options],
        cwd=bare,
        env={**os.environ, "PYTHONPATH": str(bare / "hidden"), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )


def verdicts(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    return {line["step"]: line["verdict"] for line in lines}


def test_steps_of_a_rehearsal_pass_and_make_the_results_page(bare: Path, tmp_path: Path) -> None:
    steps = "resize,nvjpeg,race,waits"
    result = rehearse(bare, tmp_path, "--steps", steps)
    assert result.returncode == 0, result.stdout + result.stderr
    assert verdicts(tmp_path) == dict.fromkeys(steps.split(","), "PASS")
    last = result.stdout.strip().splitlines()[-len(steps.split(",")) :]
    assert all(line.startswith("PASS ") for line in last), result.stdout

    from benchmarks import gpu

    page = gpu.page(gpu.read_lines(tmp_path / "gpu.jsonl"))
    assert page.startswith("A rehearsal on a CPU")
    assert page.count("PASS ") == len(last)


@pytest.mark.slow(seconds=60)
def test_a_whole_rehearsal_passes(bare: Path, tmp_path: Path) -> None:
    from benchmarks import gpu

    result = rehearse(bare, tmp_path)
    assert verdicts(tmp_path) == {step.name: "PASS" for step in gpu.STEPS}, result.stdout
    assert result.returncode == 0


def test_a_step_that_fails_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu
    from benchmarks.gpu_bench import Bench, Step

    def breaks(bench: Bench) -> tuple[bool, dict[str, object]]:
        raise RuntimeError("CUDA error: out of memory")

    steps = (
        Step("first", "breaks", 1, breaks),
        Step("second", "doesn't hold", 1, lambda bench: (False, {"images_s": 1})),
        Step("third", "holds", 1, lambda bench: (True, {})),
    )
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--out", str(tmp_path)])
    assert gpu.main() == 1
    assert verdicts(tmp_path) == {"first": "FAIL", "second": "FAIL", "third": "PASS"}
    assert "CUDA error: out of memory" in (tmp_path / "gpu.jsonl").read_text()
    table = capsys.readouterr().out.strip().splitlines()[-3:]
    assert [line[:4] for line in table] == ["FAIL", "FAIL", "PASS"]


def test_a_step_that_would_not_fit_is_left_out(tmp_path: Path) -> None:
    from benchmarks import gpu
    from benchmarks.gpu_bench import Bench, Step

    bench = Bench(tmp_path, rehearse=True, seconds=5)
    bench.rehearse = False
    bench.close()
    line = gpu.run(Step("long", "takes 20 s", 20, lambda bench: (True, {})), bench)
    assert line["verdict"] == "SKIP"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "--rehearse" in capsys.readouterr().out
