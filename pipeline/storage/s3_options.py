"""Options of an S3 store: the names of boto3, s3fs and obstore -> one name each.

A key or a secret is refused. Values are text, as on a command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.errors import UserError

# Name -> its names in other programs.
_ALIASES: Final = {
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
NAMES: Final = tuple(_ALIASES)
_CANONICAL: Final = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
ALIASES: Final = frozenset(_CANONICAL)
_FLAGS: Final = ("anon", "requester_pays", "verify")
_OPPOSITE: Final = ("force_path_style", "allow_invalid_certificates", "no_verify_ssl")
_YES: Final = ("1", "true", "yes", "on", "requester")
_NO: Final = ("0", "false", "no", "off", "")
_CERTIFICATES: Final = (".pem", ".crt", ".cer", ".bundle")
_STYLES: Final = ("auto", "path", "virtual")


def usual_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options by this program's names (`NAMES`).

    Raises UserError for an unknown or contradictory option or a bad value.
    """
    chosen: dict[str, str] = {}
    for given, value in options.items():
        low = given.lower().replace("-", "_")
        name = _CANONICAL.get(low, low)
        if name not in NAMES:
            raise UserError(
                f"storage option {given!r} is not known for s3:// (use {', '.join(NAMES)}; "
                "keys and secrets come from the environment or a profile)"
            )
        if (known := _value(name, low, given, str(value))) != chosen.setdefault(name, known):
            raise UserError(f"storage option {given!r} contradicts another of the same meaning")
    return chosen


def _value(name: str, alias: str, given: str, value: str) -> str:
    low = value.strip().lower()
    if name == "addressing_style":
        if low in _STYLES:
            return low
        if low in _YES or low in _NO:
            virtual = (low in _YES) != (alias in _OPPOSITE)
            return "virtual" if virtual else "path"
        raise UserError(f"storage option {given}={value!r} must be {', '.join(_STYLES)}")
    if name in _FLAGS:
        if name == "verify" and alias not in _OPPOSITE and low.endswith(_CERTIFICATES):
            return value.strip()
        if low not in (*_YES, *_NO):
            raise UserError(f"storage option {given}={value!r} must be true or false")
        return "true" if (low in _YES) != (alias in _OPPOSITE) else "false"
    return value
