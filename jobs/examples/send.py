"""Tell somebody of a night: the report command of `panoptic nightly`, as small as it can be.

In nightly.toml:

    report = ["python", "send.py", "{run}", "{snapshot}", "{baseline}"]

It runs before anything is published, whether the gate has passed or not. What it writes to stderr
is seen in the night's log; if it ends with another code than 0, nothing is published. Set
CHAT_WEBHOOK to the address of a chat channel that takes {"text": ...}, or put your own way of
sending into `send`.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.request import Request, urlopen

import pipeline


def message(run: str, snapshot: int, baseline: str) -> str:
    """The night in two lines. run: its folder; baseline: what it is compared with, or empty."""
    rows = pipeline.open_run(run).table(["status"], snapshot=snapshot)["status"].to_pylist()
    failed = rows.count("error")
    compared = f"; baseline {baseline}" if baseline else ""
    return f"{run}, snapshot {snapshot}{compared}\n{len(rows):,} images, {failed:,} failed"


def send(text: str) -> None:
    address = os.environ.get("CHAT_WEBHOOK")
    if address is None:
        print(text, file=sys.stderr)
        return
    body = json.dumps({"text": text}).encode()
    headers = {"Content-Type": "application/json"}
    urlopen(Request(address, body, headers), timeout=30).close()


if __name__ == "__main__":
    send(message(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
