"""Text of a duration, and of a count with its noun."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Such as `0.4 s`, `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 100:
        return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def counted(number: int, noun: str) -> str:
    """Such as `1 shard`, `2,000 shards`. noun: a singular whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
