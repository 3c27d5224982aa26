"""Commands of `panoptic` at once, each in a process of its own that was forked with everything
imported, so that they meet where two drivers would.

    python -m tests.two_at_once < rounds.jsonl

A line is one round: {"commands": [[...], [...]], "after": [0.0, 1.3]}. Prints for each round the
exit codes of its commands, in a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

from jobs.cli import run
from jobs.verbs import load_verb


def start(words: list[str], after: float) -> int:
    """The process that runs the command after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            time.sleep(after)
            os.dup2(2, 1)
            os._exit(run(words))
        finally:
            os._exit(1)
    return child


def main() -> None:
    for verb in ("nightly", "retry"):
        load_verb(verb)
    for line in sys.stdin:
        asked = json.loads(line)
        children = [start(*each) for each in zip(asked["commands"], asked["after"], strict=True)]
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
