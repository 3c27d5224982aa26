"""Which process is which, and is it still there: as far as /proc tells."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def machine() -> str:
    """This boot of this kernel and this space of process numbers: two containers may share a host
    name, and a process number means nothing outside its own space."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    return ""


def process_start(pid: int) -> str | None:
    """When a process began, in ticks since boot; None where /proc doesn't tell."""
    with suppress(OSError, IndexError):
        # The name in brackets may hold spaces; the start is the 20th field behind it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A process that was killed and not yet waited for by its parent still has its number.
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def me() -> str:
    """This process, told apart from a later one of the same number: `PID-START`."""
    return f"{os.getpid()}-{process_start(os.getpid())}"


def is_gone(name: str) -> bool:
    """True if the process that called itself so with `me` on this machine has ended."""
    pid, _, start = name.partition("-")
    if not pid.isdigit():
        return False
    return not alive(int(pid)) or process_start(int(pid)) != start
