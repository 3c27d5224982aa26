"""Copies on this node: fetched once, and again when the original changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.node_cache import local_copy
from pipeline.storage.storage import Storage
from tests.servers import S3Server


def test_a_remote_file_is_copied_once_until_it_changes(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path))
    moto.client().create_bucket(Bucket="bucket")
    storage = Storage("s3://bucket")
    storage.write("weights/w.bin", b"one")
    first = local_copy("s3://bucket/weights/w.bin")
    assert (first.name, first.read_bytes()) == ("w.bin", b"one")
    assert local_copy("s3://bucket/weights/w.bin") == first
    storage.write("weights/w.bin", b"three")
    assert local_copy("s3://bucket/weights/w.bin").read_bytes() == b"three"
    assert sorted(path.name for path in local_copy("s3://bucket/weights").iterdir()) == ["w.bin"]
