"""Copies on this node: fetched once, and again when the original changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.node_cache import local_copy
from pipeline.storage.storage import Storage
from tests.kept_listings import KeptListings
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


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_of_which_one_file_was_replaced_is_fetched_again(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path))
    moto.client().create_bucket(Bucket="folders")
    storage = Storage("s3://folders/weights")
    storage.write("config.json", b"{}")
    storage.write("model.safetensors", b"old")
    first = local_copy(storage.url)
    assert local_copy(storage.url) == first
    storage.write("model.safetensors", b"new")
    if anew:  # as another job on this node
        storage.fsspec.clear_instance_cache()
    assert (local_copy(storage.url) / "model.safetensors").read_bytes() == b"new"
    assert (first / "model.safetensors").read_bytes() == b"old"


def test_a_folder_of_a_store_whose_client_keeps_listings_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path))
    kept = KeptListings()
    kept.pipe_file("/weights/model.bin", b"old")
    assert (local_copy("kept://weights") / "model.bin").read_bytes() == b"old"
    kept.pipe_file("/weights/model.bin", b"newer")
    assert (local_copy("kept://weights") / "model.bin").read_bytes() == b"newer"
    kept.rm("/weights", recursive=True)
