"""Keeps credentials out of what is written or sent: storage options, URLs, command lines. Pure.

Many people read a run folder, a log and the dashboard of a cluster. So only the storage options of
an allow-list are written or sent, and a URL that holds a password or a signature is refused before
it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from urllib.parse import urlsplit

from pipeline.errors import UserError

# Options that are no credentials, of S3, GCS and Azure, by fsspec's names.
KEPT_OPTIONS: Final = (
    *("region", "region_name", "endpoint_url", "profile", "anon", "anonymous", "requester_pays"),
    *("addressing_style", "verify"),
    *("account_name", "account_host", "project"),
)
# The options of S3, each with its names in other programs.
S3_ALIASES: Final = {
    "profile": ("profile_name", "aws_profile"),
    "region": ("region_name", "aws_region", "aws_default_region", "default_region"),
    "endpoint_url": ("endpoint", "aws_endpoint", "aws_endpoint_url", "endpoint_override"),
    "anon": ("anonymous", "skip_signature", "aws_skip_signature", "no_sign_request"),
    "requester_pays": ("request_payer", "aws_request_payer", "requestpayer"),
    "addressing_style": (
        *("s3_addressing_style", "virtual_hosted_style_request", "force_path_style"),
        *("aws_virtual_hosted_style_request", "force_virtual_addressing"),
    ),
    "verify": (
        *("ssl_verify", "verify_ssl", "no_verify_ssl", "allow_invalid_certificates"),
        *("ca_bundle", "aws_ca_bundle", "root_certificate"),
    ),
}
_KEPT_ALIASES: Final = frozenset(chain.from_iterable(S3_ALIASES.values()))
# Azure's URLs, in which the part before @ is a container, not a user.
CONTAINER_SCHEMES: Final = ("abfs", "abfss", "wasb", "wasbs")
# Query parameters that sign a URL or hold a credential: of S3, GCS, CloudFront, Azure, others.
SIGNATURES: Final = (
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid"),
    *("x-goog-signature", "x-goog-credential", "googleaccessid", "key-pair-id"),
    *("signature", "sig", "sign", "hmac", "token", "access_token", "auth_token", "sas"),
    *("api_key", "apikey", "api-key", "key", "secret", "password", "auth", "credential"),
)
SIGNED: Final = rf"(?i)[?&](?:{'|'.join(SIGNATURES)})="  # for RE2 too
_SIGNED: Final = re.compile(SIGNED)
_OPTION_FLAG: Final = re.compile(r"--[a-z]+-option")  # takes KEY=VALUE
_SECRET_NAME: Final = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|SIGNATURE|CONNECTION_STRING|(ACCESS|API|ACCOUNT)_?KEY"
    r"|(^|_)(KEY|SAS)$"
)


def kept(options: Mapping[str, str]) -> dict[str, str]:
    """The storage options that may be written and sent."""
    return {name: value for name, value in options.items() if _is_kept(name)}


def withheld(options: Mapping[str, str]) -> list[str]:
    """The names of the storage options that may not be written or sent, sorted."""
    return sorted(name for name in options if not _is_kept(name))


def _is_kept(name: str) -> bool:
    return name in KEPT_OPTIONS or name.lower().replace("-", "_") in _KEPT_ALIASES


def refuse_user_info(url: str, what: str | None = None) -> None:
    """Raises UserError, without the secret, if `url` names a user or password before its host.

    what: the words for the URL in the message.
    """
    if not _has_user_info(url):
        return
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    what = what or f"{'an' if scheme[:1].lower() in 'aefhilmnorsx' else 'a'} {scheme}:// URL"
    raise UserError(
        f"credentials don't belong in {what} ({scheme}://...@{host}/...), which is written down "
        "and shown: use the environment, a profile or a role"
    )


def is_signed(url: str) -> bool:
    """True for a URL whose query holds a signature or a credential (`SIGNATURES`)."""
    return "://" in url and _SIGNED.search(url) is not None


def without_query(url: str) -> str:
    """A signed URL without query and fragment; any other URL unchanged."""
    return url.partition("?")[0] if is_signed(url) else url


def refuse_secrets(url: str, what: str) -> None:
    """Raises UserError if `url` holds a user, a password or a signature.

    what: the words for the URL in the message.
    """
    refuse_user_info(url, what)
    if is_signed(url):
        raise UserError(
            f"{what} {without_query(url)} is signed, and is written down and shown: give the URL "
            "without a signature, and a role, a profile or the environment for the credentials"
        )


def without_values(words: Sequence[str]) -> list[str]:
    """A command line without secrets: `...` for the values of storage options outside
    `KEPT_OPTIONS`, signed URLs without their query."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        flag, option = ("", word) if _OPTION_FLAG.fullmatch(before) else _parted(word)
        name, equals, _ = option.partition("=")
        hidden = equals and option and name not in KEPT_OPTIONS
        shown.append(f"{flag}{name}=..." if hidden else without_query(word))
    return shown


def _parted(word: str) -> tuple[str, str]:
    """`--source-option=key=value` as `--source-option=` and `key=value`; else two empty strings."""
    flag, equals, option = word.partition("=")
    return (flag + equals, option) if equals and _OPTION_FLAG.fullmatch(flag) else ("", "")


def texts(value: Any) -> Iterator[str]:
    """Every string in the value of a setting, also within lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)


def secret_names(environment: Mapping[str, Any]) -> list[str]:
    """Names of the variables that hold a credential, judged by the name; sorted."""
    return sorted(name for name in environment if _SECRET_NAME.search(name.upper()))


def _has_user_info(url: str) -> bool:
    if "://" not in url or "@" not in url:
        return False
    scheme, _, rest = url.partition("://")
    try:
        netloc = urlsplit(url).netloc
    except ValueError:  # such as a bracket in a key
        netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = netloc.rpartition("@")
    return bool(at) and not (scheme.lower() in CONTAINER_SCHEMES and ":" not in user)
