"""What is written down and what is refused, for the options and URLs of every store."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import load_config, make_config
from pipeline.errors import UserError
from pipeline.nightly.settings import NightlyConfig
from pipeline.secrets import (
    check_options,
    holds_secret,
    is_signed,
    kept,
    refuse_user_info,
    secret_names,
    withheld,
    without_query,
    without_values,
)
from pipeline.storage.storage import normalize_url

PLANTED = "pl4nted"
SIGNED = (
    f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Date=1&X-Amz-Signature={PLANTED}",
    f"https://storage.googleapis.com/b/a.jpg?x-goog-signature={PLANTED}",
    f"https://acc.blob.core.windows.net/c/a.jpg?sv=2024&sig={PLANTED}%3D",
    f"https://cdn.example/a.jpg?Expires=1&Signature={PLANTED}&Key-Pair-Id=K",
    f"https://host/a.jpg?token={PLANTED}",
    f"s3://b/a.jpg?AWSAccessKeyId=A&Signature={PLANTED}",
    f"https://oss.example/b/a.jpg?x-oss-signature={PLANTED}",
    f"https://git.example/a.jpg?v=1&private_token={PLANTED}",
    f"https://host/a.jpg?Subscription-Key={PLANTED}",
)
# Names of options that hold a secret, as clients of S3, GCS, Azure and HTTP spell them.
SECRET_OPTIONS = (
    *("key", "secret", "AWS_SECRET_ACCESS_KEY", "aws-secret-access-key", "Aws_Secret_Access_Key"),
    *("secret_access_key", "access_key_id", "aws_session_token", "SESSION-TOKEN", "aws_token"),
    *("token", "TOKEN", "credentials", "google_service_account_key", "service_account_key"),
    *("account_key", "ACCOUNT-KEY", "sas_token", "SAS-Token", "azure_storage_sas_key"),
    *("credential", "client_secret", "connection_string", "bearer_token", "azure_storage_token"),
    *("client_kwargs", "config_kwargs", "storage_options", "client_options", "retry_config"),
    *("headers", "default_headers", "authorization", "auth", "username", "password", "cookies"),
    *("proxy", "proxies", "proxy_url", "HTTPS_PROXY", "endpoint_url_key", "profiles", "region2"),
)
# Kept options whose value holds a secret.
SPOILT = (
    ("endpoint_url", f"https://user:{PLANTED}@host:9000"),
    ("endpoint", f"https://{PLANTED}@host"),
    ("AWS_ENDPOINT_URL", f"http://user:{PLANTED}@host"),
    ("endpoint-override", f"user:{PLANTED}@host:9000"),
    ("Endpoint_URL", f"https://host/?token={PLANTED}"),
    ("account_host", f"acc.blob.core.windows.net?sv=2024&sig={PLANTED}"),
    ("account_name", f"AccountName=acc;AccountKey={PLANTED}"),
    ("project", f'{{"private_key": "{PLANTED}"}}'),
    ("region", f"eu-west-1,secret={PLANTED}"),
    ("region", f"aws_secret_access_key={PLANTED}"),
    ("ca_bundle", f"https://user:{PLANTED}@host/ca.pem"),
    ("profile", f"https://user:{PLANTED}@host"),
)
# Names in which a secret got, by a slip.
ODD_NAMES = (
    {f'{{"account_key":"{PLANTED}': '="}'},
    {PLANTED: "="},
    {PLANTED: ""},
    {f"{PLANTED}/and+more": "x"},
    {f"https://host/?sig={PLANTED}": "x"},
    {PLANTED * 10: "x"},
    {"": PLANTED},
)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://user:{PLANTED}@bucket/x",
        f"gs://{PLANTED}@bucket/x",
        f"https://user:{PLANTED}@host:8443/x",
        f"https://{PLANTED}@host/x",
        f"ftp://user:{PLANTED}@host/x",
        f"abfs://user:{PLANTED}@account/x",
        f"webhdfs://user:{PLANTED}@host/x",
        f" https://user:{PLANTED}@host/x",
        f"simplecache::https://user:{PLANTED}@host/x",
        f"zip://*.jpg::https://{PLANTED}@host/x.zip",
        f"s3://KEY:{PLANTED}/with/slashes@bucket/x",
    ],
)
def test_user_info_is_refused_for_every_scheme_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="credentials don't belong in") as refused:
        normalize_url(url)
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b.jpg",
        "https://host/@me/a.jpg?to=a@b",
        "abfss://container@account.dfs.core.windows.net/x",
        "/photos/a@b",
        "s3://bucket/[1]@x",
        "https://host:8443/a@b",
        "http://[::1]:9000/a@b",
        "zip://*.jpg::https://host/a@b.zip",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/a@b",
        "s3://bucket/see https://me@host",
    ],
)
def test_an_at_sign_elsewhere_is_part_of_a_name(url: str) -> None:
    refuse_user_info(url)


@pytest.mark.parametrize("url", SIGNED)
def test_signed_urls_are_known_and_cut(url: str) -> None:
    assert is_signed(url)
    assert without_query(url).endswith("a.jpg")


@pytest.mark.parametrize(
    "url",
    [
        *("https://host/a.jpg", "https://host/a.jpg?v=2&size=big", "a.jpg?sig=1", "design=1"),
        *("https://host/a.jpg?monkey=1&tokens=2", "https://host/hook?token=$TOKEN"),
    ],
)
def test_other_queries_are_left_alone(url: str) -> None:
    assert not is_signed(url)
    assert without_query(url) == url


@pytest.mark.parametrize("field", ["source", "weights", "image_root"])
@pytest.mark.parametrize("url", [SIGNED[0], f"https://u:{PLANTED}@host/x"])
def test_a_setting_with_a_credential_is_refused_by_name(field: str, url: str) -> None:
    values = {"source": "/photos", "out": "/run", field: url}
    with pytest.raises(UserError) as refused:
        make_config(values)
    assert PLANTED not in str(refused.value)
    assert {"source": "SOURCE"}.get(field, "--" + field.replace("_", "-")) in str(refused.value)


def test_only_listed_options_are_kept_whatever_the_others_are_called() -> None:
    options = {
        **dict.fromkeys(
            ("account_key", "sas_token", "token", "key", "secret", "client_kwargs"), ""
        ),
        **dict.fromkeys(("headers", "username", "anything_new"), ""),
        **dict.fromkeys(("profile", "region", "endpoint_url", "anon", "account_name"), "x"),
    }
    assert set(kept(options)) == {"profile", "region", "endpoint_url", "anon", "account_name"}
    assert set(withheld(options)) == set(options) - set(kept(options))


@pytest.mark.parametrize("name", SECRET_OPTIONS)
def test_no_spelling_of_a_secret_s_name_is_kept(name: str) -> None:
    assert kept({name: PLANTED}) == {}
    assert withheld({name: PLANTED}) == [name]
    check_options({name: PLANTED}, "--source-option")  # it may be given
    for words in (["--source-option", f"{name}={PLANTED}"], [f"--out-option={name}={PLANTED}"]):
        assert PLANTED not in " ".join(without_values(words))


@pytest.mark.parametrize("field", ["source_options", "out_options"])
@pytest.mark.parametrize(("name", "value"), SPOILT)
def test_a_kept_option_with_a_secret_in_its_value_is_refused(
    field: str, name: str, value: str
) -> None:
    with pytest.raises(UserError, match=f"--{field[:-1].replace('_', '-')} {name}") as refused:
        make_config({"source": "/photos", "out": "/run", field: {name: value}})
    assert PLANTED not in str(refused.value)
    words = ["--source-option", f"{name}={value}", f"--source-option={name}={value}"]
    assert without_values(words) == [words[0], f"{name}=...", f"{words[0]}={name}=..."]


@pytest.mark.parametrize("options", ODD_NAMES)
def test_a_secret_in_the_place_of_a_name_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match="must be KEY=VALUE") as refused:
        make_config({"source": "/photos", "out": "/run", "source_options": options})
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("endpoint_url", "http://[fd00::1]:9000"), ("endpoint", "https://s3.example/path")),
        *(("region", "eu-west-1"), ("project", "example.com:photos"), ("profile", "me@corp")),
        *(("ca_bundle", "/etc/ssl/a=b.pem"), ("anon", ""), ("requester_pays", "requester")),
        *(("account_host", "acc.blob.core.windows.net"), ("account_name", "acc"), ("token", "x=y")),
    ],
)
def test_a_plain_value_is_taken(name: str, value: str) -> None:
    check_options({name: value}, "--source-option")


@pytest.mark.parametrize(
    "values",
    [
        {"source_options": {"client_kwargs": {"aws_secret_access_key": PLANTED}}},
        {"source_options": {"config_kwargs": [PLANTED]}},
        {"out_options": f"secret={PLANTED}"},
        {"out_options": [{"secret": PLANTED}]},
        {"report": f"curl -H 'Authorization: Bearer {PLANTED}'"},
        {"report": [["curl", PLANTED]]},
    ],
)
def test_a_setting_of_a_wrong_type_is_refused_without_its_value(values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        load_config(NightlyConfig, {"source": "/photos", "out": "/run", **values})
    assert PLANTED not in str(refused.value)
    assert "--" + next(iter(values)).removesuffix("s").replace("_", "-") in str(refused.value)


@pytest.mark.parametrize(
    "command",
    [
        ["curl", "-H", f"Authorization: Bearer {PLANTED}", "https://host"],
        ["curl", "-H", f"X-Api-Key:{PLANTED}"],
        ["sh", "-c", f"curl -H 'PRIVATE-TOKEN: {PLANTED}' https://host"],
        ["curl", "-u", f"me:{PLANTED}"],
        ["python", "send.py", "--token", PLANTED],
        ["python", "send.py", f"--slack-token={PLANTED}"],
        ["env", f"SLACK_TOKEN={PLANTED}", "send.sh"],
    ],
)
def test_a_command_with_a_credential_is_known(command: list[str]) -> None:
    assert holds_secret(command)


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", 'curl -H "Authorization: Bearer $TOKEN" https://host'],
        ["sh", "-c", 'curl -H "X-Api-Key: ${KEY}" https://host'],
        ["python", "send.py", "{run}", "--token-file", "/run/secrets/slack"],
        ["python", "send.py", "--token", "$SLACK"],
        ["env", "SLACK_TOKEN=$TOKEN", "TZ=UTC", "send.sh"],
        ["python", "-u", "send.py", "--by=token", "monkey: x"],
        ["curl", "-u", "me:$TOKEN"],
    ],
)
def test_a_command_that_takes_its_credential_from_elsewhere_is_not(command: list[str]) -> None:
    assert not holds_secret(command)


def test_a_command_line_is_shown_without_values() -> None:
    words = ["python", "-m", "jobs.cli", "segment", "s3://b/a=b", "--out", "s3://b/run"]
    words += ["--source-option", f"account_key={PLANTED}", "--source-option=region=eu=1"]
    words += [
        f"--out-option=sas_token={PLANTED}",
        "--out-option",
        f"={PLANTED}",
        "--truth",
        SIGNED[0],
    ]
    shown = without_values(words)
    assert PLANTED not in " ".join(shown)
    assert shown[:7] == words[:7]
    assert shown[7:11] == [
        *("--source-option", "account_key=...", "--source-option=region=eu=1"),
        "--out-option=sas_token=...",
    ]


def test_variables_with_credentials_are_known_by_their_names() -> None:
    secret = (
        *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "HF_TOKEN"),
        *("AZURE_STORAGE_CONNECTION_STRING", "DB_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS"),
    )
    plain = ("AWS_REGION", "AWS_PROFILE", "PYTHONPATH", "OMP_NUM_THREADS", "MONKEY", "KEYBOARD")
    assert secret_names(dict.fromkeys((*secret, *plain), "")) == sorted(secret)
