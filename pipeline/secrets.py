"""Keeps credentials out of what is written or sent: storage options, URLs, command lines. Pure.

Many people read a run folder, a log and the dashboard of a cluster. So only the storage options of
an allow-list are written or sent, and their values must be plain; the names of all others are
written, so a name must look like one. A URL that holds a password or a signature is refused before
it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

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
# Options whose value may be any text: a profile's name, a file of certificates.
_ANY_TEXT: Final = (
    *("profile", "profile_name", "aws_profile"),
    *("verify", "ssl_verify", "verify_ssl", "ca_bundle", "aws_ca_bundle", "root_certificate"),
)
# Names, addresses, switches; no @, ?, ; or { of a user, a query, a connection string, JSON.
_PLAIN_VALUE: Final = re.compile(r"[\w.:/\[\]%*+= -]*")
_OPTION_NAME: Final = re.compile(r"[A-Za-z][\w.-]{0,63}")
# Azure's URLs, in which the part before @ is a container, not a user.
CONTAINER_SCHEMES: Final = ("abfs", "abfss", "wasb", "wasbs")
# Query parameters that sign a URL or hold a credential: of S3, GCS, CloudFront, Azure, others.
SIGNATURES: Final = (
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid"),
    *("x-goog-signature", "x-goog-credential", "googleaccessid", "key-pair-id"),
    *("signature", "sig", "sign", "hmac", "token", "access_token", "auth_token", "sas"),
    *("api_key", "apikey", "api-key", "key", "secret", "password", "auth", "credential"),
)
# Last words of longer names: `x-oss-signature`, `private_token`, `x-api-key`.
_SIGNATURE_ENDS: Final = (
    *("signature", "credential", "token", "secret", "password", "passwd"),
    *("api[_-]?key", "access[_-]?key", "account[_-]?key", "subscription[_-]?key"),
)
_LONGER: Final = rf"(?:[\w.-]*[_.-])?(?:{'|'.join(_SIGNATURE_ENDS)})"
# $ begins a variable, such as $TOKEN in the words for a shell. For RE2 too.
SIGNED: Final = rf"(?i)[?&](?:{'|'.join(SIGNATURES)}|{_LONGER})=[^$&]"
_SIGNED: Final = re.compile(SIGNED)
# The scheme and host part of a URL at the start of a text, or after `::`, which chains URLs of
# fsspec (`simplecache::https://host/x`); and anywhere in a text, as in `endpoint=https://host`.
_SCHEME: Final = r"([A-Za-z][A-Za-z0-9+.-]*)://"
_URL: Final = re.compile(rf"(?:^\s*|::){_SCHEME}")
_ANY_URL: Final = re.compile(_SCHEME)
_HOST: Final = re.compile(r"(?:(?!::)[^/?#\s])*")
# A name, and what is no port: of s3://KEY:SECRET/WITH/SLASH@bucket.
_HALF_SECRET: Final = re.compile(r"(?!arn:)[^\[\]@]+:\d*[^\d\[\]@:][^\[\]@]*")
_VARIABLE: Final = re.compile(r"\$\w+|\$\{\w+\}")  # of a shell: $TOKEN
# A header of a request, and the start of its value.
_HEADER: Final = re.compile(
    r"(?i)\b(?:authorization|cookie|apikey|[\w-]+-(?:token|secret|key))\s*:\s*"
    r"(?:(?:bearer|basic|digest|token)\s+)?+[^\s$\"']"
)
_SECRET_FLAG: Final = re.compile(
    r"(?i)--?(?:[\w-]*[-_])?(?:token|password|passwd|secret|api[-_]?key)"
)
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
    low = name.lower().replace("-", "_")
    return low in KEPT_OPTIONS or low in _KEPT_ALIASES


def check_options(options: Mapping[str, str], flag: str) -> None:
    """Raises UserError, without the text, for an option with what may be a secret in a place that
    is written: in its name, or in the value of an option that is kept.

    flag: where the options were given, such as `--source-option`.
    """
    for name, value in options.items():
        # A secret that ends in = is parted there: its name is the secret.
        parted = not _is_kept(name) and not str(value).strip("=")
        if parted or not _OPTION_NAME.fullmatch(name):
            raise UserError(
                f"{flag} must be KEY=VALUE, for example profile=prod, with a KEY of letters, "
                "digits, _, . and -; what was given is not repeated here, for it may be a secret"
            )
        if _is_kept(name) and not _is_plain(name, str(value)):
            raise UserError(
                f"{flag} {name}: its value is written down and shown, so it must be a plain name "
                "or address; a user, a query or a key comes from the environment, a profile or a "
                "role"
            )


def _is_plain(name: str, value: str) -> bool:
    if any(_users(value, _ANY_URL)) or is_signed(value):
        return False
    if "=" in value and secret_names([value.rpartition("=")[0]]):  # such as AccountKey=...
        return False
    low = name.lower().replace("-", "_")
    return low in _ANY_TEXT or _PLAIN_VALUE.fullmatch(value) is not None


def refuse_user_info(url: str, what: str | None = None) -> None:
    """Raises UserError, without the secret, if `url` names a user or password before its host.

    what: the words for the URL in the message.
    """
    _refuse_user_info(url, _URL, what)


def _refuse_user_info(text: str, urls: re.Pattern[str], what: str | None) -> None:
    for scheme, host in _users(text, urls):
        article = "an" if scheme[:1].lower() in "aefhilmnorsx" else "a"
        raise UserError(
            f"credentials don't belong in {what or f'{article} {scheme}:// URL'} "
            f"({scheme}://...@{host}/...), which is written down and shown: use the environment, a "
            "profile or a role"
        )


def is_signed(url: str) -> bool:
    """True for a URL whose query holds a signature or a credential (`SIGNATURES`)."""
    return "://" in url and _SIGNED.search(url) is not None


def without_query(url: str) -> str:
    """A signed URL without query and fragment; any other URL unchanged."""
    return url.partition("?")[0] if is_signed(url) else url


def refuse_secrets(url: str, what: str) -> None:
    """Raises UserError if a URL, anywhere in the text `url`, holds a user, a password or a
    signature.

    what: the words for the URL in the message.
    """
    _refuse_user_info(url, _ANY_URL, what)
    if is_signed(url):
        raise UserError(
            f"{what} {without_query(url)} is signed, and is written down and shown: give the URL "
            "without a signature, and a role, a profile or the environment for the credentials"
        )


def without_values(words: Sequence[str]) -> list[str]:
    """A command line without secrets: `...` for the values of storage options that are not kept or
    not plain, and for users in URLs; signed URLs without their query."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        flag, option = ("", word) if _OPTION_FLAG.fullmatch(before) else _parted(word)
        name, equals, value = option.partition("=")
        if option and not equals:
            shown.append(f"{flag}...")
        elif option and not (_is_kept(name) and _is_plain(name, value)):
            shown.append(f"{flag}{name if _OPTION_NAME.fullmatch(name) else ''}=...")
        else:
            shown.append(_without_user_info(without_query(word)))
    return shown


