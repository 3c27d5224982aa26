"""botocore's credential chain on real servers: profiles, an assumed role, keys that expire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.storage.entry import classify
from pipeline.storage.storage import Storage
from tests.fault_proxy import Faults, fault_proxy
from tests.servers import S3Server, rclone_server

Profiles = Callable[[str], object]


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiles:
    """Writes ~/.aws/config; no key is in the environment or in any other file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    return (tmp_path / "config").write_text


def every_client_reads(storage: Storage) -> bool:
    """obstore's objects and listing, s3fs's ranges, and botocore's keys that obstore can't say."""
    with storage.open("a.txt") as file:
        ranged = file.read()
    listed = [entry.path for entry in storage.list()]
    return storage.read("a.txt") == ranged == b"here" and "a.txt" in listed


def test_source_and_output_have_profiles_of_their_own(
    rclone: S3Server, tmp_path: Path, profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rclone_server(tmp_path / "others") as other:
        profiles(
            "".join(
                f"[profile {name}]\naws_access_key_id = {server.access_key}\n"
                f"aws_secret_access_key = {server.secret_key}\n"
                for name, server in (("in", rclone), ("out", other))
            )
        )
        source, out = (
            Storage("s3://data", {"profile": name, "endpoint_url": server.url})
            for name, server in (("in", rclone), ("out", other))
        )
        for server, storage in ((rclone, source), (other, out)):
            assert server.folder is not None
            (server.folder / "data").mkdir()
            storage.write("a.txt", b"here")
            assert every_client_reads(storage)
        crossed = Storage("s3://data", {"profile": "in", "endpoint_url": other.url})
        with pytest.raises(Exception, match="403") as refused:
            crossed.read("a.txt")
        assert classify(refused.value)[0] == "forbidden"


def test_a_profile_s_role_is_assumed(
    moto: S3Server, profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.url)
    profiles(
        "[profile base]\naws_access_key_id = BASE\naws_secret_access_key = secret\n"
        "[profile reader]\nsource_profile = base\n"
        "role_arn = arn:aws:iam::123456789012:role/reader\n"
    )
    moto.client().create_bucket(Bucket="data")
    moto.client().put_object(Bucket="data", Key="a.txt", Body=b"here")
    with fault_proxy(moto, Faults()) as proxy:
        options = {"profile": "reader", "endpoint_url": proxy.server.url}
        assert every_client_reads(Storage("s3://data", options))
    assert proxy.access_keys.total() >= 3
    assert {key[:4] for key in proxy.access_keys} == {"ASIA"}  # keys that STS made for a session


def test_keys_that_expire_are_renewed_in_mid_run(
    rclone: S3Server, tmp_path: Path, profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes other keys from now on stands for keys that have expired."""
    monkeypatch.setattr("pipeline.storage.s3.CREDENTIALS_GOOD", timedelta(minutes=5, seconds=1))

    def give(server: S3Server) -> None:
        keys = {"AccessKeyId": server.access_key, "SecretAccessKey": server.secret_key}
        soon = (datetime.now(UTC) + timedelta(minutes=3)).isoformat()
        made = {"Version": 1, **keys, "Expiration": soon}
        (tmp_path / "keys.json").write_text(json.dumps(made))

    give(rclone)
    profiles(f"[profile short]\ncredential_process = cat {tmp_path}/keys.json\n")
    assert rclone.folder is not None
    (rclone.folder / "data").mkdir()
    with fault_proxy(rclone, Faults()) as proxy, rclone_server(rclone.folder) as later:
        storage = Storage("s3://data", {"profile": "short", "endpoint_url": proxy.server.url})
        storage.write("a.txt", b"here")
        proxy.upstream = later
        with pytest.raises(Exception, match="403"):
            storage.read("a.txt")
        give(later)
        time.sleep(1.5)
        assert storage.read("a.txt") == b"here"
