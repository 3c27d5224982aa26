"""Nights that are killed with -9 right before a chosen write, each in a process of its own.

    python -m tests.night_killer nightly.toml ADDRESS PATH...

For each PATH in turn a child runs the night and kills itself when it is about to write an object
whose URL matches it (`*` is anything); with `-` it runs to the end. Children are forked from one
process that has everything imported, so a night costs what it does and no more.
Prints a line of JSON: how each child ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from fnmatch import fnmatchcase
from typing import Any

from pipeline.nightly.nightly import nightly
from pipeline.nightly.settings import load_nightly
from pipeline.progress import Reporter
from pipeline.storage.storage import Storage


def run(toml: str, address: str, mark: str) -> None:
    """One night, in this process; it does not survive the write of what the mark matches."""

    def watch(name: str) -> None:
        write = getattr(Storage, name)

        def watched(self: Storage, path: str, *content: bytes) -> Any:
            if fnmatchcase(self.join(path), f"*{mark}"):
                os.kill(os.getpid(), signal.SIGKILL)
            return write(self, path, *content)

        setattr(Storage, name, watched)

    for name in ("write", "write_if_absent", "swap"):
        watch(name)
    summary = nightly(load_nightly(toml, {"address": address}), Reporter())
    os._exit(3 if summary.reasons else 0)


def main() -> None:
    toml, address, *marks = sys.argv[1:]
    ends = []
    for mark in marks:
        child = os.fork()
        if child == 0:
            try:
                run(toml, address, mark)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
        print(json.dumps({"mark": mark, "end": ends[-1]}), flush=True)


if __name__ == "__main__":
    main()
