"""Options by the names that other clients' users know; none of them a secret."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipeline.errors import UserError
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
        {"verify": "/etc/ca.pem"},
        {"addressing_style": "both"},
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
