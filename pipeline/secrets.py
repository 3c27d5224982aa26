"""What may be written down or sent: options by name, and URLs without a credential. Pure.

A run folder, a log and the dashboard of a cluster are read by many. So of the storage options only
those of a list are ever written or sent, whatever the others are called; a URL that carries a name
and a password, or a signature, is refused before anything is done with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pipeline.errors import UserError

# Where the data is and who pays, not who may read it. Of S3, GCS and Azure, as fsspec names them.
KEPT_OPTIONS: Final = (
    *("region", "region_name", "endpoint_url", "profile", "anon", "anonymous", "requester_pays"),
    *("addressing_style", "verify"),
    *("account_name", "account_host", "project"),
)
# The same of S3 as other clients name them; a test compares them with those that are known.
OTHER_NAMES: Final = frozenset(
    {
        *("profile_name", "aws_profile", "aws_region", "aws_default_region", "default_region"),
        *("endpoint", "aws_endpoint", "aws_endpoint_url", "endpoint_override"),
        *("skip_signature", "aws_skip_signature", "no_sign_request", "anonymous", "region_name"),
        *("request_payer", "aws_request_payer", "requestpayer"),
        *("s3_addressing_style", "virtual_hosted_style_request", "force_path_style"),
        *("aws_virtual_hosted_style_request", "force_virtual_addressing"),
        *("ssl_verify", "verify_ssl", "no_verify_ssl", "allow_invalid_certificates"),
        *("ca_bundle", "aws_ca_bundle", "root_certificate"),
    }
)
# URLs in which the part before @ is a container, as Azure writes them: no name and no password.
CONTAINER_SCHEMES: Final = ("abfs", "abfss", "wasb", "wasbs")
# Parameters of a query that sign a URL or let its holder in: of S3, GCS, CloudFront, Azure, others.
SIGNATURES: Final = (
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid"),
    *("x-goog-signature", "x-goog-credential", "googleaccessid", "key-pair-id"),
    *("signature", "sig", "sign", "hmac", "token", "access_token", "auth_token", "sas"),
    *("api_key", "apikey", "api-key", "key", "secret", "password", "auth", "credential"),
)
SIGNED: Final = rf"(?i)[?&](?:{'|'.join(SIGNATURES)})="  # for RE2 too
_SIGNED: Final = re.compile(SIGNED)
_OPTION_FLAG: Final = re.compile(r"--[a-z]+-option")  # whose value is KEY=VALUE
_SECRET_NAME: Final = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|SIGNATURE|CONNECTION_STRING|(ACCESS|API|ACCOUNT)_?KEY"
    r"|(^|_)(KEY|SAS)$"
)


def kept(options: Mapping[str, str]) -> dict[str, str]:
    """The options that may be written down and sent."""
    return {name: value for name, value in options.items() if _is_kept(name)}


def withheld(options: Mapping[str, str]) -> list[str]:
    """The names of all others."""
    return sorted(name for name in options if not _is_kept(name))


def _is_kept(name: str) -> bool:
    return name in KEPT_OPTIONS or name.lower().replace("-", "_") in OTHER_NAMES


def refuse_user_info(url: str, what: str | None = None) -> None:
    """Raises UserError, without the URL's secret, if a name or password stands before its host."""
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
    """True for a URL whose query lets everybody in who has it."""
    return "://" in url and _SIGNED.search(url) is not None


def without_query(url: str) -> str:
    """A signed URL without its query and fragment; any other as it is."""
    return url.partition("?")[0] if is_signed(url) else url


def refuse_secrets(url: str, what: str) -> None:
    """Raises UserError if a URL that will be written down carries a credential."""
    refuse_user_info(url, what)
    if is_signed(url):
        raise UserError(
            f"{what} {without_query(url)} is signed, and is written down and shown: give the URL "
            "without a signature, and a role, a profile or the environment for the credentials"
        )


def without_values(words: Sequence[str]) -> list[str]:
    """A command line as others may read it: storage options outside the list without their values,
    signed URLs without their signatures."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        flag, option = ("", word) if _OPTION_FLAG.fullmatch(before) else _parted(word)
        name, equals, _ = option.partition("=")
        hidden = equals and option and name not in KEPT_OPTIONS
        shown.append(f"{flag}{name}=..." if hidden else without_query(word))
    return shown


def _parted(word: str) -> tuple[str, str]:
    """`--source-option=key=value` as `--source-option=` and `key=value`; both empty for others."""
    flag, equals, option = word.partition("=")
    return (flag + equals, option) if equals and _OPTION_FLAG.fullmatch(flag) else ("", "")


def texts(value: Any) -> Iterator[str]:
    """Every text in a setting: of lists and tables, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)


def secret_names(environment: Mapping[str, Any]) -> list[str]:
    """Variables that hold a credential by their names."""
    return sorted(name for name in environment if _SECRET_NAME.search(name.upper()))


def _has_user_info(url: str) -> bool:
    if "://" not in url or "@" not in url:
        return False
    scheme, _, rest = url.partition("://")
    try:
        place = urlsplit(url).netloc
    except ValueError:  # such as a bracket in a key
        place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = place.rpartition("@")
    return bool(at) and not (scheme.lower() in CONTAINER_SCHEMES and ":" not in user)