def _without_user_info(word: str) -> str:
    return re.sub(r"://[^?#\s]*@", "://...@", word) if any(_users(word, _ANY_URL)) else word


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


def secret_names(environment: Iterable[str]) -> list[str]:
    """Names of the variables that hold a credential, judged by the name; sorted."""
    return sorted(name for name in environment if _SECRET_NAME.search(name.upper()))


def holds_secret(command: Sequence[str]) -> bool:
    """True if a word of a command is a credential, as in `curl -H "Authorization: Bearer KEY"` or
    `--token KEY`. A variable that a shell fills in, such as $KEY, is none."""
    for before, word in zip(["", *command], command, strict=False):
        name, equals, value = word.partition("=")
        is_given = equals and value and not _VARIABLE.match(value)
        if is_given and re.fullmatch(r"\w+", name) and secret_names([name]):
            return True
        if is_given and _SECRET_FLAG.fullmatch(name):
            return True
        if _SECRET_FLAG.fullmatch(before) and not word.startswith(("-", "$")):
            return True
        if before in ("-u", "--user") and re.fullmatch(r"[^:$]+:[^$]+", word):
            return True
        if _HEADER.search(word):
            return True
    return False


def _users(text: str, urls: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """(scheme, host) of each URL in a text, where the pattern finds them, that names a user."""
    if "@" not in text:
        return
    for start in urls.finditer(text):
        scheme, found = start[1], _HOST.match(text, start.end())
        assert found is not None
        user, at, host = found[0].rpartition("@")
        if at:
            is_container = scheme.lower() in CONTAINER_SCHEMES and ":" not in user
            if not is_container and not _VARIABLE.fullmatch(user.rpartition(":")[2]):
                yield scheme, host
        elif _HALF_SECRET.fullmatch(found[0]) and "@" in text[found.end() :]:
            yield scheme, "..."
