"""What users have on disk and on screen stays as it is; `--regenerate` freezes it anew.

Run folders, fingerprints, options, exit codes and public names are contracts: whoever changes one
on purpose runs `pytest tests/test_golden.py --regenerate` and lists each difference in the commit.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detr
import pipeline
from pipeline.segmentation.model_spec import ModelSpec, run_fingerprint
from tests.golden.command_line import exit_codes, options
from tests.golden.run_folder import run_folder

FROZEN = Path(__file__).parent / "golden"
DEMO_WEIGHTS = Path(__file__).parents[1] / "jobs" / "demo_weights" / "demo.safetensors"

Compare = Callable[[str, Any], None]


@pytest.fixture
def frozen(request: pytest.FixtureRequest) -> Compare:
    """Compares a value with the frozen file of a name, or writes that file."""

    def compare(name: str, value: Any) -> None:
        path = FROZEN / f"{name}.json"
        now = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        if request.config.getoption("--regenerate"):
            path.write_text(now, "utf-8")
            return
        before = path.read_text("utf-8")
        if now != before:
            lines = (before.splitlines(), now.splitlines())
            diff = difflib.unified_diff(*lines, f"{name}.json", "now", lineterm="")
            pytest.fail("\n".join(diff), pytrace=False)

    return compare


@pytest.mark.usefixtures("ray_session")
def test_jobs_leave_the_frozen_run_folder(tmp_path: Path, frozen: Compare) -> None:
    frozen("run_folder", run_folder(tmp_path))


def test_the_demo_weights_have_the_frozen_fingerprint(frozen: Compare) -> None:
    config = pipeline.make_config({"source": "a", "out": "b", "weights": str(DEMO_WEIGHTS)})
    description = ModelSpec.of(config, device="cpu", dtype="fp32").describe()
    digest, fields = run_fingerprint(description, config)
    card = detr.describe(DEMO_WEIGHTS, device="cpu")
    assert card.fingerprint_fields == description.fields
    frozen("fingerprint", {"run": digest, "fields": fields, "card": card.fingerprint})


def test_every_verb_has_the_frozen_options(frozen: Compare) -> None:
    frozen("options", options())


def test_mistakes_end_with_the_frozen_sentence_and_exit_code(
    tmp_path: Path, frozen: Compare
) -> None:
    frozen("exit_codes", exit_codes(tmp_path))


def test_the_public_names_are_the_frozen_ones(frozen: Compare) -> None:
    packages = {"detr": detr, "pipeline": pipeline}
    for package in packages.values():
        assert all(getattr(package, name) is not None for name in package.__all__)
    frozen("public_names", {name: sorted(own.__all__) for name, own in packages.items()})
