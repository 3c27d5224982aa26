"""What is written down and what is refused, for the options and URLs of every store."""

from __future__ import annotations

import pytest

from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.secrets import (
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
    ],
)
def test_an_at_sign_elsewhere_is_part_of_a_name(url: str) -> None:
    refuse_user_info(url)


@pytest.mark.parametrize("url", SIGNED)
def test_signed_urls_are_known_and_cut(url: str) -> None:
    assert is_signed(url)
    assert without_query(url).endswith("a.jpg")


@pytest.mark.parametrize(
    "url", ["https://host/a.jpg", "https://host/a.jpg?v=2&size=big", "a.jpg?sig=1", "design=1"]
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
