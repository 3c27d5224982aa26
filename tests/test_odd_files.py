"""The maker of odd files keeps its own promises."""

from __future__ import annotations

from pathlib import Path

from tests.odd_files import odd_files, write_odd_files


def test_the_folder_holds_what_it_says_and_is_small(tmp_path: Path) -> None:
    codes = write_odd_files(tmp_path)
    there = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert there == {name: data for name, (data, _) in odd_files().items()}
    assert set(codes) == set(there)
    assert sum(len(data) for data in there.values()) < 2_000_000
