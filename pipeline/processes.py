"""Identity of this machine and of its processes, and whether a process still runs, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def machine() -> str:
    """`BOOT_ID/PID_NAMESPACE` of this process; empty without /proc.

    Two containers may share a host name, and a process number identifies a process only within its
    PID namespace.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    return ""


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if /proc has no such process."""
    return _stat(pid, 19)


def _stat(pid: int, field: int) -> str | None:
    """A field of /proc/PID/stat, counted after the command name, which may hold spaces."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field]
    return None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid, 0) not in ("Z", "X")  # a zombie, not waited for yet, still has its number


def me() -> str:
    """The name of this process, `PID-START`; a later process of the same number has another."""
    return f"{os.getpid()}-{process_start(os.getpid())}"


def is_gone(name: str) -> bool:
    """True if the process of this name (`me`) on this machine has ended."""
    pid, _, start = name.partition("-")
    if not pid.isdigit():
        return False
    return not alive(int(pid)) or process_start(int(pid)) != start
