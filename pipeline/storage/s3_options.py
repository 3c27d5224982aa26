"""Options of an S3 store: the names of boto3, s3fs and obstore -> one name each.

A key or a secret is refused. Values are text, as on a command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.errors import UserError
from pipeline.secrets import S3_ALIASES

NAMES: Final = tuple(S3_ALIASES)
_CANONICAL: Final = {alias: name for name, aliases in S3_ALIASES.items() for alias in aliases}
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
