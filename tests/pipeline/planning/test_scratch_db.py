"""The scratch database works in whatever folder the machine gives it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.planning.scratch_db import Staging


@pytest.mark.parametrize("name", ["a=b", "it's", "[x]*", "ü 写真", "x" * 120])
def test_any_temporary_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with Staging() as staging:
        assert staging.stage("numbers", iter([pa.table({"n": [1, 2]})])) == 2
        [table] = staging.tables("from numbers")
    assert table.to_pydict() == {"n": [1, 2]}
