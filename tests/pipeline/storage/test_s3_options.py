"""Options by the names that other clients' users know; none of them a secret."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import botocore
import pytest

from pipeline.errors import UserError
from pipeline.secrets import kept, withheld
from pipeline.storage.s3 import S3Objects
from pipeline.storage.s3_options import usual_options
from pipeline.storage.storage import Storage, s3_filesystem
from tests.servers import S3Server


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"profile_name": "prod"}, {"profile": "prod"}),
        ({"AWS_REGION": "eu-west-1"}, {"region": "eu-west-1"}),
        ({"region-name": "eu-west-1"}, {"region": "eu-west-1"}),
        ({"endpoint_override": "http://h"}, {"endpoint_url": "http://h"}),
        ({"aws_endpoint": "http://h", "endpoint_url": "http://h"}, {"endpoint_url": "http://h"}),
        ({"skip_signature": "True"}, {"anon": "true"}),
        ({"anon": "0"}, {"anon": "false"}),
        ({"requester_pays": "yes"}, {"requester_pays": "true"}),
        ({"RequestPayer": "requester"}, {"requester_pays": "true"}),
        ({"request_payer": "true"}, {"requester_pays": "true"}),
        ({"virtual_hosted_style_request": "true"}, {"addressing_style": "virtual"}),
        ({"force_path_style": "true"}, {"addressing_style": "path"}),
        ({"addressing_style": "path"}, {"addressing_style": "path"}),
        ({"allow_invalid_certificates": "true"}, {"verify": "false"}),
        ({"verify": "false"}, {"verify": "false"}),
        ({"no_verify_ssl": "1"}, {"verify": "false"}),
        ({"ca_bundle": "/etc/own-ca.pem"}, {"verify": "/etc/own-ca.pem"}),
    ],
)
def test_usual_names_mean_the_same(given: dict[str, str], chosen: dict[str, str]) -> None:
    assert usual_options(given) == chosen
    assert usual_options(chosen) == chosen


@pytest.mark.parametrize(
    "given",
    [
        {"secret": "x"},
        {"aws_secret_access_key": "x"},
        {"key": "x"},
        {"token": "x"},
        {"regoin": "x"},
        {"anon": "perhaps"},
        {"verify": "/etc/hosts"},
        {"addressing_style": "both"},
        {"no_verify_ssl": "/etc/own-ca.pem"},
        {"region": "a", "region_name": "b"},
    ],
)
def test_secrets_mistakes_and_contradictions_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="storage option") as caught:
        S3Objects("bucket", given)
    assert "x'" not in str(caught.value)


def test_a_requester_pays_in_every_client(moto: S3Server) -> None:
    client = moto.client()
    client.create_bucket(Bucket="paid")
    for key in ("a.jpg", "b//c.jpg"):
        client.put_object(Bucket="paid", Key=key, Body=b"x")
    storage = Storage("s3://paid", {"RequestPayer": "requester"})
    objects = storage.objects
    assert isinstance(objects, S3Objects)
    seen: list[object] = []

    def note(params: dict[str, object], **_: object) -> None:
        seen.append(params.get("RequestPayer"))

    objects._client.meta.events.register("provide-client-params.s3.*", note)
    assert [entry.path for entry in storage.list()] == ["a.jpg", "b//c.jpg"]
    assert storage.read("b//c.jpg") == b"x"
    assert storage.info("b//c.jpg").size == 1
    assert not asyncio.run(objects.is_encrypted("a.jpg"))
    assert len(seen) == 4
    assert set(seen) == {"requester"}
    assert objects.store.config.get("request_payer") == "true"
    assert storage.read("a.jpg") == b"x"
    filesystem: Any = s3_filesystem(objects)
    assert filesystem.req_kw == {"RequestPayer": "requester"}


def test_whatever_is_known_may_be_written_down() -> None:
    options = {"Region-Name": "a", "RequestPayer": "requester", "force_path_style": "true"}
    assert kept({**options, "secret": "x"}) == options
    assert withheld({**options, "secret": "x"}) == ["secret"]


CONFIG = """
[profile minio]
aws_access_key_id = key
aws_secret_access_key = secret
endpoint_url = {url}
s3 =
    addressing_style = path

[profile named]
aws_access_key_id = key
aws_secret_access_key = secret
services = own

[services own]
s3 =
    endpoint_url = {url}

[profile plain]
region = eu-west-1
"""


@pytest.fixture
def profiles(moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles alone say where the buckets are."""
    (tmp_path / "config").write_text(CONFIG.format(url=moto.url))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    client = moto.client()
    client.create_bucket(Bucket="placed")
    client.put_object(Bucket="placed", Key="a.jpg", Body=b"x")


@pytest.mark.parametrize("profile", ["minio", "named"])
def test_the_endpoint_of_a_profile_is_every_client_s(profiles: None, profile: str) -> None:
    storage = Storage("s3://placed", {"profile": profile})
    assert [entry.path for entry in storage.list()] == ["a.jpg"]
    assert storage.read("a.jpg") == b"x"
    with storage.open("a.jpg") as file:
        assert file.read() == b"x"


def test_a_profile_without_an_endpoint_is_at_aws(
    profiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = S3Objects("placed", {"profile": "plain"})
    assert objects.endpoint_url is None
    assert objects.region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert S3Objects("placed", {"profile": "minio"}).region == "eu-north-1"
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(UserError, match="profile 'none' does not exist"):
        S3Objects("placed", {}).get("a.jpg")


def test_an_endpoint_needs_its_scheme() -> None:
    with pytest.raises(UserError, match="must begin with http"):
        Storage("s3://placed", {"endpoint_url": "minio:9000"}).read("a.jpg")


def test_certificates_to_trust_reach_every_client(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(botocore.__file__).with_name("cacert.pem")
    for options in ({"verify": str(bundle)}, {}):
        if not options:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        objects = S3Objects("bucket", options)
        assert objects.verify == str(bundle)
        assert objects._root_certificate["root_certificate"] == bundle.read_bytes()
        assert objects.store is not None
        assert s3_filesystem(objects).client_kwargs["verify"] == str(bundle)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="can't read the certificates"):
        S3Objects("bucket", {"verify": str(tmp_path / "none.pem")}).store  # noqa: B018
